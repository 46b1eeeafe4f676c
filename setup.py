"""Builds csrc/ into one library, `fastinst/_C.abi3.so`; all else stands in pyproject.toml.

The library has the kernels of the CPU wherever a C++ compiler is found, and those of CUDA where
nvcc is too. It uses PyTorch's stable ABI and nothing of Python, so that it serves every Python
and every torch from 2.10 on. Without a compiler the package installs all the same and runs its
operators in plain PyTorch; `python -m fastinst.doctor` says what was built, and what to do.

    FASTINST_KERNELS=0 / 1    build none / fail if none can be built
    FASTINST_CUDA=0 / 1       the same for CUDA's part
    TORCH_CUDA_ARCH_LIST      "7.0;8.0;9.0+PTX"; by default this machine's GPUs, or all
    CXX, NVCC, CUDA_HOME      which compilers
    MAX_JOBS                  compilers at a time

`python setup.py build_ext --inplace`, or `make kernels`, builds only what has changed.
"""

import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
SCRATCH = ROOT / "build" / "kernels"
# Importing them from the package would import torch.
toolchain = SimpleNamespace(**runpy.run_path(str(ROOT / "fastinst" / "toolchain.py")))
sources = SimpleNamespace(**runpy.run_path(str(ROOT / "fastinst" / "ops" / "sources.py")))
NotBuilt = toolchain.NotBuilt

# The stable ABI of the lowest torch that pyproject.toml allows.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas"
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -DUSE_CUDA"
# What cpu/kernels is compiled with, once for each namespace (csrc/cpu/isa.h).
INSTRUCTION_SETS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512",
}


