"""Compiles every CUDA kernel for every architecture, and fails if one spills registers.

    python scripts/check_cuda.py

No GPU is needed. `csrc/kernels/*.cu` instantiate all kernels without PyTorch. nvcc compiles them
for what CUDA 13 knows; it does not know Volta any more, whose code NVRTC 12.9 makes from the same
files: its wheels are installed into build/. What ptxas says of each kernel is printed, and
written to benchmarks/cuda_resources.csv.
"""

import csv
import ctypes
import os
import re
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
# By itself: the package would import torch, which nothing here needs.
toolchain = SimpleNamespace(**runpy.run_path(str(ROOT / "fastinst" / "toolchain.py")))
SOURCES = ROOT / "csrc" / "kernels"
TABLE = ROOT / "benchmarks" / "cuda_resources.csv"
COLUMNS = ("kernel", "arch", "registers", "shared_bytes", "stack_bytes", "spilled_bytes")
VOLTA = 70
NVCC_ARCHITECTURES = (75, 80, 86, 90)
FLAGS = ("--std=c++17", f"-I{SOURCES.parent}", f"-I{SOURCES}")
NVRTC = ROOT / "build" / "nvrtc-12.9"
NVRTC_WHEELS = (
    "nvidia-cuda-nvrtc-cu12==12.9.86",
    "nvidia-cuda-runtime-cu12==12.9.79",  # headers
    "nvidia-cuda-nvcc-cu12==12.9.86",  # ptxas, and more headers
)
# Kernels that may spill, by a pattern of their name and architecture, and why.
MAY_SPILL = {
    r"<double\b": "float64 is there for gradcheck, not for speed",
    r"<__nv_bfloat16\b.* sm_7": "chips before sm_80 have none, and the hosts compute in float32",
}


def main() -> int:
    sources = sorted(SOURCES.glob("*.cu"))
    if not sources:
        sys.exit(f"there is no .cu file in {SOURCES}")
    try:
        nvcc = toolchain.find_nvcc()
    except toolchain.NotBuilt as reason:
        sys.exit(str(reason))
    install_nvrtc()

    # Two at a time: a compiler takes a core and up to a gigabyte.
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_volta, source) for source in sources]
        for arch in NVCC_ARCHITECTURES:
            jobs += [pool.submit(compile_by_nvcc, nvcc, source, arch) for source in sources]
        try:
            rows = sorted({row for job in jobs for row in job.result()})
        except CompileError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(str(error))

    print_table(rows)
    with open(TABLE, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    spilling = [row for row in rows if row[-1] and not may_spill(row[0], row[1])]
    for name, arch, *_, spilled in spilling:
        print(f"{name} spills {spilled} bytes on {arch}", file=sys.stderr)
    return 1 if spilling else 0


class CompileError(Exception):
    pass


def compile_by_nvcc(nvcc: str, source: Path, arch: int) -> list[tuple]:
    flags = ["-O3", *FLAGS, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    return resources(checked([nvcc, *flags, source, "-o", os.devnull]))


def compile_volta(source: Path) -> list[tuple]:
    """By NVRTC to PTX, and by ptxas of the same version to machine code."""
    packages = NVRTC / "nvidia"
    include = [f"-I{packages / name / 'include'}" for name in ("cuda_runtime", "cuda_nvcc")]
    flags = [*FLAGS, *include, f"--gpu-architecture=compute_{VOLTA}"]
    ptx = compile_by_nvrtc(source, [str(flag).encode() for flag in flags])
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        ptxas = [packages / "cuda_nvcc" / "bin" / "ptxas", f"-arch=sm_{VOLTA}", "-v"]
        return resources(checked([*ptxas, file.name, "-o", os.devnull]))


def compile_by_nvrtc(source: Path, flags: list[bytes]) -> bytes:
    folder = NVRTC / "nvidia" / "cuda_nvrtc" / "lib"
    ctypes.CDLL(str(folder / "libnvrtc-builtins.so.12.9"), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(folder / "libnvrtc.so.12"))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def read(what: str) -> bytes:
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        return text.value

    text, name = source.read_bytes(), str(source).encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
    try:
        options = (ctypes.c_char_p * len(flags))(*flags)
        if nvrtc.nvrtcCompileProgram(program, len(flags), options):
            raise CompileError(f"NVRTC for sm_{VOLTA}:\n{read('ProgramLog').decode()}")
        return read("PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def install_nvrtc() -> None:
    if not (NVRTC / "installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", NVRTC, *NVRTC_WHEELS], check=True)
        (NVRTC / "installed").touch()


def checked(command: list) -> str:
    """What a compiler writes to stderr, or a CompileError with it."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def resources(report: str) -> list[tuple]:
    """A row of COLUMNS for each kernel in ptxas' report."""

    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, section)]

    rows = []
    for section in report.split("Compiling entry function '")[1:]:
        symbol, arch = re.match(r"(\w+)' for '(sm_\w+)'", section).groups()
        (registers,) = numbers(r"Used (\d+) registers")
        # More than once if the kernel calls functions that were not inlined.
        stack = sum(numbers(r"(\d+) bytes stack frame"))
        spilled = sum(numbers(r"(\d+) bytes spill (?:stores|loads)"))
        shared = sum(numbers(r"(\d+) bytes smem"))
        rows.append((readable(symbol), arch, registers, shared, stack, spilled))
    return rows


def readable(symbol: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True).stdout.strip()
    name = name.replace("(anonymous namespace)::", "").replace("fastinst::", "")
    name = name.removeprefix("void ")
    depth = 0
    for end, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:end]
    return name


def may_spill(name: str, arch: str) -> bool:
    return any(re.search(pattern, f"{name} {arch}") for pattern in MAY_SPILL)


def print_table(rows: list[tuple]) -> None:
    """Kernels down, architectures across: registers, shared memory, and what is spilled."""
    archs = sorted({row[1] for row in rows})
    cells = {(name, arch): numbers for name, arch, *numbers in rows}
    names = sorted({row[0] for row in rows})
    width = max(map(len, names)) + 2
    print("registers, +static shared memory in KiB, !bytes spilled")
    print(" " * width + "".join(f"{arch:>16}" for arch in archs))
    for name in names:
        line = f"{name:{width}}"
        for arch in archs:
            registers, shared, _, spilled = cells.get((name, arch), ("-", 0, 0, 0))
            more = f" +{shared / 1024:.1f}" if shared else ""
            line += f"{f'{registers}{more}' + (f' !{spilled}' if spilled else ''):>16}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
