import csv
import runpy
import sys

import pytest
from small_coco import write_coco

NAME = "fastinst.pipeline_timing"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [NAME, *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module(NAME, run_name="__main__")
    return exit_.value.code or 0


def test_the_pipeline_is_timed_beside_the_network(tmp_path, monkeypatch, capsys):
    write_coco(tmp_path / "my data", [[(0, 0, 0, 32, 32)], [(1, 40, 8, 64, 40)]])
    table = tmp_path / "pipeline.csv"
    arguments = (tmp_path / "my data", "--model", "fastinst-d1-r18-192", "--device", "cpu")
    assert run(monkeypatch, *arguments, "--rounds", 2, "--csv", table) == 0
    assert "to the network's time" in capsys.readouterr().out
    rows = list(csv.DictReader(table.open()))
    assert [row["side"] for row in rows] == ["network", "pipeline"]
    assert all(0 < float(row["median_ms"]) <= float(row["p95_ms"]) for row in rows)
    assert {row["images"] for row in rows} == {"2"}


def test_bad_options(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, "--rounds", 0) == 2
    assert run(monkeypatch, tmp_path / "none") == 2
    assert "no such" in capsys.readouterr().err
