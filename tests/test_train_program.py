"""train.py as its users meet it: runs, interruptions, resumption and bad input."""

import csv
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import QUICK, edit_json

import train
from fastinst.data.demo import write_demo
from fastinst.errors import InputError
from fastinst.model import FastInst, create_model
from fastinst.training.gradients import BatchGradients
from fastinst.training.optimizer import parameter_groups
from fastinst.weights import read_checkpoint, save_checkpoint

PROGRAM = Path(train.__file__)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "my data"
    write_demo(folder, train=6, val=2, seed=0)
    return folder


@pytest.fixture
def run_train(monkeypatch):
    """Runs train.main() in this process with the given arguments."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        return train.main()

    yield call
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return read_checkpoint(folder / "last.pt")["model"]


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
    for arguments in (
        ["evaluate.py", out / "best.pt", "--data", data, "--workers", 0, "--output", report],
        ["predict.py", out / "best.pt", data / "val", "--output", found, "--threshold", 0],
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


def test_interrupted_and_resumed_equals_uninterrupted(data, tmp_path, run_train):
    """A real SIGINT in the middle of a real process; the weights end up bit-equal."""
    options = [*QUICK, "--steps", "12", "--eval-every", "12"]
    assert run_train("--data", data, "--output", tmp_path / "whole", *options) == 0

    out = tmp_path / "parts"
    command = [sys.executable, str(PROGRAM), "--data", str(data), "--output", str(out), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.csv").exists() or len(rows(out)) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    stopped = int(re.search(r"stopped by Ctrl-C after step (\d+)", printed)[1])
    assert 2 <= stopped < 12 and len(rows(out)) == stopped
    assert "Traceback" not in printed

    moved = out.rename(tmp_path / "moved")
    assert run_train("--resume", moved) == 0
    out = moved
    assert [row["step"] for row in rows(out)] == [str(i) for i in range(1, 13)]
    assert [r["loss"] for r in rows(out)] == [r["loss"] for r in rows(tmp_path / "whole")]
    expected = weights(tmp_path / "whole")
    for name, value in weights(out).items():
        assert torch.equal(value, expected[name]), name


def test_sigterm_to_all_processes_saves(data, tmp_path):
    """As a cluster or a container ends a run; the workers get the signal too."""
    out = tmp_path / "run"
    options = [*QUICK, "--workers", "1", "--steps", "500", "--eval-every", "500"]
    command = [sys.executable, str(PROGRAM), "--data", str(data), "--output", str(out), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "log.csv").exists() or len(rows(out)) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert read_checkpoint(out / "last.pt")["training"]["progress"]["step"] == len(rows(out)) >= 2


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


def test_a_loss_that_is_not_finite_names_the_images(data, tmp_path, run_train):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"step \d+: loss_.* not finite on images \d+, \d+;"):
        run_train("--data", data, "--output", out, *QUICK, "--steps", 50, "--lr", 1e30)


def test_too_little_memory_is_told_with_what_takes_less(data, tmp_path, run_train, monkeypatch):
    def compute(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(BatchGradients, "compute", compute)
    with pytest.raises(InputError, match="^CUDA out of memory: a larger --accumulate"):
        run_train("--data", data, "--output", tmp_path / "run", *QUICK, "--steps", 1)


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


def explode_losses(monkeypatch):
    """From now on losses are finite, and their gradients are not."""
    losses = FastInst.loss

    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    def exploding(self, batch, targets, totals):
        found = losses(self, batch, targets, totals=totals)
        return found | {"loss_ce": Explodes.apply(found["loss_ce"])}

    monkeypatch.setattr(FastInst, "loss", exploding)


def test_a_gradient_that_is_not_finite_is_no_step(data, tmp_path, run_train, monkeypatch):
    out = tmp_path / "run"
    run_train("--data", data, "--output", out, *QUICK, "--steps", 1)
    explode_losses(monkeypatch)
    with pytest.raises(InputError, match="step 2: gradient norm not finite on images"):
        run_train("--resume", out, "--steps", 2)
    assert all(value.isfinite().all() for value in weights(out).values())


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


def test_a_validation_set_without_objects(data, tmp_path, run_train, capsys):
    """Crowds are none either: there is no AP that could end the run early or be the best."""
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, folder)
    val = folder / "annotations" / "instances_val.json"
    crowds = [a | {"iscrowd": 1} for a in json.loads(val.read_text())["annotations"]]
    edit_json(val, annotations=crowds)
    options = ("--output", out, *QUICK, "--steps", 3, "--eval-every", 1, "--patience", 1)
    options += ("--ema", 0.9)
    assert run_train("--data", folder, *options) == 0
    printed = capsys.readouterr().out
    assert f"{val} has no objects" in printed and "--ema and --patience will change" in printed
    assert f"predict.py {out / 'last.pt'}" in printed
    assert len(rows(out)) == 3 and not (out / "best.pt").exists()


def test_a_class_that_never_occurs(data, tmp_path, run_train):
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, folder)
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}.json"
        categories = json.loads(path.read_text())["categories"]
        edit_json(path, categories=[{"id": 99, "name": "never"}, *categories])
    run_train("--data", folder, "--output", out, *QUICK, "--steps", 2)
    assert "never" in read_checkpoint(out / "best.pt")["class_names"]
    assert float(rows(out)[-1]["AP"]) >= 0


@pytest.mark.parametrize("parts", [1, 2])
def test_batches_without_any_object(data, tmp_path, run_train, monkeypatch, parts):
    """As when every crop misses them: only classes are learnt, and nothing is divided by zero."""
    compute = BatchGradients.compute

    def without_objects(self, samples):
        for sample in samples:
            target = sample["target"]
            target |= {name: target[name][:0] for name in ("labels", "masks")}
        return compute(self, samples)

    monkeypatch.setattr(BatchGradients, "compute", without_objects)
    out = tmp_path / "run"
    run_train("--data", data, "--output", out, *QUICK, "--steps", 2, "--accumulate", parts)
    for row in rows(out):
        assert float(row["loss_mask"]) == float(row["loss_dice"]) == 0 < float(row["loss_ce"])


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (10, 10_000)])
def test_images_of_extreme_sizes(tmp_path, run_train, size):
    folder, out = tmp_path / "data", tmp_path / "run"
    width, height = size
    square = [0, 0, width, 0, width, height, 0, height]
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        Image.new("RGB", size, "red").save(folder / split / "a.png")
        image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square]}
        annotation |= {"iscrowd": 0, "area": width * height, "bbox": [0, 0, width, height]}
        content = {"images": [image], "categories": [{"id": 1, "name": "thing"}]}
        (folder / "annotations").mkdir(exist_ok=True)
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content | {"annotations": [annotation]}))
    assert run_train("--data", folder, "--output", out, *QUICK, "--steps", 2) == 0
    assert all(float(row["loss"]) > 0 for row in rows(out)) and rows(out)[-1]["AP"] != ""


@pytest.mark.parametrize("amp", ["float16", "bfloat16"])
def test_with_amp_a_gradient_that_is_not_finite_is_skipped_and_counted(
    data, tmp_path, run_train, monkeypatch, capsys, amp
):
    """The weights stay; float16's scale halves. Too many in a row are an error all the same."""
    out = tmp_path / "run"
    options = ["--data", data, "--output", out, *QUICK, "--amp", amp, "--batch-size", 4]
    run_train(*options, "--steps", 1)
    before = read_checkpoint(out / "last.pt")
    skipped = before["training"]["progress"]["skipped_steps"]  # float16 begins with too large ones
    explode_losses(monkeypatch)
    run_train("--resume", out, "--steps", 3)
    assert f"{skipped + 2} steps were skipped" in capsys.readouterr().out
    after = read_checkpoint(out / "last.pt")
    assert after["training"]["progress"]["skipped_steps"] == skipped + 2
    for name, value in after["model"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before["model"][name]), name
    if amp == "float16":
        scales = [checkpoint["training"]["scaler"]["scale"] for checkpoint in (before, after)]
        assert scales[1] == scales[0] / 4
    monkeypatch.setattr(train, "MOST_SKIPPED", 2)
    with pytest.raises(InputError, match="step 6: gradient norm not finite"):
        run_train("--resume", out, "--steps", 9)


