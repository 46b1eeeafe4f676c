"""train.py as its users meet it: runs, interruptions, resumption and bad input."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from training_runs import PROGRAM, QUICK, edit_json, make_data, rows, weights

from fastinst.errors import InputError
from fastinst.model import FastInst
from fastinst.weights import read_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("training") / "my data")


def test_a_run_leaves_checkpoints_a_log_and_the_next_commands(data, tmp_path, run_train, capsys):
    out = tmp_path / "run"
    assert run_train("--data", data, "--output", out, *QUICK, "--steps", 3) == 0
    assert [row["step"] for row in rows(out)] == ["1", "2", "3"]
    parts = ("loss_ce", "loss_mask", "loss_dice", "loss_proposal")
    for row in rows(out):
        assert sum(float(row[p]) for p in parts) == pytest.approx(float(row["loss"]), rel=1e-5)
    assert rows(out)[-1]["AP"] != ""
    checkpoint = read_checkpoint(out / "best.pt")
    assert list(checkpoint["class_names"]) == ["disc", "square", "triangle", "ring"]
    assert list(checkpoint["category_ids"]) == [1, 2, 4, 7]
    printed = capsys.readouterr().out
    assert "3 steps (1.0 epochs)" in printed and f"evaluate.py {out / 'best.pt'}" in printed


def test_the_other_programs_take_what_training_left(data, tmp_path, run_train, monkeypatch):
    """With the real model: no program but this one trains, evaluates and predicts in a row."""
    out = tmp_path / "run"
    run_train("--data", data, "--output", out, *QUICK, "--steps", 2)
    report, found = tmp_path / "ap.json", tmp_path / "found"
    # After two steps masks are still empty, as they start; here they fill the image.
    checkpoint = torch.load(out / "best.pt")
    checkpoint["model"]["decoder.heads.1.pixel_map.bias"][0] *= -1
    torch.save(checkpoint, tmp_path / "full.pt")
    for arguments in (
        ["evaluate.py", out / "best.pt", "--data", data, "--workers", 0, "--output", report],
        ["predict.py", tmp_path / "full.pt", data / "val", "--output", found, "--threshold", 0],
        ["benchmark.py", out / "best.pt", "--iterations", 1, "--warmup", 0, "--height", 64],
    ):
        program = PROGRAM.with_name(arguments[0])
        monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--device", "cpu"])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(program), run_name="__main__")
        assert not exit_.value.code, arguments
    assert json.loads(report.read_text())["AP"] == pytest.approx(
        float(rows(out)[-1]["AP"]), abs=1e-3
    )
    results = json.loads((found / "predictions.json").read_text())
    assert len(results["images"]) == len(list(found.glob("*.jpg"))) == 2
    assert results["categories"][2] == {"id": 4, "name": "triangle"} and results["annotations"]


def test_the_reason_for_no_validation_set_is_said(data, tmp_path, run_train, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    (folder / "annotations/instances_val.json").unlink()
    options = ("--output", tmp_path / "run", *QUICK, "--steps", 1)
    assert run_train("--data", folder, *options) == 0
    printed = capsys.readouterr().out
    assert "no validation set" in printed and "no COCO annotations for the split 'val'" in printed


def test_torchrun_trains_on_two_processes(data, tmp_path):
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [str(PROGRAM), "--data", str(data), "--output", str(out), *QUICK, "--steps", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(out)] == ["1", "2"]
    assert done.stdout.count("processes 2") == 1


def test_images_elsewhere_are_part_of_the_next_command(data, tmp_path, run_train, capsys):
    labels, images, out = tmp_path / "labels", tmp_path / "all images", tmp_path / "run"
    shutil.copytree(data / "annotations", labels)
    shutil.copytree(data / "train", images)
    options = ["--images", images, "--output", out, *QUICK, "--steps", 1]
    train, val = (labels / f"instances_{split}.json" for split in ("train", "val"))
    assert run_train("--data", train, *options) == 0
    assert "no validation set" in capsys.readouterr().out
    for path in (data / "val").iterdir():
        shutil.copy(path, images / f"val {path.name}")
    content = json.loads(val.read_text())["images"]
    edit_json(val, images=[i | {"file_name": f"val {i['file_name']}"} for i in content])
    assert run_train("--data", train, "--val", val, *options, "--output", tmp_path / "2") == 0
    command = f"evaluate.py {tmp_path / '2/best.pt'} --data {val} --images '{images}'"
    assert command in capsys.readouterr().out


def test_bad_input_is_told_before_the_first_step(data, tmp_path, run_train, monkeypatch):
    def no_step(*_, **__):
        raise AssertionError("a step was made")

    monkeypatch.setattr(FastInst, "loss", no_step)
    out = tmp_path / "out"
    cases = {
        "nowhere": ["--data", tmp_path / "nowhere"],
        "frozen batch norms": ["--data", data, "--set", "frozen_batch_norm=true"],
        "num_layer": ["--data", data, "--set", "num_layer=3"],
        "KEY=VALUE": ["--data", data, "--set", "num_layers"],
        "unknown model": ["--data", data, "--model", "fastinst-d9"],
        "no_such.pt": ["--data", data, "--weights", tmp_path / "no_such.pt"],
        "no_such_run": ["--resume", tmp_path / "no_such_run"],
        "nonsense": ["--data", data, "--device", "nonsense"],
        "num_classes=5": ["--data", data, "--set", "num_classes=5"],
    }
    for culprit, arguments in cases.items():
        with pytest.raises(InputError, match=re.escape(culprit)):
            run_train(*QUICK, "--output", out, *arguments)
        assert not out.exists(), culprit


@pytest.mark.parametrize(
    "option", ["--size=0", "--eval-every=0", "--clip=-1", "--workers=-1", "--steps=0", "--lr=nan"]
)
def test_options_out_of_range(data, run_train, option):
    with pytest.raises(InputError, match=option.partition("=")[0]):
        run_train("--data", data, option)


def test_patience(data, tmp_path, run_train, capsys):
    """An untrained model's AP is 0 however often it is evaluated: the first one is the best."""
    out = tmp_path / "run"
    options = ["--data", data, "--output", out, *QUICK, "--lr", 1e-9, "--eval-every", 1]
    assert run_train(*options, "--steps", 50, "--patience", 2) == 0
    assert "ended early: no better AP in 2 evaluations" in capsys.readouterr().out
    assert len(rows(out)) == 3


