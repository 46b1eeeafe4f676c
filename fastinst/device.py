"""The device that a program computes on, and the dtype."""

import os
import warnings

import torch

from fastinst.errors import InputError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def choose_device(name: str | torch.device) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU.

    Under torchrun "auto" and "cuda" are the process's own GPU, which becomes the current one.
    Raises InputError, naming those there are, for a device that this machine or this PyTorch does
    not have.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(
            f"cannot use the device {name!r}; there is {', '.join(list_devices())} ({reason})"
        ) from error
    return device


def list_devices() -> list[str]:
    """What `choose_device` takes on this machine, such as ["cpu", "cuda:0", "mps"]."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto" is the fastest that the device multiplies in.

    That is float16 on a GPU with tensor cores, bfloat16 on a CPU with AVX512-BF16 or AMX, else
    float32. Warns of 16 bits that the device is not known to have, which may be very slow.
    Raises InputError for a dtype that is not in `DTYPES` or that the device does not have.
    """
    name, halves = str(name).removeprefix("torch."), _halves(device)
    if name == "auto":
        return halves[0] if halves else torch.float32
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}; it is auto, {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    if device.type == "mps" and dtype == torch.float64:
        raise InputError("mps cannot compute in float64; use float32, or the device cpu")
    if dtype.itemsize == 2 and dtype not in halves:
        warnings.warn(
            f"{device} is not known to compute in {name}; this may be slower than float32",
            stacklevel=2,
        )
    return dtype


def _halves(device: torch.device) -> list[torch.dtype]:
    """The dtypes of 16 bits that a device multiplies fast, the fastest first."""
    if device.type == "cuda":
        # Tensor cores came with Volta, theirs for bfloat16 with Ampere.
        major, _ = torch.cuda.get_device_capability(device)
        return [torch.float16, torch.bfloat16][: (major >= 7) + (major >= 8)]
    if device.type == "cpu":
        bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        float16 = torch.cpu._is_amx_fp16_supported()
        return [torch.bfloat16] * bfloat16 + [torch.float16] * float16
    return []
