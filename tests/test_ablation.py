"""The supplement's tables: what is trained, measured and printed."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_cityscapes import write_cityscapes

import fastinst
from fastinst.ablation import TABLES, format_ablation, with_options
from fastinst.config import make_config
from fastinst.data.demo import write_demo
from fastinst.model import FastInst

PROGRAM = Path(__file__).parent.parent / "ablate.py"
SMALL = (
    *(
        "--seconds",
        "0.1",
        "--size",
        "64",
        "--batch-size",
        "2",
        "--steps",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
    ),
    *("--set", "backbone=resnet18", "hidden_dim=64", "num_heads=2", "num_points=64"),
)


def ablate(*arguments):
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_a_model_with_a_number_for_each_measure(name):
    table = TABLES[name]
    assert len({column.name for column in table.columns}) == len(table.columns)
    for column in table.columns:
        assert len(column.settings) == len(table.settings)
        assert len(column.paper) == len(table.measures)
        config = make_config(column.model, **column.options)
        with torch.device("meta"):
            model = FastInst(config)
        if name == "table1":
            millions = sum(p.numel() for p in model.parameters()) / 1e6
            assert millions == pytest.approx(column.paper[0], abs=0.1)


def test_the_ends_of_table_1_are_the_presets():
    first, *_, last = TABLES["table1"].columns
    assert make_config(first.model, **first.options) == make_config("mask2former-light-r50-640")
    assert make_config(last.model, **last.options) == make_config("fastinst-d3-r50-640")
    assert TABLES["table1"].tasks == TABLES["table3"].tasks == ("instance",)
    assert TABLES["table5"].tasks == ("instance", "panoptic", "semantic")


def test_other_options_with_the_same_weights():
    model = fastinst.create_model("fastinst-d1-r18-192", 3).eval()
    few = with_options(model, {"num_queries": 7, "local_maximum_first": False})
    assert few.config.num_queries == 7 and model.config.num_queries == 100
    batch, _ = model.preprocess([torch.randint(256, (3, 192, 256), dtype=torch.uint8)])
    with torch.no_grad():
        outputs = few(batch)
        _, queries = few.encode(batch)
    assert outputs["pred_logits"].shape == (1, 7, 4)
    best = queries.class_logits.softmax(1)[0, :-1].amax(0).flatten().topk(7).indices
    assert queries.indices[0].tolist() == sorted(best.tolist())


def test_printed_tables():
    table = TABLES["table1"]
    measured = {c.name: {m: i + 0.25 for m in table.measures} for i, c in enumerate(table.columns)}
    lines = format_ablation(table, measured).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["A", "", "", "", "", "x", "x", "x", "x", "x"]
    assert cells[5] == ["Param. (M)", *(f"{i}.2" for i in range(9))]
    assert cells[6] == ["paper", *"40.9 41.4 40.9 41.4 33.5 34.1 33.5 34.1 34.2".split()]
    table = TABLES["table3"]
    measured = {c.name: {m: 1.0 for m in table.measures} for c in table.columns}
    lines = format_ablation(table, measured).splitlines()
    assert len(lines) == 2 + 6 and len({len(line) for line in lines}) == 1
    assert "| with               | 10  | 1.0 | 30.0" in lines[3]
    measured["with-10"]["APs"] = math.nan  # no small objects
    assert "| with               | 10  | 1.0 | 30.0  | -   | 9.8" in format_ablation(
        table, measured
    )


def test_the_program_trains_one_model_for_table_3_and_never_again(tmp_path):
    data, output = tmp_path / "my data", tmp_path / "the runs"
    write_demo(data, train=4, val=2)
    arguments = ("table3", "--data", data, "--output", output, "--csv", tmp_path / "rows.csv")
    first = ablate(*arguments, *SMALL)
    assert first.returncode == 0, first.stderr
    log = output / "with-100" / "log.csv"
    assert [path.name for path in output.iterdir() if path.is_dir()] == ["with-100"]
    assert len(log.read_text().splitlines()) == 1 + 2
    table = (output / "table.md").read_text()
    assert table.count("| with ") == 3 and table.strip().splitlines()[-1] in first.stdout
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 6 * 5 and {row["table"] for row in rows} == {"table3"}
    assert all(float(row["value"]) > 0 for row in rows if row["measure"] == "FPS")

    best = output / "with-100" / "best.pt"
    before = best.stat().st_mtime_ns
    again = ablate(*arguments, *SMALL)
    assert again.returncode == 0, again.stderr
    assert best.stat().st_mtime_ns == before
    given = ablate(
        *("table3", "--data", data, "--output", tmp_path / "other"),
        *("--trained", best, "--seconds", "0.1"),
    )
    assert given.returncode == 0, given.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["table.md"]


@pytest.mark.slow
def test_streets_for_every_task(tmp_path):
    data = write_cityscapes(tmp_path / "city", "train", 2)
    write_cityscapes(data, "val", 1, seed=1)
    result = ablate("table5", "--data", data, "--output", tmp_path / "runs", *SMALL, "ffn_dim=32")
    assert result.returncode == 0, result.stderr
    last = (tmp_path / "runs" / "table.md").read_text().splitlines()[-1]
    model, ap, _, pq, _, iou, *_ = [cell.strip() for cell in last.split("|")[1:-1]]
    assert model == "fastinst-d3-r50"
    assert all(0 <= float(number) <= 100 for number in (ap, pq, iou))
    tasks = ("instance", "panoptic", "semantic")
    folders = {f"{name}-{task}" for name in ("mask2former", "fastinst") for task in tasks}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == folders | {"table.md"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("table1", "--data", "nowhere"), "nowhere"),
        (("table1", "--data", "x", "--trained", "best.pt"), "--retrain and --trained are for"),
        (("table3", "--data", "x", "--model", "y"), "--model is the table's own"),
        (("table6", "--data", "x"), "invalid choice"),
    ],
)
def test_errors(arguments, words):
    result = ablate(*arguments)
    assert result.returncode == 2
    assert words in result.stderr and "Traceback" not in result.stderr


def test_what_train_refuses_ends_the_program(tmp_path):
    write_demo(tmp_path / "data", train=2, val=1)
    result = ablate("table1", "--data", tmp_path / "data", "--output", tmp_path / "runs", "--stepz")
    assert result.returncode == 2 and "--stepz" in result.stderr
    assert "Traceback" not in result.stderr
