"""A run that is broken at an exact moment and resumed ends bit-equal to one that was not."""

import errno
import io
import os
import resource
import shutil
import signal

import pytest
import torch
from training_runs import QUICK, Run, assert_same_run, make_data

import train
from fastinst.data import loader
from fastinst.metrics.coco import CocoEvaluator
from fastinst.training import gradients, run_folder, validation
from fastinst.weights import read_checkpoint

OPTIONS = [*QUICK, "--steps", 7, "--eval-every", 3, "--ema", 0.9, "--warmup", 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("faults") / "my data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run = Run(["--data", data, "--output", folder / "run", *OPTIONS], folder / "printed.txt")
    code, printed = run.end()
    assert code == 0, printed
    return folder / "run"


@pytest.fixture
def broken(data, tmp_path):
    """Runs with a fault and resumes without."""

    def break_and_resume(fault, *more):
        out, printed_to = tmp_path / "run", tmp_path / "printed.txt"
        first = Run(["--data", data, "--output", out, *OPTIONS, *more], printed_to, fault).end()
        second = Run(["--resume", out], printed_to).end()
        assert second[0] == 0, first[1] + second[1]
        return out, first, second[1]

    return break_and_resume


def at_call(number, owner, name, act):
    """Replaces owner.name; its call of this number, from 1, runs `act` beforehand."""
    original, calls = getattr(owner, name), 0

    def replacement(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            act(*args)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_the_backward_pass():
    at_call(5, torch.Tensor, "backward", die)


def kill_before_the_first_checkpoint():
    at_call(2, torch.Tensor, "backward", die)


def kill_between_the_weights_and_their_average():
    at_call(5, train.ExponentialMovingAverage, "update", die)


def kill_half_way_through_a_checkpoint():
    """The second last.pt: step 3 wrote one and its best.pt before."""

    def write_half(checkpoint, file):
        buffer = io.BytesIO()
        torch.serialization.save(checkpoint, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        die()

    at_call(3, torch, "save", write_half)


def kill_between_writing_and_renaming():
    at_call(2, run_folder, "save_checkpoint", lambda *_: at_call(1, os, "replace", die))


def kill_after_keeping_the_former():
    at_call(2, run_folder, "save_checkpoint", lambda *_: at_call(2, os, "replace", die))


def kill_in_an_evaluation():
    at_call(4, CocoEvaluator, "update", die)  # the last image of the second


def kill_before_the_best_is_saved():
    at_call(1, validation, "save_checkpoint", die)


def kill_after_the_last_evaluation():
    at_call(3, CocoEvaluator, "summarize", lambda *_: at_call(1, run_folder.RunFolder, "save", die))


@pytest.mark.parametrize(
    "fault",
    [
        kill_in_the_backward_pass,
        kill_between_the_weights_and_their_average,
        kill_half_way_through_a_checkpoint,
        kill_between_writing_and_renaming,
        kill_after_keeping_the_former,
        kill_in_an_evaluation,
        kill_before_the_best_is_saved,
        kill_after_the_last_evaluation,
    ],
)
def test_kill_9(whole, broken, fault):
    out, (code, _), _ = broken(fault)
    assert code == -signal.SIGKILL
    assert_same_run(out, whole)
    assert not list(out.glob(".*"))  # nothing is left of files that were never finished


def test_killed_again_and_again(whole, data, tmp_path):
    """As on machines that may be taken away at any time, with one and the same command."""
    out, printed_to = tmp_path / "run", tmp_path / "printed.txt"
    command = ["--resume", "auto", "--data", data, "--output", out, *OPTIONS]
    faults = [kill_before_the_first_checkpoint, kill_in_the_backward_pass, kill_in_an_evaluation]
    for fault in faults:
        assert Run(command, printed_to, fault).end()[0] == -signal.SIGKILL
    code, printed = Run(command, printed_to).end()
    assert code == 0 and "resuming" in printed, printed
    assert_same_run(out, whole)


def fill_the_disk():
    """From the second checkpoint on, no file can grow to its length."""

    def limit(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    at_call(2, run_folder.RunFolder, "save", limit)


def test_a_full_disk(whole, broken):
    out, (code, printed), _ = broken(fill_the_disk)
    error = printed.splitlines()[-1]
    assert code == 2 and error.startswith("error: cannot write") and "Traceback" not in printed
    assert os.strerror(errno.EFBIG) in error and "last.pt of the run are as before" in error
    assert f"--resume {out}" in error
    assert_same_run(out, whole)


def kill_a_worker():
    """The one that loads the first image of the fifth step."""
    read, main = loader.TrainingImages.__getitem__, os.getpid()
    fatal = next(iter(loader.EpochSampler(6, 2, seed=0, start_step=4)))[0]

    def __getitem__(self, key):
        if key == fatal and os.getpid() != main:
            die()
        return read(self, key)

    loader.TrainingImages.__getitem__ = __getitem__


def test_a_worker_that_dies(whole, broken):
    out, (code, printed), resumed = broken(kill_a_worker, "--workers", 2)
    error = printed.splitlines()[-1]
    assert code == 2 and "a process that loads images died" in error, printed
    assert f"--resume {out}" in error and "Traceback" not in printed
    assert "resuming" in resumed
    assert_same_run(out, whole)


def truncate(content):
    return content[: len(content) // 2]


def flip_a_bit(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda _: b""])
def test_a_damaged_last_checkpoint(data, whole, tmp_path, damage):
    """The run goes on from the one before it, and says so."""
    out, printed_to = tmp_path / "run", tmp_path / "printed.txt"
    options = ["--data", data, "--output", out, *OPTIONS]
    assert Run(options, printed_to, kill_between_the_last_two).end()[0] == -signal.SIGKILL
    last = out / "last.pt"
    assert read_checkpoint(last)["training"]["progress"]["step"] == 6
    last.write_bytes(damage(last.read_bytes()))
    code, printed = Run(["--resume", out], printed_to).end()
    assert code == 0, printed
    assert f"warning: {last}" in printed and f"going on from {out / 'previous.pt'}" in printed
    assert "resuming" in printed and "after step 3" in printed
    assert_same_run(out, whole)


def kill_between_the_last_two():
    at_call(7, gradients.BatchGradients, "compute", die)


def test_an_image_that_becomes_unreadable(tmp_path):
    data, out = make_data(tmp_path / "data"), tmp_path / "run"
    victim = sorted((data / "train").iterdir())[1]
    process = Run(
        ["--data", data, "--output", out, *QUICK, "--steps", 9],
        tmp_path / "printed.txt",
        _Remove(victim),
    )
    code, printed = process.end()
    assert code == 0, printed
    warnings = [line for line in printed.splitlines() if "another image stands in" in line]
    assert 1 <= len(warnings) <= 2 and all(victim.name in line for line in warnings)
    times = f"{len(warnings)} times another image stood in for one that is unreadable"
    assert times in printed
    progress = read_checkpoint(out / "last.pt")["training"]["progress"]
    assert progress["step"] == 9 and progress["replaced_images"] == len(warnings)


class _Remove:
    """Deletes a file at the fourth step."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        at_call(4, gradients.BatchGradients, "compute", lambda *_: self.path.unlink())


def test_a_data_set_that_changed_is_refused(data, whole, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(whole, out)
    shutil.copytree(data, other)
    victim = sorted((other / "train").iterdir())[1]
    victim.write_bytes(victim.read_bytes() + b" ")
    before = (out / "last.pt").read_bytes()
    arguments = ["--resume", out, "--data", other, "--steps", 9]
    code, printed = Run(arguments, tmp_path / "printed.txt").end()
    error = printed.splitlines()[-1]
    assert code == 2 and f"is not what {out / 'last.pt'} was trained on" in error
    assert f"({victim.name}) has another length" in error
    assert (out / "last.pt").read_bytes() == before
