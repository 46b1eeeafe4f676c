"""A compiled kernel, where one was built, is what runs; without it the definition does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastinst import ops
from fastinst.ops import kernels

TESTS = Path(__file__).parent
HEADS = torch.Size((1, 2, 5, 8))  # [B, H, tokens, D]

# Arguments of every operator of the dispatcher, by its name.
CONVOLUTION = [(1, 4, 6, 6), (1, 18, 6, 6), (3, 4, 3, 3)]
GEOMETRY = [[1, 1], [1, 1], [1, 1]]
ARGUMENTS = {
    "attention_mask": lambda: [torch.randn(1, 3, 8), torch.randn(1, 40, 8), torch.randn(1, 3)],
    "attention_to_queries": lambda: randn(*[HEADS] * 3),
    "attention_to_queries_backward": lambda: randn(*[HEADS] * 5),
    "deform_conv2d": lambda: [*randn(*CONVOLUTION), torch.randn(3), None, *GEOMETRY, False],
    "deform_conv2d_backward": lambda: [*randn((1, 3, 6, 6), *CONVOLUTION), None, *GEOMETRY],
    "encode_masks": lambda: [torch.rand(2, 7, 9) > 0.5, 9],
    "masked_cross_attention": lambda: [*randn(*[HEADS] * 3), torch.rand(1, 4, 5) > 0.5],
    "masked_cross_attention_backward": lambda: [*randn(*[HEADS] * 5), torch.rand(1, 4, 5) > 0.5],
    "point_losses": lambda: [*pairs(), torch.rand(2, 7, 2)],
    "point_losses_backward": lambda: [*torch.randn(2, 2), *pairs(), torch.rand(2, 7, 2)],
    "read_out_masks": lambda: [torch.randn(2, 4, 4), [16, 16], [16, 12], [20, 15], False],
    "sample_masks": lambda: [pairs()[1], torch.rand(1, 7, 2), torch.zeros(3, dtype=torch.int64)],
    "select_queries": lambda: [*randn((1, 5, 6, 6), (1, 8, 6, 6), (1, 8, 6, 6)), 4, True],
    "uncertain_points": lambda: [torch.randn(2, 4, 4), torch.tensor([5, 6]), 8, 24, 6],
}
CPU_ONLY = ("encode_masks",)


def pairs() -> list[torch.Tensor]:
    """Logits of two masks, three packed masks and which of them are to be predicted."""
    masks = torch.randint(-(2**31), 2**31, (3, 8, 1)).to(torch.int32)
    return [torch.randn(2, 4, 4), masks, torch.tensor([2, 0])]


def randn(*shapes) -> list[torch.Tensor]:
    return [torch.randn(shape) for shape in shapes]


def definitions() -> dict:
    """The operators by the code objects of their definitions."""
    codes = {}
    for name in ARGUMENTS:
        module = importlib.import_module(f"fastinst.ops.{name.removesuffix('_backward')}")
        kind = "backward_definition" if name.endswith("_backward") else "definition"
        codes[getattr(module, kind).__code__] = name
    return codes


def run_by_definition(device: str, names) -> list[str]:
    """Calls operators, and says which of them ran their definitions."""
    codes, ran = definitions(), []

    def watch(frame, event, _):
        if event == "call" and frame.f_code in codes:
            ran.append(codes[frame.f_code])

    for name in names:
        arguments = [
            argument.to(device) if isinstance(argument, torch.Tensor) else argument
            for argument in ARGUMENTS[name]()
        ]
        sys.setprofile(watch)
        try:
            getattr(torch.ops.fastinst, name)(*arguments)
        finally:
            sys.setprofile(None)
    return ran


def in_another_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTINST_KERNELS": "", **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )


def need_kernels(device: str) -> None:
    """Skips where they could not be built. CI sets FASTINST_KERNELS=1: there they must be."""
    if os.environ.get("FASTINST_KERNELS") == "0":
        pytest.skip("FASTINST_KERNELS=0")
    not_built = kernels.build_record().get("missing", {}).get(device)
    if not_built and os.environ.get("FASTINST_KERNELS") != "1":
        pytest.skip(not_built)
    assert not kernels.why_not_loaded(), "`make kernels` builds them"


def test_every_operator_has_arguments_here():
    assert sorted(ARGUMENTS) == sorted(ops.active_kernels("cpu"))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_cpu_runs_the_kernel(name):
    need_kernels("cpu")
    assert ops.active_kernels("cpu")[name] == "compiled"
    assert run_by_definition("cpu", [name]) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in CPU_ONLY])
def test_the_gpu_runs_the_kernel(name):
    need_kernels("cuda")
    assert ops.active_kernels("cuda")[name] == "compiled"
    assert run_by_definition("cuda", [name]) == []


PROBE = """
import json, sys
sys.path.insert(0, "tests")
from test_kernels import ARGUMENTS, kernels, ops, run_by_definition
instruction_set = None if kernels.why_not_loaded() else kernels.instruction_set()
print(json.dumps([run_by_definition("cpu", ARGUMENTS), ops.active_kernels("cpu"), instruction_set]))
"""


def test_without_kernels_the_definitions_run():
    done = in_another_process(PROBE, FASTINST_KERNELS="0")
    assert "RuntimeWarning" not in done.stderr
    ran, active, _ = json.loads(done.stdout)
    # A definition may run another one's.
    assert set(ran) == set(ARGUMENTS) == {name for name in active if active[name] == "reference"}


def test_the_environment_lowers_the_instruction_set():
    need_kernels("cpu")
    done = in_another_process(PROBE, FASTINST_ISA="baseline", FASTINST_KERNELS="1")
    ran, _, instruction_set = json.loads(done.stdout)
    assert instruction_set == "baseline"
    assert ran == []


def test_a_library_that_is_not_there_is_said_once():
    done = in_another_process("import fastinst, fastinst.ops", FASTINST_LIBRARY="/nowhere.so")
    assert done.returncode == 0
    assert done.stderr.count("RuntimeWarning") == 1
    assert "/nowhere.so does not exist" in done.stderr
    assert "python -m fastinst.doctor" in done.stderr


def test_a_library_that_does_not_load_is_said(tmp_path):
    (tmp_path / "junk.so").write_text("not a library")
    done = in_another_process("import fastinst", FASTINST_LIBRARY=str(tmp_path / "junk.so"))
    assert done.returncode == 0
    assert done.stderr.count("RuntimeWarning") == 1
    assert "does not load" in done.stderr


def test_kernels_can_be_required():
    environment = {"FASTINST_LIBRARY": "/nowhere.so", "FASTINST_KERNELS": "1"}
    done = in_another_process("import fastinst", **environment)
    assert done.returncode == 1
    assert "ImportError" in done.stderr and "/nowhere.so does not exist" in done.stderr


def test_changed_sources_are_noticed(tmp_path, monkeypatch):
    package = tmp_path / "fastinst"
    package.mkdir()
    library = package / "_C.abi3.so"
    library.touch()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cpp").write_text("int a;")
    digest = kernels.sources_digest(tmp_path / "csrc")
    (package / "_build.json").write_text(json.dumps({"sources": digest}))
    monkeypatch.setattr(kernels, "PACKAGE", package)
    monkeypatch.setattr(kernels, "LIBRARY", library)
    assert not kernels.sources_have_changed()
    (tmp_path / "csrc" / "a.cpp").write_text("int b;")
    monkeypatch.delenv("FASTINST_KERNELS", raising=False)
    assert kernels.why_not_loaded() == "csrc has changed since the build"
