"""What the doctor finds wrong on a machine, and how it would mend it."""

import json
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

from fastinst import machine_doctor, ops, toolchain
from fastinst.ops import kernels

H200, V100 = {"NVIDIA H200": "9.0"}, {"Tesla V100": "7.0"}
RECORD = {"cpu": "c++ 12", "cuda": "nvcc 13.0", "architectures": ["9.0"], "missing": {}}


@pytest.fixture
def machine(monkeypatch):
    """A machine where all is well, with an H200; what its test changes is its trouble."""
    for variable in ("FASTINST_KERNELS", "FASTINST_LIBRARY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    state = SimpleNamespace(
        gpus=H200,
        driver=("580.1", "13.0"),
        torch_cuda="13.0",
        torch_codes=["sm_90"],
        available=True,
        record=RECORD,
        not_loaded="",
        compiled="compiled",
        tools={},
        launch=lambda *_: None,
    )

    def find(name):
        if isinstance(state.tools.get(name), Exception):
            raise state.tools[name]
        return name

    patch = monkeypatch.setattr
    patch(torch, "version", SimpleNamespace(cuda=None))
    patch(torch.cuda, "is_available", lambda: state.available)
    patch(torch.cuda, "get_arch_list", lambda: state.torch_codes)
    patch(torch.cuda, "synchronize", lambda: None)
    patch(torch, "ones", lambda *_, **__: [None, None])
    patch(ops, "attention_mask", lambda *arguments: state.launch(*arguments))
    patch(ops, "active_kernels", lambda _: {"attention_mask": state.compiled})
    patch(kernels, "why_not_loaded", lambda: state.not_loaded)
    patch(kernels, "build_record", lambda: state.record)
    patch(machine_doctor, "driver_versions", lambda: state.driver)
    patch(toolchain, "find_cxx", lambda: find("c++"))
    patch(toolchain, "find_nvcc", lambda: find("nvcc"))

    def diagnose() -> list[machine_doctor.Problem]:
        torch.version.cuda = state.torch_cuda
        return [*machine_doctor.cpu_problems(), *machine_doctor.gpu_problems(state.gpus)]

    state.diagnose = diagnose
    return state


def test_all_is_well(machine):
    assert machine.diagnose() == []
    machine.gpus, machine.torch_cuda, machine.available = {}, None, False
    assert machine.diagnose() == []


@pytest.mark.parametrize(
    ("trouble", "what", "fix"),
    [
        ({"not_loaded": "csrc has changed"}, "csrc has changed", "FASTINST_KERNELS=1"),
        (
            {
                "not_loaded": "no compiler",
                "tools": {"c++": toolchain.NotBuilt("none", "apt-get install g++")},
            },
            "no compiler",
            "apt-get install g++\nFASTINST_KERNELS=1",
        ),
        ({"torch_cuda": None}, "torch is a build for the CPU", "whl/cu130"),
        ({"torch_cuda": None, "driver": ("560.1", "12.6")}, "build for the CPU", "whl/cu126"),
        ({"torch_cuda": None, "gpus": V100}, "build for the CPU", '<2.15" --index-url'),
        ({"available": False, "driver": ("560.1", "12.6")}, "cannot use the GPU", "whl/cu126"),
        ({"gpus": V100}, "torch has no code for Tesla V100 (7.0)", "whl/cu126"),
        (
            {"compiled": "reference", "record": {"missing": {"cuda": "no nvcc then"}}},
            "no nvcc then",
            "FASTINST_CUDA=1 TORCH_CUDA_ARCH_LIST='9.0'",
        ),
        (
            {
                "compiled": "reference",
                "record": {"missing": {"cuda": "no nvcc then"}},
                "tools": {"nvcc": toolchain.NotBuilt("none", "install the CUDA toolkit")},
            },
            "no nvcc then",
            "install the CUDA toolkit\nFASTINST_CUDA=1",
        ),
        (
            {"record": {**RECORD, "architectures": ["7.5", "8.0"]}},
            "built for 7.5, 8.0, do not run on NVIDIA H200 (9.0)",
            "TORCH_CUDA_ARCH_LIST='9.0'",
        ),
    ],
)
def test_trouble_and_its_fix(machine, trouble, what, fix):
    vars(machine).update(trouble)
    (problem,) = machine.diagnose()
    assert what in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize("variable", ["FASTINST_KERNELS", "FASTINST_LIBRARY"])
def test_the_environment_is_to_blame(machine, monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    machine.not_loaded = f"{variable}=0"
    (problem,) = machine.diagnose()
    assert problem.fix == f"unset {variable}"


def test_hidden_gpus(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine.available = False
    (problem,) = machine.diagnose()
    assert problem.fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_kernel_that_fails_on_the_gpu(machine):
    def launch(*_):
        raise RuntimeError("driver version is insufficient\nmore")

    machine.launch = launch
    (problem,) = machine.diagnose()
    assert problem.what == "A CUDA kernel failed: driver version is insufficient"


def test_driver_and_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '  *query*) printf "NVIDIA H200, 9.0\\nA, b, 8.6\\n" ;;\n'
        '  *) echo "Driver Version: 580.159.04   CUDA Version: 13.0 |" ;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_doctor.driver_versions() == ("580.159.04", "13.0")
    assert toolchain.gpus() == {"NVIDIA H200": "9.0", "A, b": "8.6"}
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine_doctor.driver_versions()[0] == ""
    assert toolchain.gpus() == {}


def test_rebuilding_from_a_checkout_and_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(kernels, "PACKAGE", tmp_path / "fastinst")
    python, folder = shlex.quote(sys.executable), shlex.quote(str(tmp_path))
    command = f"X=1 {python} -m pip install --no-deps --editable {folder}"
    assert machine_doctor.rebuild("X=1") == command
    (tmp_path / "setup.py").unlink()
    for origin, source in (
        ({"url": "file:///home/me/a%20b"}, "file:///home/me/a%20b"),
        (
            {"url": "https://host/x.git", "vcs_info": {"commit_id": "abc"}},
            "git+https://host/x.git@abc",
        ),
    ):
        package = SimpleNamespace(read_text=lambda _, origin=origin: json.dumps(origin))
        monkeypatch.setattr(
            machine_doctor.importlib.metadata, "distribution", lambda _, p=package: p
        )
        assert machine_doctor.rebuild("X=1").endswith(f"--force-reinstall {source}")


def test_the_whole_report(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "why_not_loaded", lambda: "it is broken")
    monkeypatch.setattr(machine_doctor, "find_gpus", dict)
    assert machine_doctor.examine_machine() == 1
    report = capsys.readouterr().out
    for name in ops.active_kernels("cpu"):
        assert name in report
    for part in (torch.__version__, "it is broken", "1. ", "pip install", "1 to mend."):
        assert part in report
