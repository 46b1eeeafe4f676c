"""Says what this machine has, which kernel serves each operator, and how to mend what is wrong."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastinst import ops, toolchain
from fastinst.ops import kernels

# Of CUDA 12, the last that knows a V100; the builds of later torch have none of it.
TORCH_FOR_CUDA_12 = '"torch>=2.10,<2.15" --index-url https://download.pytorch.org/whl/cu126'
TORCH_FOR_CUDA_13 = '"torch>=2.10" --index-url https://download.pytorch.org/whl/cu130'
# The public function moves its masks there: what it makes are bytes for files.
ALWAYS_ON_THE_CPU = ("encode_masks",)


class Problem(NamedTuple):
    what: str
    fix: str  # a command if it can be one


def examine_machine() -> int:
    """Print facts and problems; the number of problems."""
    loaded = not kernels.why_not_loaded()
    gpus = find_gpus()
    problems = [*cpu_problems(), *gpu_problems(gpus)]

    for label, fact in facts(gpus, loaded):
        print(f"{label:9} {fact}")
    print_operators()
    for number, problem in enumerate(problems, 1):
        print()
        print(textwrap.fill(f"{number}. {problem.what}.", width=100, break_long_words=False))
        print(textwrap.indent(problem.fix, "     "))
    print(f"\n{len(problems)} to mend." if problems else "\nAll is well.")
    return len(problems)


def facts(gpus: dict[str, str], loaded: bool) -> Iterator[tuple[str, str]]:
    record = kernels.build_record()
    yield "fastinst", f"{kernels.PACKAGE}, Python {platform.python_version()}"
    yield "torch", f"{torch.__version__}, {with_cuda()}, {torch.get_num_threads()} threads"
    driver, cuda = driver_versions()
    yield "driver", f"{driver}, up to CUDA {cuda}" if driver else "none of NVIDIA's was found"
    for name, capability in gpus.items() or [("none was found", "")]:
        yield "GPU", f"{name}, compute capability {capability}" if capability else name
    for label, find in (("compiler", toolchain.find_cxx), ("nvcc", toolchain.find_nvcc)):
        try:
            command = find()
            yield label, f"{command}, {toolchain.version(command)}"
        except toolchain.NotBuilt as reason:
            yield label, str(reason)
    size = f", {kernels.LIBRARY.stat().st_size / 2**20:.1f} MiB" if loaded else ""
    yield "kernels", f"{kernels.LIBRARY}{size}" if loaded else f"none: {kernels.why_not_loaded()}"
    if loaded and record:
        lowered = os.environ.get("FASTINST_ISA")
        reason = f" (FASTINST_ISA={lowered} in the environment)" if lowered else ""
        yield "  cpu", f"built by {record['cpu']}; runs with {kernels.instruction_set()}{reason}"
        missing = f"not built: {record['missing'].get('cuda')}"
        yield "  cuda", f"built by {record['cuda']}" if "cuda" in record else missing


def with_cuda() -> str:
    return f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"


def print_operators() -> None:
    on_cpu, on_cuda = ops.active_kernels("cpu"), ops.active_kernels("cuda")
    width = max(map(len, on_cpu)) + 2
    print(f"\n{'operator':{width}}{'cpu':11}cuda")
    for name, kernel in on_cpu.items():
        other = "on the cpu" if name in ALWAYS_ON_THE_CPU else on_cuda[name]
        print(f"{name:{width}}{kernel:11}{other}")


def driver_versions() -> tuple[str, str]:
    """NVIDIA's driver's version, and that of the latest CUDA it runs; empty without one."""
    shown = toolchain.output(["nvidia-smi"])
    driver = re.search(r"Driver Version: *([\d.]+)", shown)
    cuda = re.search(r"CUDA (?:UMD )?Version: *(\d+\.\d+)", shown)
    return driver[1] if driver else "", cuda[1] if cuda else "?"


def find_gpus() -> dict[str, str]:
    """Names and compute capabilities of the GPUs: torch's, or the driver's if torch has none."""
    if not torch.cuda.is_available():
        return toolchain.gpus()
    capabilities = {}
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        capabilities[torch.cuda.get_device_name(index)] = f"{major}.{minor}"
    return capabilities


def cpu_problems() -> Iterator[Problem]:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        fix = f"{pip_install()} {TORCH_FOR_CUDA_13 if torch.version.cuda else '-U torch'}"
        yield Problem(f"torch {torch.__version__} is older than 2.10", fix)
    reason = kernels.why_not_loaded()
    if not reason:
        return
    what = f"No compiled kernels are in use: {reason}"
    if os.environ.get("FASTINST_KERNELS") == "0":
        yield Problem(what, "unset FASTINST_KERNELS")
        return
    if os.environ.get("FASTINST_LIBRARY"):
        yield Problem(what, "unset FASTINST_LIBRARY")
        return
    try:
        toolchain.find_cxx()
    except toolchain.NotBuilt as no_compiler:
        yield Problem(what, f"{no_compiler.fix}\n{rebuild('FASTINST_KERNELS=1')}")
    else:
        yield Problem(what, rebuild("FASTINST_KERNELS=1"))


def gpu_problems(gpus: dict[str, str]) -> Iterator[Problem]:
    if not gpus:
        return
    name, capability = min(gpus.items(), key=lambda gpu: toolchain.capability(gpu[1]))
    driver, driver_cuda = driver_versions()
    old = toolchain.capability(capability) < (7, 5) or driver_cuda.startswith("12.")
    install_torch = f"{pip_install('--force-reinstall')} "
    install_torch += TORCH_FOR_CUDA_12 if old else TORCH_FOR_CUDA_13
    if not torch.version.cuda:
        yield Problem(f"torch is a build for the CPU, and there is a GPU: {name}", install_torch)
        return
    if not torch.cuda.is_available():
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
            yield Problem("CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")
        else:
            what = f"torch, {with_cuda()}, cannot use the GPU by driver {driver}"
            what += f", which runs CUDA up to {driver_cuda}"
            yield Problem(what, f"Update the driver, or:\n{install_torch}")
        return
    for name, capability in gpus.items():
        codes = re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(torch.cuda.get_arch_list()))
        in_torch = [f"{a}.{b}{'+PTX' if kind == 'compute' else ''}" for kind, a, b in codes]
        if not toolchain.runs_on(capability, in_torch):
            yield Problem(f"torch has no code for {name} ({capability})", install_torch)
            return
    if not kernels.why_not_loaded():
        yield from cuda_kernel_problems(gpus)


def cuda_kernel_problems(gpus: dict[str, str]) -> Iterator[Problem]:
    """Of the library that is loaded, on GPUs that torch can use."""
    record = kernels.build_record()
    listed = ";".join(sorted(set(gpus.values())))
    again = rebuild(f"FASTINST_CUDA=1 TORCH_CUDA_ARCH_LIST='{listed}'")
    if "compiled" not in ops.active_kernels("cuda").values():
        what = f"There are no CUDA kernels: {record.get('missing', {}).get('cuda', 'not built')}"
        try:
            toolchain.find_nvcc()
        except toolchain.NotBuilt as no_nvcc:
            again = f"{no_nvcc.fix}\n{again}"
        yield Problem(what, again)
        return
    for name, capability in gpus.items() if record else ():
        built = record["architectures"]
        if not toolchain.runs_on(capability, built):
            what = f"The CUDA kernels, built for {', '.join(built)}, do not run on {name}"
            yield Problem(f"{what} ({capability})", again)
            return
    try:
        ops.attention_mask(*torch.ones(2, 1, 1, 4, device="cuda"))
        torch.cuda.synchronize()
    except RuntimeError as error:
        what = f"A CUDA kernel failed: {str(error).partition(chr(10))[0]}"
        yield Problem(what, f"Update the driver, or build with the CUDA it runs:\n{again}")


def pip_install(options: str = "") -> str:
    return f"{shlex.quote(sys.executable)} -m pip install {options}".rstrip()


def rebuild(environment: str) -> str:
    """The command that builds the kernels anew, from where this package is from."""
    root = kernels.PACKAGE.parent
    if (root / "setup.py").is_file():
        return f"{environment} {pip_install('--no-deps --editable')} {shlex.quote(str(root))}"
    source = "THE FOLDER OF FASTINST'S SOURCES"
    try:
        origin = importlib.metadata.distribution("fastinst").read_text("direct_url.json")
        found = json.loads(origin)
        commit = found.get("vcs_info", {}).get("commit_id")
        source = f"git+{found['url']}@{commit}" if commit else found["url"]
    except (importlib.metadata.PackageNotFoundError, TypeError):
        pass
    options = "--no-deps --no-cache-dir --force-reinstall"
    return f"{environment} {pip_install(options)} {shlex.quote(source)}"
