import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastinst import create_model, timing

TINY = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "test_short_edge": 64, "test_max_edge": 96}


def tiny_model():
    return create_model("fastinst-d1-r18-192", **TINY)


def images(*sizes):
    rng = np.random.default_rng(1)
    return [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]


@torch.inference_mode()
def test_the_stages_are_the_model():
    model = tiny_model().eval()
    originals = images((50, 70), (90, 40))
    stages = dict(timing.staged(model, originals))
    assert tuple(stages) == timing.STAGES
    outputs = model(stages["preprocess"])
    assert outputs.keys() == stages["decoder"].keys()
    for key, value in outputs.items():
        assert torch.equal(value, stages["decoder"][key]), key
    for resized in (None, stages["resize"]):
        whole = timing.whole(model, originals, resized)
        for a, b, original in zip(whole, stages["download"], originals, strict=True):
            assert a.masks.shape[1:] == original.shape[:2]
            assert torch.equal(a.masks, b.masks) and torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("from_resized", [True, False])
def test_what_end_to_end_spans(monkeypatch, from_resized):
    """On a clock that only resizing and reading out move, by 3 s and 1 s."""
    clock = SimpleNamespace(now=0.0)

    def moving(function, seconds):
        def moved(*args):
            clock.now += seconds
            return function(*args)

        return moved

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    for name, seconds in (("resize_shortest_edge", 3.0), ("postprocess", 1.0)):
        monkeypatch.setattr(timing, name, moving(getattr(timing, name), seconds))
    model, batches = tiny_model().eval(), itertools.repeat(images((50, 70)))
    assert timing.warm_up(model, batches, from_resized, 1) == [1000 if from_resized else 4000]
    runs = list(timing.measure(model, batches, from_resized, 2, 0))
    assert len(runs) == 2
    for times in runs:
        assert tuple(times) == (*timing.STAGES, "end to end")
        assert times.pop("resize") == 3000
        assert times.pop("read-out") == 1000
        assert times.pop("end to end") == (1000 if from_resized else 4000)
        assert set(times.values()) == {0}


def test_percentiles():
    times = [float(i) for i in range(101)]
    row = timing.summarize([{"read-out": time} for time in times[::-1]], 2)["read-out"]
    expected = {"median_ms": 50, "p95_ms": 95, "p99_ms": 99, "mean_ms": 50, "fps": 40}
    assert row == pytest.approx(expected)


def test_warm_up_is_stable():
    assert timing.is_stable([90, 9, 10, 10.2, 10, 9, 10.3])
    assert not timing.is_stable([14, 13, 12, 11, 10, 9])
    assert not timing.is_stable([10] * 5)


@pytest.mark.parametrize("runs, seconds, expected", [(3, 0.0, 3), (1, 99.0, 1), (None, 2.5, 3)])
def test_how_long_it_measures(monkeypatch, runs, seconds, expected):
    """On a clock that a whole run moves by 1 s."""
    clock = SimpleNamespace(now=0.0)

    def second(*args):
        clock.now += 1

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(timing, "whole", second)
    model, batches = tiny_model().eval(), itertools.repeat(images((50, 70)))
    assert len(list(timing.measure(model, batches, False, runs, seconds))) == expected
    assert timing.warm_up(model, batches, False, None) == [1000] * 6
