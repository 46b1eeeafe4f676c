"""Compiles CUDA kernels for the emulator of `tests/cuda_emulator` and calls them with tensors.

    kernels = emulated.build('#include "kernels/scale.cuh" ... EMULATED(scale, scale)')
    kernels.scale(input, output, input.numel(), 2.0)  # writes into the tensor `output`

See `tests/cuda_emulator/README.md` for what such a run checks.
"""

import ctypes
import functools
import hashlib
import mmap
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "cuda_emulator"
BUILT = ROOT / "build" / "emulated"
COMPILER = shutil.which("g++")
FLAGS = (
    "-std=c++17 -O1 -g1 -fPIC -shared -ffp-contract=off -U_FORTIFY_SOURCE "
    # threadIdx.x is unsigned, sizes are int, and nvcc says nothing.
    "-Wall -Wextra -Werror -Wno-sign-compare -Wno-unknown-pragmas -Wno-clobbered "
    # Undefined behaviour traps, and the emulator says where.
    "-fsanitize=undefined -fno-sanitize=vptr -fsanitize-undefined-trap-on-error"
).split()
# Ascending, descending and random order of the threads.
SCHEDULES = (0, 1, 2)
ALIGNMENT = 16  # of the tensors handed to kernels, like that of the slices models pass
CANARY = 0xA5


class EmulatedError(AssertionError):
    """A kernel did what CUDA forbids or leaves undefined."""


needs_emulator = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs g++ on Linux"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# What kernels are instantiated for.
SCALARS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}


@functools.cache
def build(source: str) -> "Kernels":
    """A library of C++ `source`, which has csrc/ and tests/cuda_emulator/ on its include path."""
    digest = hashlib.sha256(" ".join([*FLAGS, source]).encode())
    for folder in (EMULATOR, ROOT / "csrc" / "kernels"):
        for path in sorted(folder.rglob("*.*")):
            if path.suffix in (".h", ".cuh", ".cpp"):
                digest.update(path.read_bytes())
    library = BUILT / f"{digest.hexdigest()[:20]}.so"
    if not library.exists():
        _compile(source, library)
    return Kernels(ctypes.CDLL(str(library)))


def _compile(source: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        entry, unfinished = Path(folder) / "entry.cpp", Path(folder) / "library.so"
        entry.write_text(f'#include "entry.h"\n{source}\n')
        include = [EMULATOR / "include", EMULATOR, ROOT / "csrc"]
        sources = [entry, *sorted(EMULATOR.glob("*.cpp"))]
        command = [COMPILER, *FLAGS, "-include", "cuda_runtime.h"]
        command += [f"-I{path}" for path in include] + [*sources, "-o", unfinished]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise EmulatedError(result.stderr)
        unfinished.replace(library)


class Kernels:
    """The functions named by EMULATED, as methods."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library

    def __getattr__(self, name: str):
        function = getattr(self._library, f"emulated_{name}")
        function.restype = ctypes.c_char_p
        return functools.partial(self._run, name, function)

    def _run(self, name, function, *arguments, rounding: float = 0.0) -> None:
        """Calls under every schedule and writes what the kernel wrote into the tensors.

        All schedules must write the same bits. `rounding` allows floating-point tensors to differ
        by that share of their largest value, for sums by atomics.
        """
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            raise ValueError(f"{name} is emulated on the CPU: so must be its tensors")
        first: list[bytes] = []
        for schedule in SCHEDULES:
            self._library.cuda_emulator_schedule(schedule)
            buffers = [Buffer(tensor, at_end=schedule % 2 == 0) for tensor in tensors]
            remaining = iter(buffers)
            slots = [
                next(remaining).address if isinstance(argument, Tensor) else argument
                for argument in arguments
            ]
            error = function(*_slots(arguments, slots))
            if error is not None:
                raise EmulatedError(
                    f"{name}, schedule {schedule}: {_with_lines(_with_arguments(error, buffers))}"
                )
            for position, buffer in enumerate(buffers):
                if not buffer.canaries_live():
                    raise EmulatedError(f"{name} writes outside of tensor argument {position}")
            contents = [buffer.contents() for buffer in buffers]
            if not first:
                first = contents
            for position, tensor in enumerate(tensors):
                _check_equal(name, position, tensor, first[position], contents[position], rounding)
        for tensor, content in zip(tensors, first, strict=True):
            ctypes.memmove(tensor.data_ptr(), content, len(content))


class _Argument(ctypes.Union):
    _fields_ = [
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
        ("pointer", ctypes.c_void_p),
    ]


def _slots(arguments, values):
    slots = (_Argument * len(arguments))()
    kinds = ""
    for slot, argument, value in zip(slots, arguments, values, strict=True):
        if isinstance(argument, Tensor) or argument is None:
            slot.pointer, kind = value, "p"
        elif isinstance(argument, float):
            slot.real, kind = value, "f"
        else:
            slot.integer, kind = int(value), "i"
        kinds += kind
    return slots, kinds.encode()


class Buffer:
    """A copy of a tensor's memory between two pages that fault, against one of them."""

    def __init__(self, tensor: Tensor, at_end: bool):
        self.bytes = _span(tensor)
        page = mmap.PAGESIZE
        inner = max(1, -(-self.bytes // page)) * page
        self._memory = mmap.mmap(-1, inner + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        _protect(base, page)
        _protect(base + page + inner, page)
        self._begin, self._end = base + page, base + page + inner
        self.address = self._begin
        if at_end:
            self.address += (inner - self.bytes) // ALIGNMENT * ALIGNMENT
        ctypes.memset(self._begin, CANARY, inner)
        ctypes.memmove(self.address, tensor.data_ptr(), self.bytes)

    def contents(self) -> bytes:
        return ctypes.string_at(self.address, self.bytes)

    def canaries_live(self) -> bool:
        before = ctypes.string_at(self._begin, self.address - self._begin)
        after_begin = self.address + self.bytes
        after = ctypes.string_at(after_begin, self._end - after_begin)
        return not (before + after).strip(bytes([CANARY]))


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last, by its strides."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _protect(address: int, size: int) -> None:
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address), size, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def _with_arguments(error: bytes, buffers: list[Buffer]) -> str:
    """Names the tensor that an address is next to."""

    def name(match: re.Match) -> str:
        address = int(match[1], 16)
        for position, buffer in enumerate(buffers):
            if -mmap.PAGESIZE <= address - buffer.address < buffer.bytes + mmap.PAGESIZE:
                offset = address - buffer.address
                return f"byte {offset} of tensor argument {position}, which has {buffer.bytes}"
        return match[0]

    return re.sub(r"address 0x(\w+)", name, error.decode())


def _with_lines(error: str) -> str:
    """Replaces library+offset by file and line, where addr2line is at hand."""

    def line(match: re.Match) -> str:
        command = ["addr2line", "-e", match[1], match[2]]
        try:
            found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            found = ""
        return found or match[0]

    return re.sub(r"(?<=, at )(.+?\.so)\+(0x\w+)", line, error)


def _check_equal(name, position, tensor, first: bytes, other: bytes, rounding: float) -> None:
    if first == other:
        return
    where = f"{name} writes tensor argument {position}"
    if rounding == 0 or not tensor.is_floating_point():
        raise EmulatedError(f"{where} differently when its threads run in another order")
    one, two = (torch.frombuffer(bytearray(x), dtype=tensor.dtype).double() for x in (first, other))
    if not (one - two).abs().max() <= rounding * one.abs().max():
        raise EmulatedError(f"{where} by more than rounding differently in another order")
