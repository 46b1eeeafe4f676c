"""Timing of calls; `test_op_timing.py` has them in turn."""

from types import SimpleNamespace

import torch

from fastinst import timing


def test_the_mean_of_calls_without_what_frees_their_results(monkeypatch):
    """On a clock that a call moves by 2 s, and the end of its result by 5."""
    clock = SimpleNamespace(now=0.0)

    class Result:
        def __del__(self):
            clock.now += 5

    def call():
        clock.now += 2
        return Result()

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert timing.time_calls([call] * 3, torch.device("cpu")) == 2000
    assert clock.now == 3 * 7


def test_what_is_stable():
    assert timing.is_stable([90, 9, 10, 10.2, 10, 9, 10.3])
    assert not timing.is_stable([14, 13, 12, 11, 10, 9])
    assert not timing.is_stable([10] * 5)
