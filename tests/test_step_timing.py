"""Counting operations and synchronisations, and the program around it."""

import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch

from fastinst import ops, step_timing
from fastinst.step_timing import PHASES, count, make_steps, measure, plain_operators, summarize

CPU = torch.device("cpu")
SMALL = ("fastinst-d1-r18-192", 2, 64, 96, 3)


def test_operations_are_neither_views_nor_allocations():
    x = torch.randn(4, 6)

    def step():
        y = x.transpose(0, 1).flatten()[3:].detach()  # a copy, for it is transposed
        torch.empty(5)
        yield
        (y + 1).mul_(2).cpu()
        yield
        torch.nonzero(y), (y @ y).item()
        yield

    counts = count(step, CPU)
    assert [operations for operations, _ in counts] == [1, 2, 3]
    assert [waits for _, waits in counts[:2]] == [0, 1]


def test_the_present_step_has_fewer_operations_and_waits():
    counts = {name: count(step, CPU) for name, step in make_steps(*SMALL, CPU).items()}
    for phase in range(len(PHASES)):
        assert counts["present"][phase][0] < counts["straight"][phase][0]
    # The matching, and the reading of the losses.
    assert [waits for _, waits in counts["present"]] == [1, 0, 1]
    # A matching for each of 2 images and 2 heads, and for each image's pixels.
    assert [waits for _, waits in counts["straight"]] == [6, 0, 1]


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_a_step_of_d3_has_at_most_2500_operations_and_2_waits(device):
    device = torch.device(device)
    steps = make_steps("fastinst-d3-r50-640", 2, 64, 96, 3, device)
    counts = count(steps["present"], device)
    assert sum(operations for operations, _ in counts) <= 2500
    assert sum(waits for _, waits in counts) <= 2


def test_plain_operators_are_put_back():
    before = ops.masked_cross_attention
    with plain_operators():
        assert ops.masked_cross_attention is not before
    assert ops.masked_cross_attention is before


def test_both_kinds_are_timed_in_turn():
    order = []

    def make(name):
        def step():
            for phase in PHASES:
                order.append((name, phase))
                yield

        return step

    times = measure({"straight": make("a"), "present": make("b")}, CPU, rounds=3)
    assert [name for name, _ in order] == (["a"] * 3 + ["b"] * 3) * 4  # one to warm up
    assert {name: [len(run) for run in runs] for name, runs in times.items()} == {
        "straight": [3, 3, 3],
        "present": [3, 3, 3],
    }


def test_a_row_for_each_phase_and_for_the_whole():
    counts = {"straight": [(10, 1), (20, 2), (30, 3)], "present": [(1, 0), (2, 0), (3, 1)]}
    times = {"straight": [[2.0, 4.0, 6.0]] * 5, "present": [[1.0, 1.0, 2.0]] * 5}
    rows = list(summarize(counts, times))
    assert [(r["step"], r["phase"]) for r in rows] == [
        (name, phase) for name in counts for phase in (*PHASES, "whole step")
    ]
    assert rows[3] | {"p95_ms": 12.0} == rows[3]
    assert [(r["operations"], r["synchronisations"]) for r in rows[3::4]] == [(60, 6), (6, 1)]
    assert [r["ratio"] for r in rows[4:]] == [2.0, 4.0, 3.0, 3.0]


def run_program(monkeypatch, *arguments):
    options = ("--batch", "1", "--height", "33", "--width", "40", "--rounds", "1")
    model = ("--model", "fastinst-d1-r18-192", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["step_timing", *model, *options, *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(step_timing.__file__, run_name="__main__")
    return exit_.value.code


def test_the_program_prints_and_appends_to_its_csv(tmp_path, monkeypatch, capsys):
    file = tmp_path / "steps.csv"
    for times in (1, 2):
        assert not run_program(monkeypatch, "--csv", file)
        rows = list(csv.DictReader(file.open()))
        assert len(rows) == 8 * times
    assert "whole step" in capsys.readouterr().out
    assert rows[-1]["step"] == "present" and float(rows[-1]["median_ms"]) > 0
    assert rows[-1]["height"] == "33" and int(rows[-1]["synchronisations"]) == 2


def test_images_without_objects_have_a_step_too(monkeypatch):
    assert not run_program(monkeypatch, "--objects", "0")


def test_a_csv_of_something_else_is_refused(tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "other.csv"
    file.write_text("a,b\n")
    assert run_program(monkeypatch, "--csv", file) == 2
    assert "does not have the columns" in capsys.readouterr().err
