"""Variants timed in turn, what that is compared with, and whether it can be trusted."""

import contextlib
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastinst import create_model, ops
from fastinst.benchmarking import cases, measurement, steadiness, variants
from fastinst.benchmarking.variants import VARIANTS, Variant, default_variants, make_variant
from fastinst.config import make_config

CPU = torch.device("cpu")
NAME = "fastinst-d1-r18-192"
TINY = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "test_short_edge": 64, "test_max_edge": 96}
STAGES = ("resize", "preprocess", "backbone", "pixel decoder", "decoder", "read-out", "download")


def tiny_model():
    return create_model(NAME, **TINY).eval()


def images(*sizes):
    rng = np.random.default_rng(1)
    return [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]


# Variants.


@pytest.mark.parametrize("name", ["release", "plain", "engine-float32", "engine-definitions"])
@torch.inference_mode()
def test_the_stages_are_the_whole(name):
    variant = make_variant(name, tiny_model(), CPU)
    originals = images((50, 70), (56, 77))
    with measurement.running(variant):
        stages = dict(variant.stages(originals))
        sizes = [image.shape[:2] for image in originals]
        whole = variant.infer([variant.resize(image) for image in originals], sizes)
    assert tuple(stages) == STAGES
    for a, b, size in zip(whole, stages["download"], sizes, strict=True):
        tensors = [result if name == "release" else vars(result).values() for result in (a, b)]
        for x, y in zip(*tensors, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert (b[2].shape[1:] if name == "release" else b.size) == size


def test_all_variants_are_made_of_the_same_weights():
    """Their best score agrees, as far as the dtype goes; the model stays as it is."""
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = {}
    for name in VARIANTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of 16 bits that are slow here
            variant = make_variant(name, model, CPU)
        expected = name.partition("-")[2] if name.endswith("float16") else "float32"
        assert variant.dtype == expected
        with measurement.running(variant):
            [found] = variant.infer([variant.resize(images((64, 96))[0])], [(64, 96)])
        scores[name] = (found[0] if name == "release" else found.scores).max().item()
    for name, score in scores.items():
        tolerance = 0.05 if name.endswith("float16") else 1e-4
        assert score == pytest.approx(scores["plain"], rel=tolerance), name
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_default_variants(monkeypatch):
    for best, extra in ((torch.float32, []), (torch.bfloat16, ["engine-bfloat16"])):
        monkeypatch.setattr(variants, "choose_dtype", lambda name, device, best=best: best)
        names = [n for n in VARIANTS if "float16" not in n] + extra
        assert default_variants(CPU, make_config("fastinst-d3-r50-640")) == names
        names.remove("release")
        assert default_variants(CPU, make_config("mask2former-light-r50-640")) == names


def test_definitions_run_where_they_are_to():
    """Counting the calls of a kernel that stands for the compiled ones."""
    calls = []
    definition = ops.kernels.importlib.import_module("fastinst.ops.select_queries").definition

    def kernel(*args):
        calls.append(1)
        return definition(*args)

    with torch.library._scoped_library("fastinst", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl("select_queries", kernel, "CPU", allow_override=True)
        counts = {}
        for name in ("plain", "plain-definitions", "engine-definitions", "engine-float32"):
            variant = make_variant(name, tiny_model(), CPU)
            calls.clear()
            measurement.time_whole(variant, images((50, 70)), "paper")
            measurement.time_stages(variant, images((50, 70)))
            counts[name] = len(calls)
    expected = {"plain": 2, "plain-definitions": 0, "engine-definitions": 0, "engine-float32": 2}
    assert counts == expected


# Their times.


def fake_variant(name, clock, seconds=1.0, order=None):
    """One whose every step moves the clock, the network by `seconds` and the others by 1 s."""

    def step(duration, result):
        def run(*_):
            clock.now += duration
            if order is not None and result == ["found"]:
                order.append(name)
            return result

        return run

    network = step(seconds, {"pred_masks": 0})
    network.config = SimpleNamespace(name=NAME)
    resized = torch.zeros(3, 64, 64, dtype=torch.uint8)
    found = [torch.zeros(1)]
    return Variant(
        name,
        "float32",
        CPU,
        step(1, resized),
        step(1, ("batch", [(64, 64)])),
        network,
        step(1, found),
        lambda resized, sizes: step(seconds + 2, ["found"])() and found,
    )


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(measurement, "time", fake)
    monkeypatch.setattr("fastinst.timing.time", fake)
    download = measurement.download

    def downloads(found):
        clock.now += 10
        return download(found)

    monkeypatch.setattr(measurement, "download", downloads)
    monkeypatch.setattr(variants, "download", downloads)
    return clock


@pytest.mark.parametrize(("protocol", "whole"), [("paper", 5000), ("deploy", 16000)])
def test_what_end_to_end_spans(clock, protocol, whole):
    """A network of 3 s, between steps of 1 s and a download of 10."""
    variant = fake_variant("plain", clock, 3)
    assert measurement.time_whole(variant, images((64, 64)), protocol) == whole
    stages = {"resize": 1000, "preprocess": 1000, "network": 3000, "read-out": 1000}
    assert measurement.time_stages(variant, images((64, 64))) == stages | {"download": 10000}


@pytest.mark.parametrize(("rounds", "seconds", "expected"), [(4, 0, 4), (None, 0, 3), (1, 99, 1)])
def test_variants_take_turns(clock, rounds, seconds, expected):
    order = []
    pair = [fake_variant(name, clock, 1, order) for name in "AB"]
    steady = SimpleNamespace(sample=lambda: order.append("|"))
    found = list(measurement.measure(pair, [images((64, 64))], "paper", rounds, seconds, steady))
    assert order == ["|", "A", "B"] * expected and len(found) == expected
    assert found[0]["A"] == found[0]["B"] and found[0]["A"]["end to end"] == 3000


def test_it_measures_for_as_long_as_asked(clock):
    pair = [fake_variant(name, clock) for name in "AB"]
    start, steady = clock.now, SimpleNamespace(sample=lambda: None)
    batches = [images((64, 64)), images((32, 64))]
    list(measurement.measure(pair, batches, "deploy", None, 200, steady))
    assert 200 <= clock.now - start < 300


def test_warming_up_runs_every_batch_twice(clock):
    variant, batch = fake_variant("plain", clock), images((64, 64))
    assert measurement.warm_up(variant, [batch], "paper", 2) == (2, False)
    assert measurement.warm_up(variant, [batch] * 2, "paper", None) == (6, True)
    assert measurement.warm_up(variant, [batch] * 9, "paper", None) == (18, True)


def test_percentiles():
    times = [float(i) for i in range(101)]
    row = measurement.summarize([{"read-out": time} for time in times[::-1]], 2)["read-out"]
    expected = {"median_ms": 50, "p95_ms": 95, "p99_ms": 99, "mean_ms": 50, "fps": 40}
    assert row == pytest.approx(expected)


def test_ratios_are_of_medians_in_one_run(monkeypatch):
    def rows(*_):
        for release in (8.0, 9.0, 100.0):
            yield {"release": {"decoder": release}, "plain": {"decoder": 3.0}}

    monkeypatch.setattr(cases, "measure", rows)
    pair = [make_variant(name, tiny_model(), CPU) for name in ("release", "plain")]
    case = cases.measure_case(pair, [images((50, 70))], "paper", 1, 3, 0.0)
    release, plain = case["variants"]
    assert release["stages"]["decoder"]["ratio"] == 1
    assert plain["stages"]["decoder"]["ratio"] == 3
    assert plain["runs"] == 3 and not case["interrupted"]
    assert (case["model"], case["batch"], case["input"]) == (NAME, 1, [64, 96])
    assert case["parameters"] == sum(p.numel() for p in tiny_model().parameters())


# Whether the machine kept its speed.


def steady_after(times, monkeypatch):
    times = iter(times)
    monkeypatch.setattr(steadiness, "time_calls", lambda calls, device: next(times))
    steady = steadiness.Steadiness(CPU)
    with contextlib.suppress(StopIteration):
        while True:
            steady.sample()
    return steady.findings()


def test_drift_is_found(monkeypatch):
    assert steady_after([5.0, 5.1, 9.0, 5.1, 5.0, 5.2], monkeypatch) == []
    [finding] = steady_after([5.0, 5.0, 5.0, 6.0, 6.0, 6.0], monkeypatch)
    assert "1.20 times as long" in finding
    assert steady_after([5.0, 9.0], monkeypatch) == []


def test_a_hot_cpu_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(steadiness, "CPU", tmp_path)
    counters = [tmp_path / f"cpu{i}/thermal_throttle/core_throttle_count" for i in range(2)]
    for counter in counters:
        counter.parent.mkdir(parents=True)
        counter.write_text("7\n")
    steady = steadiness.Steadiness(CPU)
    assert steady.findings() == []
    counters[1].write_text("8\n")
    [finding] = steady.findings()
    assert "temperature" in finding


def test_a_gpu_that_slows_down_is_found(monkeypatch):
    """nvidia-smi answers while the GPU works, and is asked again when it has answered."""
    answers = iter(
        [
            "0x0000000000000001, 1980 MHz, 40, 90 W",
            "0x0000000000000024, 1200 MHz",
            "[N/A], 1",
        ]
    )
    running = []

    def query(device, columns):
        answer = next(answers)
        running.append(SimpleNamespace(poll=lambda: 0, communicate=lambda: (answer, None)))
        return running[-1]

    now = iter(range(10, 1000, 2))
    monkeypatch.setattr(steadiness, "query_gpu", query)
    monkeypatch.setattr(steadiness, "time", SimpleNamespace(monotonic=lambda: next(now)))
    steady = steadiness.Steadiness(CPU)
    for _ in range(3):
        steady._ask_gpu()
    assert len(running) == 3
    [finding] = steady.findings()
    assert "its power limit" in finding and "its temperature (driver)" in finding
