import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import MASK2FORMER, small_model
from torch import nn

from fastinst.export.constants import fold_constants
from fastinst.export.program import OUTPUTS, adaptive_avg_pool2d, least_edge, to_bytes, trace


def images(batch, height, width):
    return torch.randint(0, 256, (batch, 3, height, width)).float()


def normalise(model, values):
    mean, std = torch.tensor([model.config.pixel_mean, model.config.pixel_std]).view(2, 3, 1, 1)
    return (values - mean) / std


def assert_same(model, run, values):
    with torch.no_grad():
        expected = model(normalise(model, values))
    names = [name for name in OUTPUTS if name in expected]
    for name, actual in zip(names, run(values), strict=True):
        assert actual.shape == expected[name].shape
        torch.testing.assert_close(actual, expected[name], rtol=1e-4, atol=2e-5)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "deformable"])
def exported(request):
    """A small model and its program for one image of 64 x 96."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        model = small_model(monkeypatch, request.param)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        program = trace(model, (1, 64, 96))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return model, program


def test_a_program_computes_what_the_model_does(exported):
    model, program = exported
    assert_same(model, program.module(), images(1, 64, 96))


def test_the_baseline_has_no_indices_and_takes_any_size(monkeypatch):
    model = small_model(monkeypatch, **MASK2FORMER)
    program = trace(model, (None, 96, 96)).module(check_guards=False)
    for shape in ((2, 96, 128), (1, 160, 96)):
        values = images(*shape)
        assert len(program(values)) == 2
        assert_same(model, program, values)


def test_batch_norms_are_folded_and_operators_are_pytorchs(exported):
    _, program = exported
    names = operators(program)
    assert not [name for name in names if "fastinst" in name or "batch_norm" in name]
    assert not [name for name in names if "rsqrt" in name or "foreach" in name]
    # The position maps of a fixed size are constants too: p5 and p4 are resized, and the pooled.
    resized = [n for n in program.graph.nodes if "upsample" in str(n.target)]
    assert len(resized) == 6


@pytest.mark.parametrize("exported", [True], indirect=True, ids=["deformable"])
def test_a_file_runs_where_this_package_is_not(exported, tmp_path):
    model, program = exported
    values = images(1, 64, 96)
    (tmp_path / "a model.pt2").write_bytes(to_bytes(program, {"fastinst": "text"}))
    torch.save(values, tmp_path / "images.pt")
    script = (
        "import sys, torch; texts = {'fastinst': ''}\n"
        "program = torch.export.load('a model.pt2', extra_files=texts).module()\n"
        "torch.save(program(torch.load('images.pt')), 'outputs.pt')\n"
        "print(texts['fastinst'], [m for m in sys.modules if m.startswith('fastinst')])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["text", "[]"]
    assert_same(model, lambda _: torch.load(tmp_path / "outputs.pt"), values)


@pytest.mark.slow
@pytest.mark.parametrize("deformable", [False, True])
def test_a_dynamic_program_takes_other_sizes_and_batches(monkeypatch, deformable):
    model = small_model(monkeypatch, deformable)
    least = least_edge(model.config)
    run = trace(model, (None, least, least)).module()
    for shape in ((1, least, least), (1, 160, 96), (3, 128, 224)):
        assert_same(model, run, images(*shape))
    with pytest.raises((AssertionError, RuntimeError), match="(?i)guard|expected"):
        run(images(1, least - 32, least))


def test_the_least_edge_leaves_room_for_all_queries(monkeypatch):
    config = small_model(monkeypatch).config
    assert config.num_queries == 20
    assert (least_edge(config) // 16) ** 2 > 20 >= ((least_edge(config) - 32) // 16) ** 2


def test_16_bits_inside_float32_outside(monkeypatch):
    model = small_model(monkeypatch)
    program = trace(model, (2, 64, 64), torch.bfloat16)
    weights = [tensor.dtype for tensor in program.state_dict.values() if tensor.dim() == 4]
    assert weights.count(torch.bfloat16) > 20 and set(weights) <= {torch.bfloat16, torch.float32}
    values = images(2, 64, 64)
    logits, masks, _ = program.module()(values)
    assert logits.dtype == masks.dtype == torch.float32
    with torch.no_grad():
        expected = model(normalise(model, values))["pred_logits"]
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 6), st.integers(1, 6))
def test_pooling_by_products(height, width, rows, columns):
    x = torch.rand(2, 3, height, width, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, (rows, columns))
    torch.testing.assert_close(
        adaptive_avg_pool2d(x, [rows, columns]), expected, rtol=1e-6, atol=1e-6
    )


def test_folding_computes_what_no_input_decides():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.rand(4, 3)), nn.Parameter(torch.rand(4))
            self.register_buffer("twice", torch.rand(4, 4))

        def forward(self, x):
            folded = self.weight * self.scale[:, None]
            left, right = folded.split(2)
            return x @ left.T + (x @ right.T).sin(), x @ folded.T @ self.twice

    module = Module()
    x = torch.rand(5, 3)
    expected = module(x)
    graph = torch.export.export(module, (x,)).module(check_guards=False)
    fold_constants(graph)
    torch.testing.assert_close(graph(x), expected)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in targets if ".mul." in name or "split" in name]
    kept = {name for name, _ in [*graph.named_parameters(), *graph.named_buffers()]}
    assert "twice" in kept and not kept & {"weight", "scale"}
    # What is kept are no views of what is gone, which would be saved whole.
    for tensor in graph.buffers():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
