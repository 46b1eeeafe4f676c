"""The compiled kernels: loading them, and telling which are active.

`setup.py` builds them into `_C.abi3.so` beside this package, with a record of how. They register
themselves under the operators' names; without them every operator runs its definition.

Environment: FASTINST_KERNELS=0 leaves them out, FASTINST_ISA=baseline|avx2|avx512 lowers what the
CPU's use, FASTINST_LIBRARY names another build.
"""

import ctypes
import json
import os
import warnings
from pathlib import Path

import torch

from fastinst.ops.sources import sources_digest

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARY = Path(os.environ.get("FASTINST_LIBRARY") or PACKAGE / "_C.abi3.so")


def load_kernels() -> str:
    """Loads the library; why it was not, or nothing. Warns of what the user can mend."""
    if os.environ.get("FASTINST_KERNELS") == "0":
        return "FASTINST_KERNELS=0"
    reason = _obstacle()
    if not reason:
        try:
            torch.ops.load_library(LIBRARY)
        except OSError as error:
            reason = f"{LIBRARY} does not load: {error}"
    if reason:
        warnings.warn(
            f"fastinst runs without compiled kernels, several times slower: {reason}. "
            "`python -m fastinst.doctor` says what to do.",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _obstacle() -> str:
    if not LIBRARY.is_file():
        return build_record().get("cpu") or f"{LIBRARY} does not exist"
    csrc = PACKAGE.parent / "csrc"
    own = LIBRARY.parent == PACKAGE
    # Kernels of other sources could be called with other arguments than they read.
    if own and csrc.is_dir() and build_record().get("sources") != sources_digest(csrc):
        return "they were built from other sources than those in csrc; build them again (`make`)"
    return ""


def build_record() -> dict[str, str]:
    """What setup.py noted of the build: "cpu", "cuda", "torch" and "sources"; {} without one."""
    path = PACKAGE / "_build.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def instruction_set() -> str:
    """What the CPU kernels run with: "baseline", "avx2" or "avx512"."""
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
