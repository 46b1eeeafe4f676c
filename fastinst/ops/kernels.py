"""The compiled kernels: loading them, and telling which are active.

`setup.py` builds them into `_C.abi3.so` beside this package, with a record of how. They register
themselves under the operators' names; without them every operator runs its definition.

Environment: FASTINST_KERNELS=0 leaves them out, =1 makes it an error if they cannot be loaded;
FASTINST_ISA=baseline|avx2|avx512 lowers what the CPU's use; FASTINST_LIBRARY names another build.
"""

import contextlib
import ctypes
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from fastinst.ops.sources import sources_digest

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARY = Path(os.environ.get("FASTINST_LIBRARY") or PACKAGE / "_C.abi3.so")


def load_kernels() -> None:
    """Loads the library, and warns of what makes this machine slower than it need be.

    Raises:
        ImportError: it cannot be loaded, and FASTINST_KERNELS=1; or that is neither 0 nor 1
    """
    wanted = os.environ.get("FASTINST_KERNELS", "")
    if wanted not in ("", "0", "1"):
        raise ImportError(f"FASTINST_KERNELS must be 0 or 1, got {wanted!r}")
    # The doctor says the same by itself, and at length.
    if wanted == "0" or "fastinst.doctor" in sys.orig_argv:
        return
    without, reason = "compiled kernels", why_not_loaded()
    if reason and wanted == "1":
        raise ImportError(f"fastinst's kernels: {reason} (`python -m fastinst.doctor`)")
    if not reason and torch.version.cuda and torch.cuda.device_count():
        without, reason = "CUDA kernels", build_record().get("missing", {}).get("cuda")
    if reason:
        warnings.warn(
            f"fastinst runs without {without}, up to several times slower: {reason}. "
            "`python -m fastinst.doctor` says what to do.",
            RuntimeWarning,
            stacklevel=2,
        )


def why_not_loaded() -> str:
    """Loads the library unless it is loaded; what stands in its way, or nothing."""
    if os.environ.get("FASTINST_KERNELS") == "0":
        return "FASTINST_KERNELS=0 in the environment"
    if not LIBRARY.is_file():
        return build_record().get("missing", {}).get("cpu") or f"{LIBRARY} does not exist"
    # Kernels of other sources could be called with other arguments than they read.
    if LIBRARY.parent == PACKAGE and sources_have_changed():
        return "csrc has changed since the build"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the library does not load: {error.__cause__ or error}"
    return ""


def sources_have_changed() -> bool:
    """Whether this is a checkout, and its csrc another than the library was built from."""
    csrc = PACKAGE.parent / "csrc"
    return csrc.is_dir() and build_record().get("sources") != sources_digest(csrc)


def build_record() -> dict:
    """What setup.py noted beside the library; {} if it never ran.

    "cpu" and "cuda": what compiled that part; "missing": why not, by part; "architectures": of
    CUDA's part, like "9.0+PTX"; "torch": its version; "sources": their digest.
    """
    path = LIBRARY.with_name("_build.json")
    return json.loads(path.read_text()) if path.is_file() else {}


def instruction_set() -> str:
    """What the loaded CPU kernels run with: "baseline", "avx2" or "avx512"."""
    function = ctypes.CDLL(str(LIBRARY)).fastinst_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def active_kernels(device_type: str) -> dict[str, str]:
    """For each operator by name, what computes it on a device: "compiled" or "reference".

    A reference serves every device under one alias key of the dispatcher, so an operator has a
    kernel under a device's own key only if one has been registered for that device.
    """
    key = torch._C._dispatch_key_for_device(device_type)
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastinst::")]
    return {
        name.removeprefix("fastinst::"): "compiled"
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        else "reference"
        for name in sorted(names)
    }


@contextlib.contextmanager
def definitions_only(device_type: str) -> Iterator[None]:
    """Inside, operators run their definitions on a device: for measuring what kernels gain.

    It holds for every thread of the process.
    """
    with torch.library._scoped_library("fastinst", "IMPL") as library, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        key = torch._C._dispatch_key_for_device(device_type)
        for name, kind in active_kernels(device_type).items():
            if kind == "compiled":
                module = importlib.import_module(f"fastinst.ops.{name.removesuffix('_backward')}")
                plain = "backward_definition" if name.endswith("_backward") else "definition"
                library.impl(name, getattr(module, plain), key, allow_override=True)
        yield
