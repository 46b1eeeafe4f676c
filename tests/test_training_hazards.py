"""What data and numbers may do to a run of train.py."""

import json
import shutil

import pytest
import torch
from PIL import Image
from training_runs import QUICK, edit_json, make_data, rows, weights

import train
from fastinst.data.demo import write_demo
from fastinst.errors import InputError
from fastinst.model import FastInst
from fastinst.training.gradients import BatchGradients
from fastinst.weights import read_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("training") / "my data")


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


def test_a_broken_image_is_found_before_the_first_step(tmp_path, run_train, capsys):
    folder = tmp_path / "broken"
    write_demo(folder, train=4, val=2, seed=0)
    victim = sorted((folder / "train").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:600])
    with pytest.raises(InputError, match="cannot be trained on"):
        run_train("--data", folder, "--output", tmp_path / "out", *QUICK, "--steps", 1)
    assert victim.name in capsys.readouterr().out
