"""train.py and evaluate.py on all tasks of a folder in the shape of Cityscapes."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from small_cityscapes import write_cityscapes
from small_coco import program_runner
from training_runs import PROGRAM, rows

from fastinst.config import make_config
from fastinst.data.formats import load_dataset, load_splits
from fastinst.errors import InputError
from fastinst.metrics.measures import MEASURES
from fastinst.training.arguments import parse_arguments, training_views
from fastinst.training.schedule import Schedule
from fastinst.weights import load_model, read_checkpoint

TINY = (
    "--model fastinst-d1-r18-192 --size 64 --set test_max_edge=128 num_points=32 ffn_dim=32 "
    "hidden_dim=64 --steps 1 --batch-size 2 --workers 0 --device cpu"
).split()


@pytest.fixture
def root(tmp_path):
    root = write_cityscapes(tmp_path / "city scapes", "train", 2)
    return write_cityscapes(root, "val", 2, seed=1)


def test_the_recipe_is_the_supplement_s():
    args, _ = parse_arguments("", ["--data", "x", "--recipe", "cityscapes"])
    plan = Schedule.plan(
        2975, args.batch_size, steps=args.steps, lr=args.lr, warmup=args.warmup, drops_at=args.drops
    )
    assert (plan.steps, args.batch_size, plan.lr, plan.drops) == (
        90_000,
        16,
        1e-4,
        [81_000, 85_500],
    )
    config = make_config(args.model)
    assert (config.test_short_edge, config.test_max_edge) == (1024, 2048)
    assert (config.backbone, config.num_layers) == ("resnet50", 3)
    views = training_views(args.augmentation, config)
    assert views.size == (512, 1024) and views.short_edges == tuple(range(800, 1025, 32))


def test_options_override_the_recipe():
    given = ["--data", "x", "--recipe", "cityscapes", "--epochs", "3", "--batch-size", "8"]
    args, _ = parse_arguments("", given)
    assert (args.steps, args.epochs, args.batch_size, args.warmup) == (None, 3, 8, 10)


def test_without_a_recipe_the_drops_are_the_release_s():
    args, _ = parse_arguments("", ["--data", "x"])
    plan = Schedule.plan(10, 16, steps=368_750, drops_at=args.drops)
    assert plan.drops == [327_778, 355_092]


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_train_and_evaluate(root, tmp_path, monkeypatch, capsys, task):
    options = ("--data", root, "--task", task)
    run = program_runner(monkeypatch, capsys, PROGRAM)
    folder = tmp_path / "run"
    code, out, _ = run(
        *options, "--recipe", "cityscapes", *TINY, "--output", folder, load_model=load_model
    )
    assert code == 0
    assert ("--task" in out.splitlines()[-1]) == (task != "instance")
    for checkpoint in ("best.pt", "last.pt"):
        is_thing = load_model(folder / checkpoint)[1].is_thing
        assert is_thing == load_dataset(root, "train", task=task).is_thing
    measure = MEASURES[task]
    (row,) = rows(folder)
    assert [name for name in row if name in ("AP", "PQ", "mIoU")] == [measure.chief]
    assert f"best {measure.title} {float(row[measure.chief]):.2f}; the last evaluation" in out

    run = program_runner(monkeypatch, capsys, PROGRAM.with_name("evaluate.py"))
    report = tmp_path / "numbers.json"
    given = [folder / "best.pt", *options, "--device", "cpu", "--output", report]
    if importlib.util.find_spec("cityscapesscripts"):
        given += ["--cityscapes", tmp_path / "results"]
    code, out, _ = run(*given, load_model=load_model)
    numbers = json.loads(report.read_text())
    name = {"instance": "AP", "panoptic": "PQ", "semantic": "mIoU"}[task]
    assert code == 0 and 0 <= numbers[name] <= 100 and numbers["images"] == 2
    assert numbers[name] == pytest.approx(float(row[name]), abs=1e-3)
    if "cityscapes" in numbers and task != "instance":
        assert math.isclose(numbers["cityscapes"][name], numbers[name], rel_tol=1e-9)


def make_it_one_of_before(folder, **more):
    """A run of a version that judged every task by mask AP, which was 99."""
    checkpoint = read_checkpoint(folder / "last.pt")
    progress = checkpoint["training"]["progress"]
    for name in ("best", "judged_by"):
        del progress[name]
    progress |= {"best_ap": 99.0} | more
    torch.save(checkpoint, folder / "last.pt")


def test_a_run_that_mask_ap_has_judged_goes_on_by_its_task_s_own(root, tmp_path, run_train, capsys):
    """Its highest AP must not stand in the way of the first mIoU, nor its patience be over."""
    folder = tmp_path / "run"
    given = ["--data", root, "--task", "semantic", *TINY, "--output", folder, "--eval-every", 1]
    run_train(*given)
    make_it_one_of_before(folder, evaluations_in_vain=1)
    log = folder / "log.csv"
    log.write_text(log.read_text().replace("mIoU,accuracy", "AP,AP50"))
    best = (folder / "best.pt").read_bytes()
    capsys.readouterr()

    assert run_train("--resume", folder, "--steps", 2, "--patience", 1) == 0
    printed = capsys.readouterr().out
    assert "judged by AP; from here on it is mIoU" in printed
    before, after = rows(folder)
    assert before["AP"] and not before["mIoU"] and after["mIoU"] and not after["AP"]
    assert f"best mIoU {float(after['mIoU']):.2f}" in printed
    assert (folder / "best.pt").read_bytes() != best
    run_train("--resume", folder, "--steps", 3)
    assert "judged by" not in capsys.readouterr().out


def test_instance_runs_of_before_keep_their_best(root, tmp_path, run_train, capsys):
    folder = tmp_path / "run"
    run_train("--data", root, *TINY, "--output", folder)
    make_it_one_of_before(folder)
    best = (folder / "best.pt").read_bytes()
    assert run_train("--resume", folder, "--steps", 2) == 0
    assert "best mask AP 99.00" in capsys.readouterr().out
    assert (folder / "best.pt").read_bytes() == best


def test_processes_judge_a_run_together(root, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += map(str, [PROGRAM, "--data", root, "--task", "semantic", *TINY, "--output", folder])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(folder)
    assert row["mIoU"] and "pixel accuracy" in done.stdout and "(2 images)" in done.stdout


def test_other_formats_have_no_stuff(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    with pytest.raises(InputError, match="panoptic segmentation needs COCO's panoptic"):
        load_splits(tmp_path, task="panoptic")


def test_a_missing_package_is_said_before_anything_else(root, tmp_path, monkeypatch, capsys):
    module = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
    monkeypatch.setitem(sys.modules, module, None)
    run = program_runner(monkeypatch, capsys, PROGRAM.with_name("evaluate.py"))
    code, _, err = run("no such model", "--data", root, "--cityscapes", tmp_path / "results")
    assert code == 2 and "pip install cityscapesscripts" in err
