"""setup.py on small sources: what it builds, what it does without, what it says."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from fastinst import toolchain

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "cpu/isa.cpp": """
        #include "common.h"
        extern "C" __attribute__((visibility("default"))) const char* fastinst_isa() { return ISA; }
        """,
    "common.h": '#define ISA "baseline"',
    "cpu/kernels/add.cpp": "namespace FASTINST_ISA { int add(int a, int b) { return a + b; } }",
    "cuda/add.cu": "int add(int a, int b) { return a + b; }",
}
# Does what setup.py asks of nvcc, though what it compiles is empty.
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n' ;;
  *.cu*) COMPILE ;;
  *) exec c++ "$@" ;;
esac
"""
COMPILE = 'for o in "$@"; do :; done; : >$o.d; echo "int added;" | c++ -fPIC -x c++ -c - -o $o'

pytestmark = pytest.mark.skipif(
    not shutil.which("c++") or sys.platform == "win32", reason="needs a C++ compiler"
)


class Checkout:
    """A copy of the project in a folder with a space, with SOURCES for csrc."""

    def __init__(self, folder: Path):
        self.folder, self.package = folder, folder / "fastinst"
        ignored = shutil.ignore_patterns("_C.abi3.so*", "_build.json", "__pycache__")
        shutil.copytree(ROOT / "fastinst", self.package, ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        for name, text in SOURCES.items():
            (folder / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "csrc" / name).write_text(text)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Python in that folder, in the environment without what steers a build."""
        steering = ("FASTINST_", "TORCH_CUDA_ARCH_LIST", "CXX", "NVCC", "CUDA_HOME", "MAX_JOBS")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**clean, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def build(self, **environment: str) -> subprocess.CompletedProcess:
        return self.run("setup.py", "-q", "build_ext", "--inplace", **environment)

    @property
    def record(self) -> dict:
        return json.loads((self.package / "_build.json").read_text())

    @property
    def library(self) -> Path:
        return self.package / "_C.abi3.so"


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    return Checkout(folder)


@pytest.fixture
def nvcc(tmp_path):
    """A function that makes a compiler for CUDA."""

    def make(compile: str = COMPILE) -> str:
        path = tmp_path / "nvcc"
        path.write_text(NVCC.replace("COMPILE", compile))
        path.chmod(0o755)
        return str(path)

    return make


def test_build_and_load(checkout):
    done = checkout.build(FASTINST_KERNELS="1")
    assert done.returncode == 0, done.stdout
    assert checkout.record["torch"] == torch.__version__
    assert checkout.record["missing"].keys() == {"cuda"}
    ask = "from fastinst.ops import kernels; print(kernels.instruction_set())"
    assert checkout.run("-c", ask, FASTINST_KERNELS="1").stdout == "baseline\n"


def test_a_second_build_does_only_what_has_changed(checkout):
    checkout.build()
    assert "no work to do" in checkout.build().stdout
    (checkout.folder / "csrc" / "common.h").write_text('#define ISA "other"')
    again = checkout.build().stdout
    assert "isa" in again and "add" not in again


def test_a_build_without_kernels_for_elsewhere_leaves_those_here(checkout):
    checkout.build(FASTINST_KERNELS="1")
    kept = checkout.library.read_bytes(), checkout.record
    elsewhere = checkout.folder / "elsewhere"
    arguments = ("setup.py", "-q", "build_ext", "--build-lib", str(elsewhere))
    assert checkout.run(*arguments, FASTINST_KERNELS="0").returncode == 0
    assert (elsewhere / "fastinst" / "_build.json").exists()
    assert (checkout.library.read_bytes(), checkout.record) == kept


def test_without_a_compiler_all_else_works(checkout):
    assert checkout.build(PATH="/nowhere").returncode == 0
    assert not checkout.library.exists()
    assert "no C++ compiler was found" in checkout.record["missing"]["cpu"]
    imported = checkout.run("-c", "import fastinst, fastinst.ops")
    assert imported.returncode == 0
    assert imported.stdout.count("RuntimeWarning") == 1
    doctor = checkout.run("-m", "fastinst.doctor", PATH="/nowhere")
    assert doctor.returncode == 1
    assert "RuntimeWarning" not in doctor.stdout
    fix = doctor.stdout[doctor.stdout.index("1. ") :].splitlines()
    assert any("g++" in line or "xcode-select" in line for line in fix)
    assert any("pip install" in line and str(checkout.folder) in line for line in fix)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "CXX=no-such-compiler was not found"),
        ({"CXX": "false"}, "build stopped"),
        ({"CXX": "c++ -include nowhere.h"}, "nowhere.h: No such file"),
        ({"FASTINST_CUDA": "1", "CUDA_HOME": "/nowhere"}, "CUDA_HOME=/nowhere has no nvcc"),
    ],
)
def test_what_is_required_fails_loudly(checkout, environment, reason):
    done = checkout.build(**{"FASTINST_KERNELS": "1", **environment})
    assert done.returncode != 0
    assert reason in done.stdout.splitlines()[-1]


def test_a_failed_build_leaves_no_old_library(checkout):
    checkout.build()
    assert checkout.library.exists()
    assert checkout.build(CXX="false").returncode == 0
    assert not checkout.library.exists()
    assert "see " in checkout.record["missing"]["cpu"]


def test_a_wrong_switch_is_an_error(checkout):
    done = checkout.build(FASTINST_CUDA="yes")
    assert done.returncode != 0
    assert "FASTINST_CUDA must be 0 or 1, got 'yes'" in done.stdout


def test_cuda(checkout, nvcc):
    flags = {"FASTINST_CUDA": "1", "NVCC": nvcc(), "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}
    done = checkout.build(**flags)
    assert done.returncode == 0, done.stdout
    assert checkout.record["architectures"] == ["8.0", "9.0+PTX"]
    assert checkout.record["missing"] == {}
    commands = (checkout.folder / "build" / "kernels" / "build.ninja").read_text()
    assert "-gencode=arch=compute_80,code=sm_80" in commands
    assert "-gencode=arch=compute_90,code=[sm_90,compute_90]" in commands


def test_cuda_that_does_not_compile_leaves_the_cpu(checkout, nvcc):
    # As if torch were a build with CUDA, so that nvcc is tried unasked.
    fake = checkout.folder / "packages" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "version.py").write_text("__version__ = '2.13.0'\ncuda = '13.0'\n")
    for name in ("include", "lib"):
        (fake / name).symlink_to(Path(torch.__file__).parent / name)
    environment = {"NVCC": nvcc("echo 'add.cu(7): error: no'; exit 1"), "PYTHONPATH": "packages"}
    assert checkout.build(**environment).returncode == 0
    assert "add.cu(7): error: no" in checkout.record["missing"]["cuda"]
    assert "cpu" in checkout.record and checkout.library.exists()
    forced = checkout.build(FASTINST_CUDA="1", **environment)
    assert forced.returncode != 0
    assert "add.cu(7): error: no" in forced.stdout.splitlines()[-1]


def test_an_old_torch_is_named(checkout):
    fake = checkout.folder / "packages" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "version.py").write_text("__version__ = '2.9.1+cpu'\ncuda = None\n")
    done = checkout.build(PYTHONPATH="packages", FASTINST_KERNELS="1")
    assert "torch 2.9.1+cpu is older than 2.10" in done.stdout


def test_the_wheel_serves_every_python(checkout):
    done = checkout.run("setup.py", "-q", "bdist_wheel")
    assert done.returncode == 0, done.stdout
    (wheel,) = (checkout.folder / "dist").glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastinst/_C.abi3.so", "fastinst/_build.json"} <= set(names)
    # Programs run in the checkout import the package from there, not from where it is installed.
    assert checkout.library.exists()

    wheel.unlink()
    checkout.run("setup.py", "-q", "bdist_wheel", FASTINST_KERNELS="0")
    (wheel,) = (checkout.folder / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastinst/_build.json" in names and "fastinst/_C.abi3.so" not in names


def test_the_source_distribution_has_the_sources(checkout):
    done = checkout.run("setup.py", "-q", "sdist", "--formats=zip")
    assert done.returncode == 0, done.stdout
    (archive,) = (checkout.folder / "dist").glob("*.zip")
    names = {name.partition("/")[2] for name in zipfile.ZipFile(archive).namelist()}
    assert {f"csrc/{name}" for name in SOURCES} <= names


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("8.0", ["8.0"]),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        ("8.0 9.0a,12.0", ["8.0", "9.0a", "12.0"]),
        ("5.2 6.1 7.5", ["7.5"]),
    ],
)
def test_listed_architectures(nvcc, monkeypatch, listed, expected):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert toolchain.cuda_architectures(nvcc()) == expected


@pytest.mark.parametrize(
    ("listed", "error"),
    [
        ("Volta", "'Volta', which is not like"),
        ("6.1", "nothing from 7.0 on"),
        ("7.0", "CUDA 12.6, the right one for a V100"),
    ],
)
def test_architectures_that_cannot_be(nvcc, monkeypatch, listed, error):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(toolchain.NotBuilt, match=error):
        toolchain.cuda_architectures(nvcc())


def test_architectures_of_this_machine(nvcc, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(toolchain, "gpus", dict)
    assert toolchain.cuda_architectures(nvcc()) == ["7.5", "8.0", "9.0+PTX"]
    monkeypatch.setattr(toolchain, "gpus", lambda: {"A": "9.0", "B": "8.0"})
    assert toolchain.cuda_architectures(nvcc()) == ["8.0", "9.0"]


@pytest.mark.parametrize(
    ("gpu", "architectures", "runs"),
    [
        ("8.6", ["8.0"], True),
        ("8.0", ["8.6"], False),
        ("9.0", ["8.0"], False),
        ("9.0", ["8.0+PTX"], True),
        ("7.5", ["8.0+PTX"], False),
        ("9.0", ["9.0a"], True),
        ("10.0", ["9.0a+PTX", "8.0"], False),
        ("9.0", [], False),
    ],
)
def test_which_gpus_a_build_is_for(gpu, architectures, runs):
    assert toolchain.runs_on(gpu, architectures) is runs