def test_a_time_limit_stops_in_time_and_the_run_goes_on(data, tmp_path, run_train, capsys):
    out = tmp_path / "run"
    options = ["--data", data, "--output", out, *QUICK, "--steps", 5000, "--eval-every", 5000]
    limit = time.monotonic() - train.STARTED + 4
    assert run_train(*options, "--time-limit", f"{limit:.1f}s") == 130
    assert time.monotonic() - train.STARTED < limit + 1
    done = len(rows(out))
    stopped = (
        f"stopped by the time limit after step {done}; continue with: python train.py --resume"
    )
    assert f"{stopped} {out}" in capsys.readouterr().out
    assert run_train("--resume", out, "--steps", done + 1, "--eval-every", 1) == 0
    assert len(rows(out)) == done + 1


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


def test_a_broken_image_is_found_before_the_first_step(tmp_path, run_train, capsys):
    folder = tmp_path / "broken"
    write_demo(folder, train=4, val=2, seed=0)
    victim = sorted((folder / "train").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:600])
    with pytest.raises(InputError, match="cannot be trained on"):
        run_train("--data", folder, "--output", tmp_path / "out", *QUICK, "--steps", 1)
    assert victim.name in capsys.readouterr().out


def test_a_run_is_neither_overwritten_nor_mixed_up(data, tmp_path, run_train):
    out = tmp_path / "run"
    run_train("--data", data, "--output", out, *QUICK, "--steps", 1)
    before = (out / "last.pt").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        run_train("--data", data, "--output", out, *QUICK, "--steps", 2)
    with pytest.raises(InputError, match="nothing is left"):
        run_train("--resume", out)
    with pytest.raises(InputError, match="--batch-size cannot change"):
        run_train("--resume", out, "--batch-size", 4)
    with pytest.raises(InputError, match="no training state"):
        run_train("--resume", out / "best.pt")
    other = tmp_path / "other"
    write_demo(other, train=5, val=2, seed=1)
    with pytest.raises(InputError, match="not what .* was trained on"):
        run_train("--resume", out, "--data", other, "--steps", 3)
    assert (out / "last.pt").read_bytes() == before


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


