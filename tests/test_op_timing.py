import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastinst import op_timing, ops, rivals, timing
from fastinst.rivals import attention, deform_conv2d, masks, points

CPU = torch.device("cpu")
# They stand for something else than the kernel's result.
OTHERS = ("F.conv2d 3x3", "kernel with projections", "MultiheadAttention (with projections)")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The cases at a small size; 6 x 9 cells are not a whole number of words."""
    sizes = {"PADDED": (64, 96), "RESIZED": (60, 90), "ORIGINAL": (33, 47), "QUERIES": 7}
    sizes |= {"PAIRS": 5, "OBJECTS": 2, "POINTS": 90, "CANDIDATES": 270, "IMPORTANT": 70}
    for module in (attention, deform_conv2d, masks, points):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size, raising=False)


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [ops.pack_bits(result) if result.dtype == torch.bool else result]
    return [x for x in result if x.numel()]  # without the gradient of no mask


@pytest.mark.parametrize("op", rivals.CASES)
def test_all_compute_the_same(op):
    torch.manual_seed(0)
    for case in rivals.CASES[op](CPU, torch.float64):
        results = {name: call() for name, call in case.rivals.items()}
        expected = results.pop("kernel")
        assert results
        assert results.keys().isdisjoint(case.absent)
        for name in set(results) - set(OTHERS):
            if op == "encode_masks":
                assert results[name] == expected
            else:
                torch.testing.assert_close(
                    tensors(results[name]), tensors(expected), rtol=1e-9, atol=1e-9
                )
        if "kernel with projections" in results:
            tokens_first = results["MultiheadAttention (with projections)"].transpose(0, 1)
            torch.testing.assert_close(results["kernel with projections"], tokens_first)


def test_plain_convolutions_have_the_same_shape_and_layout():
    for case in rivals.CASES["deform_conv2d"](CPU, torch.float32):
        if case.op == "deform_conv2d":
            ours, plain = (case.rivals[name]() for name in ("kernel", "F.conv2d 3x3"))
            assert ours.shape == plain.shape
            for layout in (torch.contiguous_format, torch.channels_last):
                expected = plain.is_contiguous(memory_format=layout)
                assert ours.is_contiguous(memory_format=layout) == expected


@pytest.mark.parametrize("height, width", [(80, 108), (8, 12)])
def test_masks_are_as_full_as_they_say(height, width):
    masks = attention._rectangles(200, height, width)
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
    assert masks.double().mean() == pytest.approx(0.05, rel=0.1)
    assert len(masks.flatten(1).unique(dim=0)) > 20
    assert 0.05 < (rivals.masks._blobs((80, 108)) > 0).double().mean() < 0.2


def entry_of(monkeypatch, case, compiled):
    monkeypatch.setattr(op_timing, "CASES", {"op": lambda device, dtype: iter([case])})
    monkeypatch.setattr(op_timing, "active_kernels", lambda device: {case.op: compiled})
    [entry] = op_timing.measure_ops(CPU, torch.float16, None, 0.0)
    return entry


def test_an_entry(monkeypatch, capsys):
    """On a clock that the calls move."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def call(seconds, result):
        def run():
            clock.now += seconds
            return torch.tensor(result)

        return run

    def fails():
        raise RuntimeError("not for Half\nand more")

    calls = {"kernel": call(2, 1), "slow": call(6, 1), "wrong": call(3, 4), "none": fails}
    case = rivals.Case("op", "a case", calls, {"missing": "no such thing"}, exact=True)
    entry = entry_of(monkeypatch, case, "compiled")
    assert (entry["op"], entry["case"], entry["dtype"]) == ("op", "a case", "float16")
    assert entry["skipped"] == {"missing": "no such thing", "none": "not for Half"}
    assert entry["exact"] == {"kernel": True, "slow": True, "wrong": False}
    row = {"median_ms": 6000, "p95_ms": 6000, "ratio": 3, "runs": 5}
    assert entry["rivals"]["slow"] == pytest.approx(row)
    op_timing.print_case(entry)
    out = capsys.readouterr().out
    assert "6000.000 ms" in out and "3.00x  same bits" in out and "1.50x  other bits" in out
    assert "skipped: not for Half" in out and "and more" not in out


def test_without_a_kernel_there_is_no_ratio(monkeypatch, capsys):
    case = rivals.Case("op", "a case", {"kernel": lambda: 1, "definition": lambda: 1}, {})
    entry = entry_of(monkeypatch, case, "reference")
    assert entry["rivals"].keys() == {"definition"}
    assert entry["rivals"]["definition"]["ratio"] is None
    assert entry["skipped"] == {"kernel": "op is not compiled for cpu"}
    op_timing.print_case(entry)
    assert "kernel" in capsys.readouterr().out


def test_a_kernel_that_fails_is_no_skipped_rival(monkeypatch):
    def fails():
        raise RuntimeError("broken")

    case = rivals.Case("op", "a case", {"kernel": fails}, {})
    with pytest.raises(RuntimeError, match="broken"):
        entry_of(monkeypatch, case, "compiled")


def test_rivals_take_turns(monkeypatch):
    order, clock = [], SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def call(name):
        order.append(name)
        clock.now += 1

    calls = {name: [lambda name=name: call(name)] * 2 for name in "ab"}
    times = timing.measure_in_turn(calls, CPU, 30)
    rounds = 2 + 8  # of 4 s each; the eighth ends after 30 s
    assert order == ["a", "a", "b", "b"] * rounds
    assert times == {"a": [1000.0] * 8, "b": [1000.0] * 8}


def test_gradients_are_computed_outside_of_inference_mode(monkeypatch):
    seen = []
    leaf = nn.Parameter(torch.ones(2))

    def call():
        seen.append(torch.is_inference_mode_enabled())
        return leaf

    for op in ("x", "x_backward"):
        entry_of(monkeypatch, rivals.Case(op, "a case", {"kernel": call}, {}), "compiled")
    assert seen == [True] * 8 + [False] * 8
    assert not torch.is_inference_mode_enabled()


def test_a_missing_torchvision_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    cases = list(rivals.CASES["deform_conv2d"](CPU, torch.float32))
    assert all("torchvision" not in case.rivals for case in cases)
    assert all("torchvision" in case.absent["torchvision"] for case in cases)