class BuildKernels(build_ext):
    """Compiles csrc/; beside the library lies `_build.json`, the record of what was done."""

    def get_ext_filename(self, name):
        return name.replace(".", "/") + ".abi3.so"

    def run(self):
        self.in_source = bool(self.inplace or self.editable_mode)
        super().run()

    def build_extension(self, ext):
        built, record = build()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        folders = {library.parent}
        if built or self.in_source:
            # A Python started in the source tree imports the package from there.
            folders.add(ROOT / "fastinst")
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if built:
                # Renamed into place, so that a process that has the old one loaded keeps it.
                shutil.copyfile(built, folder / f"{library.name}.new")
                (folder / f"{library.name}.new").replace(folder / library.name)
            else:
                (folder / library.name).unlink(missing_ok=True)
            (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    def copy_extensions_to_source(self):
        pass  # done

    def get_outputs(self):
        library = Path(self.get_ext_fullpath("fastinst._C"))
        return [str(path) for path in (library, library.with_name("_build.json")) if path.exists()]


def build() -> tuple[Path | None, dict]:
    """Builds what can be built: the library, if any, and the record of how or why not."""
    kernels = toolchain.switch("FASTINST_KERNELS")
    cuda = kernels is not False and toolchain.switch("FASTINST_CUDA")
    library, missing = None, {}
    record = {"sources": sources.sources_digest(CSRC), "architectures": [], "missing": missing}
    try:
        if kernels is False:
            raise NotBuilt("it was installed with FASTINST_KERNELS=0", "install it without that")
        torch, cxx = find_torch(), toolchain.find_cxx()
        record["torch"] = torch_version(torch)
        try:
            nvcc = find_nvcc(torch, cuda)
            architectures = toolchain.cuda_architectures(nvcc)
            library = compile_library(torch, cxx, nvcc, architectures)
            record["cuda"] = f"nvcc {toolchain.version(nvcc)} for {', '.join(architectures)}"
            record["architectures"] = architectures
        except NotBuilt as reason:
            if cuda:
                raise
            missing["cuda"] = str(reason)
            library = compile_library(torch, cxx)
        record["cpu"] = toolchain.version(cxx)
    except NotBuilt as reason:
        if kernels or cuda:
            raise SystemExit(f"fastinst: {reason}") from None
        missing["cpu"] = missing["cuda"] = str(reason)
    for device in ("cpu", "cuda"):
        how = f"built by {record[device]}" if device in record else f"not built: {missing[device]}"
        print(f"fastinst: kernels for {device} {how}", file=sys.stderr)
    return library, record


def find_torch() -> Path:
    """The folder of the torch that is installed."""
    found = importlib.util.find_spec("torch")
    if found:
        origin = found.origin
    else:
        # pip builds where only the build's own requirements can be imported; what it sets for
        # that in the environment, -E ignores.
        ask = "import importlib.util as u; f = u.find_spec('torch'); print(f.origin if f else '')"
        origin = toolchain.output([sys.executable, "-E", "-c", ask]).strip()
    if not origin:
        # Some installers hide the environment from the build more thoroughly than pip.
        fix = "install torch, then fastinst again; if that is no help, with --no-build-isolation"
        raise NotBuilt("there was no torch when it was installed", fix)
    folder = Path(origin).parent
    if tuple(int(part) for part in re.findall(r"\d+", torch_version(folder))[:2]) < (2, 10):
        raise NotBuilt(f"torch {torch_version(folder)} is older than 2.10", "pip install -U torch")
    return folder


def torch_version(folder: Path) -> str:
    return re.search(r"__version__ = '(.+?)'", (folder / "version.py").read_text())[1]


def find_nvcc(torch: Path, cuda: bool | None) -> str:
    """nvcc, unless CUDA's part is not wanted, or this torch could not use it."""
    if cuda is False:
        raise NotBuilt("it was installed with FASTINST_CUDA=0", "install it without that")
    if cuda is None and re.search(r"^cuda\b.*= None$", (torch / "version.py").read_text(), re.M):
        fix = "FASTINST_CUDA=1 builds them all the same"
        raise NotBuilt("torch was a build for the CPU when it was installed", fix)
    return toolchain.find_nvcc()


def compile_library(
    torch: Path, cxx: str, nvcc: str | None = None, architectures: Sequence[str] = ()
) -> Path:
    """Runs ninja; with nvcc, CUDA's part is in the library too."""
    folders = (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    ninja = shutil.which("ninja", path=os.pathsep.join(folders))
    if not ninja:
        raise NotBuilt("ninja was not found", "pip install ninja")
    SCRATCH.mkdir(parents=True, exist_ok=True)
    library, log = SCRATCH / "_C.abi3.so", SCRATCH / "build.log"
    (SCRATCH / "build.ninja").write_text(ninja_file(torch, cxx, nvcc, architectures))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    with subprocess.Popen(
        [ninja, "-C", SCRATCH, *jobs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        lines = []
        for line in running.stdout:
            sys.stderr.write(line)
            lines.append(line)
    log.write_text("".join(lines))
    if running.returncode != 0:
        errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.I)]
        reason = [*errors, *lines[-1:], "ninja failed"][0].strip().rstrip(".")
        raise NotBuilt(reason, f"see {log}")
    return library


def ninja_file(torch: Path, cxx: str, nvcc: str | None, architectures: Sequence[str]) -> str:
    include = f"{TORCH_TARGET} -isystem {quote(torch / 'include')} -I{quote(CSRC)}"
    libraries = f"-L{quote(torch / 'lib')} -ltorch -ltorch_cpu"
    if sys.platform == "darwin":
        link = f"{cxx} -shared $in -o $out {libraries} -undefined dynamic_lookup"
    else:
        # libtorch itself has no symbol of use, but in a CUDA build it stands for libtorch_cuda.
        link = f"{cxx} -shared $in -o $out -Wl,--no-as-needed {libraries}"
    if nvcc:
        # It adds CUDA's runtime, linked statically: torch's may be another version.
        link = f"{quote(nvcc)} -shared $in -o $out -Xlinker --no-as-needed {libraries}"
    gencode = " ".join(gencode_flag(name) for name in architectures)
    one = f"-MD -MF $out.d $flags {include} -c $in -o $out\n"
    one += "  depfile = $out.d\n  deps = gcc\n  description = $out"
    lines = [
        f"rule cxx\n  command = {cxx} {CXX_FLAGS} {one}",
        f"rule nvcc\n  command = {quote(nvcc or 'nvcc')} {NVCC_FLAGS} {gencode} {one}",
        f"rule link\n  command = {link}\n  description = $out",
    ]
    objects = []

    def compile_file(rule: str, source: Path, flags: str = "", suffix: str = "") -> None:
        path = source.relative_to(CSRC).with_suffix(f"{suffix}.{rule}.o")
        objects.append(str(path).replace(os.sep, "_"))
        lines.append(f"build {objects[-1]}: {rule} {escape(source)}\n  flags = {flags}")

    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        compile_file("cxx", source)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    for name in INSTRUCTION_SETS if x86 else ["baseline"]:
        flags = f"-DFASTINST_ISA={name} -fno-math-errno {INSTRUCTION_SETS[name]}"
        for source in sorted((CSRC / "cpu" / "kernels").glob("*.cpp")):
            compile_file("cxx", source, flags, f".{name}")
    for source in sorted((CSRC / "cuda").glob("*.cu")) if nvcc else []:
        compile_file("nvcc", source)
    lines.append(f"build _C.abi3.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def gencode_flag(architecture: str) -> str:
    number = architecture.removesuffix("+PTX").replace(".", "")
    code = f"sm_{number}"
    if architecture.endswith("+PTX"):
        code = f"[{code},compute_{number}]"
    return f"-gencode=arch=compute_{number},code={code}"


def quote(path: str | Path) -> str:
    """A path in a command of ninja's."""
    return shlex.quote(str(path)).replace("$", "$$")


def escape(path: Path) -> str:
    """A path as an input of ninja's."""
    return re.sub(r"([$ :])", r"$\1", str(path))


# Free-threaded Pythons refuse wheels of the limited API, although this one would do.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    ext_modules=[Extension("fastinst._C", sources=[], py_limited_api=limited)],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
