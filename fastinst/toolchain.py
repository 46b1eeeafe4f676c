"""The compilers that the kernels are built with: setup.py uses them, the doctor looks at them.

Only the standard library, and nothing of this package: setup.py runs this file by itself, before
there is a package and perhaps before there is a torch.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

# What the CUDA kernels are written for, where nvcc still knows it: Volta to Hopper.
CUDA_CAPABILITIES = ("7.0", "7.5", "8.0", "8.6", "8.9", "9.0")


class NotBuilt(Exception):
    """Why kernels are left out of a build, and a command or sentence that mends it."""

    def __init__(self, reason: str, fix: str):
        super().__init__(f"{reason} ({fix})")
        self.fix = fix


def switch(variable: str) -> bool | None:
    """An environment variable that is 1, 0, or unset."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"fastinst: {variable} must be 0 or 1, got {value!r}")
    return {"": None, "0": False, "1": True}[value]


def find_cxx() -> str:
    """The C++ compiler's command, which may have arguments ("ccache g++")."""
    if sys.platform == "win32":
        raise NotBuilt("the kernels are not built on Windows", "use WSL")
    wanted = os.environ.get("CXX")
    for command in [wanted] if wanted else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return command
    if wanted:
        raise NotBuilt(f"CXX={wanted} was not found", "unset CXX")
    install = "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install g++"
    raise NotBuilt("no C++ compiler was found", install)


def find_nvcc() -> str:
    """The path of nvcc; NVCC and CUDA_HOME come before PATH."""
    for variable, tail in (("NVCC", ""), ("CUDA_HOME", "/bin/nvcc")):
        value = os.environ.get(variable)
        if value:
            nvcc = shutil.which(value + tail)
            if not nvcc:
                raise NotBuilt(f"{variable}={value} has no nvcc", f"unset {variable}")
            return nvcc
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not nvcc:
        raise NotBuilt("nvcc was not found", "install the CUDA toolkit, or set CUDA_HOME to it")
    return nvcc


def version(command: str) -> str:
    """A compiler's version, or what is wrong with it."""
    parts = [command] if os.path.exists(command) else shlex.split(command)
    shown = output([*parts, "--version"])
    nvcc = re.search(r"release [\d.]+, V([\d.]+)", shown)
    return nvcc[1] if nvcc else shown.partition("\n")[0] or "does not run"


def output(command: list[str]) -> str:
    """What a program prints; nothing if it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus() -> dict[str, str]:
    """The NVIDIA GPUs of this machine by name, and their compute capabilities, like "8.0"."""
    found = output(["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"])
    return dict(re.findall(r"^(.+), (\d+\.\d)$", found, re.MULTILINE))


def cuda_architectures(nvcc: str) -> list[str]:
    """What to compile for, like ["8.0", "9.0+PTX"].

    That is TORCH_CUDA_ARCH_LIST from 7.0 on, or the GPUs of this machine, or all that the kernels
    are written for.
    """
    codes = output([nvcc, "--list-gpu-arch"])
    known = [f"{code[:-1]}.{code[-1]}" for code in re.findall(r"compute_(\d+)\b", codes)]
    if not known:
        raise NotBuilt(f"{nvcc} does not run", "install the CUDA toolkit, or set CUDA_HOME to it")
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    names = [name for name in re.split(r"[;,\s]+", listed) if name]
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            what = f"TORCH_CUDA_ARCH_LIST has {name!r}, which is not like 8.0 or 9.0+PTX"
            raise NotBuilt(what, "unset TORCH_CUDA_ARCH_LIST")
    if names:
        names = [name for name in names if capability(name) >= (7, 0)]
        if not names:
            what = f"TORCH_CUDA_ARCH_LIST={listed} has nothing from 7.0 on"
            raise NotBuilt(what, "unset TORCH_CUDA_ARCH_LIST")
    else:
        names = sorted(set(gpus().values()), key=capability)
    for name in names:
        if not any(capability(name) == capability(other) for other in known):
            what = f"{nvcc} {version(nvcc)} does not compile for {name}, only for "
            right = "CUDA 12.6, the right one for a V100" if name[0] == "7" else "a later CUDA"
            raise NotBuilt(what + ", ".join(known), f"set CUDA_HOME to {right}")
    if not names:
        names = [name for name in CUDA_CAPABILITIES if name in known]
        # Later GPUs compile from this one's PTX when they first run it.
        names[-1] += "+PTX"
    return names


def capability(name: str) -> tuple[int, int]:
    """(9, 0) of "9.0", "9.0a" or "9.0+PTX"."""
    major, minor = re.match(r"(\d+)\.(\d)", name).groups()
    return int(major), int(minor)


def runs_on(gpu: str, architectures: list[str]) -> bool:
    """Whether code for these architectures runs on a GPU of that capability."""
    wanted = capability(gpu)
    for name in architectures:
        built = capability(name)
        later = built <= wanted and not re.search("[af]", name)
        # Machine code serves later minor versions, PTX everything later.
        if built == wanted or later and (built[0] == wanted[0] or name.endswith("+PTX")):
            return True
    return False