def test_parts_of_a_batch_train_as_the_whole(data, tmp_path, run_train):
    """The weights after some steps with frozen norms, up to rounding."""
    run_train("--data", data, "--output", tmp_path / "start", *QUICK, "--steps", 1)
    start = tmp_path / "start" / "best.pt"
    options = ["--data", data, *QUICK, "--batch-size", 4, "--steps", 3, "--weights", start]
    options += ["--lr", 1e-4]
    run_train(*options, "--output", tmp_path / "whole")
    run_train(*options, "--output", tmp_path / "parts", "--accumulate", 4)
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "parts").items():
        # Adam's steps have the length of the learning rate even where gradients are rounding.
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=3e-4, msg=name)
    for row, wanted in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-4)


def test_from_scratch_batch_norms_train_and_pretrained_they_are_frozen(
    data, tmp_path, run_train, capsys
):
    tiny = [*QUICK, "--steps", 1, "--model", "fastinst-d1-r50-576", "--data", data]
    tiny[tiny.index("--backbone-lr") : tiny.index("--backbone-lr") + 2] = []
    first, second = tmp_path / "first", tmp_path / "second"
    run_train(*tiny, "--output", first)
    printed = capsys.readouterr().out
    assert "batch norms: trained" in printed and "backbone x1" in printed
    assert not read_checkpoint(first / "last.pt")["config"]["frozen_batch_norm"]

    run_train(*tiny, "--output", second, "--weights", first / "best.pt")
    assert "backbone x0.1" in capsys.readouterr().out
    assert read_checkpoint(second / "last.pt")["config"]["frozen_batch_norm"]
    name = "backbone.bn1.running_mean"
    assert torch.equal(weights(first)[name], weights(second)[name])


def test_an_output_folder_that_cannot_be_written(data, tmp_path, run_train):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write into the folder"):
        run_train("--data", data, "--output", tmp_path / "file" / "run", *QUICK, "--steps", 1)