def test_resuming_can_extend_a_run(data, tmp_path, run_train):
    out = tmp_path / "run"
    run_train("--data", data, "--output", out, *QUICK, "--steps", 1)
    run_train("--resume", out, "--epochs", 1, "--weight-decay", 0.5)
    assert [row["step"] for row in rows(out)] == ["1", "2", "3"]
    groups = read_checkpoint(out / "last.pt")["training"]["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0, 0, 0.5, 0.5]


def test_an_output_folder_that_cannot_be_written(data, tmp_path, run_train):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write into the folder"):
        run_train("--data", data, "--output", tmp_path / "file" / "run", *QUICK, "--steps", 1)


def test_parameter_groups_hold_each_parameter_once_with_the_release_s_decay():
    import fastinst

    model = fastinst.create_model("fastinst-d1-r18-192")
    groups = parameter_groups(model, lr=1.0, backbone_lr=0.1, weight_decay=0.05)
    names = {parameter: name for name, parameter in model.named_parameters()}
    grouped = [names[p] for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values()) and len(groups) == 4
    of = {names[p]: group for group in groups for p in group["params"]}
    assert of["backbone.layer1.0.conv1.weight"]["lr"] == 0.1
    assert of["backbone.bn1.weight"]["weight_decay"] == 0
    assert of["decoder.layers.0.query_ffn.norm.bias"]["weight_decay"] == 0
    assert of["positions.weight"]["weight_decay"] == of["queries.aux_features"]["weight_decay"] == 0
    assert of["queries.classifier.bias"]["weight_decay"] == 0.05
    assert of["decoder.layers.0.query_ffn.linear1.weight"]["lr"] == 1.0


def test_a_run_of_an_earlier_version_is_not_resumed_but_named(tmp_path, run_train):
    out = tmp_path / "run"
    out.mkdir()
    model = create_model("fastinst-d1-r18-192", 4)
    save_checkpoint(out / "last.pt", model, None, None, {"step": 3, "arguments": {}})
    with pytest.raises(InputError, match="earlier version.*--weights"):
        run_train("--resume", out)
