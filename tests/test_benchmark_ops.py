"""benchmark.py --ops: what it prints and writes of operators."""

import csv
import json

import pytest
import torch

import fastinst.op_timing
from fastinst import rivals


@pytest.fixture
def two_cases(monkeypatch):
    """--ops with two operators of one case each, neither of them compiled."""

    def cases(op):
        def make(device, dtype):
            zeros = torch.zeros(3, dtype=dtype)
            calls = {"kernel": zeros.exp, "definition": zeros.exp, "other": zeros.exp2}
            yield rivals.Case(op, f"{dtype}, all zero", calls, {"missing": "no such thing"})

        return make

    two = {op: cases(op) for op in ("select_queries", "attention_mask")}
    monkeypatch.setattr(fastinst.op_timing, "CASES", two)
    none = dict.fromkeys(two, "reference")
    monkeypatch.setattr(fastinst.op_timing, "active_kernels", lambda device: none)
    return list(two)


OPS = ("--ops", "--device", "cpu", "--seconds", 0.001)


def test_ops(run_benchmark, two_cases, tmp_path):
    numbers, path = tmp_path / "ops.json", tmp_path / "ops.csv"
    code, out, err = run_benchmark(*OPS, "--json", numbers, "--csv", path)
    assert code == 0, err
    assert "machine: " in out and "protocol" not in out
    assert "skipped: select_queries is not compiled for cpu" in out
    report = json.loads(numbers.read_text())
    assert [entry["op"] for entry in report["cases"]] == two_cases
    assert report["cases"][0]["skipped"].keys() == {"kernel", "missing"}

    code, _, err = run_benchmark(
        *OPS, "--only", "attention_mask", "--dtype", "float16", "--csv", path
    )
    assert code == 0, err
    table = list(csv.DictReader(path.open(newline="")))
    assert [row["op"] for row in table[::2]] == [*two_cases, "attention_mask"]
    assert [row["rival"] for row in table[:2]] == ["definition", "other"]
    assert table[-1]["dtype"] == "float16" and table[-1]["case"] == "torch.float16, all zero"
    row, numbers = table[0], report["cases"][0]["rivals"]["definition"]
    assert float(row["median_ms"]) == pytest.approx(numbers["median_ms"], abs=1e-4)
    assert row["ratio"] == "" and row["command"].startswith("python benchmark.py --ops")


def test_an_interrupt_keeps_the_cases_that_were_measured(
    run_benchmark, two_cases, tmp_path, monkeypatch
):
    path, kept = tmp_path / "ops.csv", []

    def interrupted(entry):
        kept.append(path.read_text().count("\n") if path.exists() else 0)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fastinst.op_timing, "print_case", interrupted)
    code, _, err = run_benchmark(*OPS, "--csv", path)
    assert code == 130 and "interrupted" in err
    assert [*kept, path.read_text().count("\n")] == [0, 3, 5]
