import csv
import runpy
import sys

import pytest
from small_coco import write_coco

NAME = "fastinst.evaluation_timing"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [NAME, *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module(NAME, run_name="__main__")
    return exit_.value.code or 0


def test_both_sides_evaluate_and_a_row_of_each_stage_is_written(tmp_path, monkeypatch, capsys):
    write_coco(tmp_path / "my data", [[(0, 0, 0, 32, 32)], [(1, 40, 8, 64, 40)]])
    table = tmp_path / "evaluation.csv"
    arguments = (tmp_path / "my data", "--model", "fastinst-d1-r18-192", "--csv", table)
    for _ in range(2):
        assert run(monkeypatch, *arguments) == 0
    assert "x faster" in capsys.readouterr().out
    rows = list(csv.DictReader(table.open()))
    stages = ["read", "network", "results", "all"]
    assert [row["stage"] for row in rows] == stages * 4
    assert [row["side"] for row in rows] == (["ours"] * 4 + ["release"] * 4) * 2
    assert {row["model"] for row in rows} == {"fastinst-d1-r18-192"}
    for side in (rows[:4], rows[4:8]):
        *parts, whole = (float(row["p95_ms"]) for row in side)
        assert 0 < max(parts) <= whole <= sum(parts) * 1.001


def test_bad_options(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, "--images", 0) == 2
    assert run(monkeypatch, tmp_path / "none") == 2
    assert "no such" in capsys.readouterr().err
