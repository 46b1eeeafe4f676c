"""Checkpoints of a run: whatever happens, one of the last two can be read, and no more is lost."""

import errno
import os
import random
import resource
import signal
import time

import pytest
import torch
from torch import nn

from fastinst import files
from fastinst.config import make_config
from fastinst.errors import InputError
from fastinst.training.run_folder import RunFolder, resolve_resume
from fastinst.weights import save_checkpoint


class Model(nn.Linear):
    """All that a checkpoint needs of a model."""

    def __init__(self, size=8):
        super().__init__(size, size)
        self.config = make_config("fastinst-d1-r18-192", num_classes=2)


def save(run, step, model=None):
    run.save(model or Model(), ["a", "b"], [1, 2], {"progress": {"step": step}})


def saved(tmp_path, *steps):
    run = RunFolder(tmp_path)
    for step in steps:
        save(run, step)
    return run


def loaded(path):
    checkpoint, file, note = RunFolder(path).load()
    return checkpoint["training"]["progress"]["step"], file.name, note


def names(folder):
    return sorted(os.listdir(folder))


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "without its end":
        path.write_bytes(data[:-1])
    elif how == "flipped":
        place = data.index(Model.marker) + 5
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


Model.marker = torch.arange(1.0, 9.0).numpy().tobytes()


def test_the_last_two_are_kept(tmp_path):
    run = saved(tmp_path, 1)
    assert names(tmp_path) == ["last.pt"] and loaded(tmp_path) == (1, "last.pt", None)
    for step in (2, 3):
        save(run, step)
    assert names(tmp_path) == ["last.pt", "previous.pt"]
    assert loaded(tmp_path) == (3, "last.pt", None)
    assert loaded(tmp_path / "previous.pt") == (2, "previous.pt", None)
    assert loaded(tmp_path / "last.pt") == (3, "last.pt", None)


@pytest.mark.parametrize("how", ["missing", "empty", "cut short", "without its end", "flipped"])
def test_a_damaged_last_falls_back_to_the_previous_and_says_so(tmp_path, how):
    model = Model()
    model.bias.data = torch.arange(1.0, 9.0)
    run = RunFolder(tmp_path)
    for step in (10, 20):
        save(run, step, model)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    damage(last, how)
    step, file, note = loaded(tmp_path)
    assert (step, file) == (10, "previous.pt")
    for word in (last, previous, "saved at step 10"):
        assert str(word) in note
    assert "\n" not in note

    # What is saved next must not push the good one out in favour of the damaged one.
    good = previous.read_bytes()
    save(RunFolder(tmp_path), 20)
    assert previous.read_bytes() == good and loaded(tmp_path) == (20, "last.pt", None)

    damage(last, "cut short")
    damage(previous, "cut short")
    with pytest.raises(InputError) as caught:
        loaded(tmp_path)
    assert str(last) in str(caught.value) and str(previous) in str(caught.value)


def test_no_flipped_bit_is_taken_for_weights(tmp_path):
    """It is found, or it is in what no tensor is read from."""
    run = saved(tmp_path, 1, 2)
    last = tmp_path / "last.pt"
    good, whole = last.read_bytes(), run.load()[0]
    found = 0
    for place in random.Random(0).sample(range(len(good)), 150):
        last.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        checkpoint, _, note = run.load()
        found += note is not None
        if note is None:
            assert checkpoint["training"] == {"progress": {"step": 2}}
            for name, value in whole["model"].items():
                assert torch.equal(value, checkpoint["model"][name])
    assert found > 50


class Killed(BaseException):
    """Ends the process in the middle of a call."""


@pytest.mark.parametrize("links", [True, False])
def test_between_any_two_calls_one_of_both_is_good(tmp_path, monkeypatch, links):
    """Ends `save` before and after each call that touches the disk's names."""

    def failing(*_):
        raise OSError(errno.EPERM, "no links here")

    link = os.link if links else failing

    def interrupted_save(ending_at):
        done = 0

        def counted(call):
            def wrapper(*arguments, **options):
                nonlocal done
                for _ in range(2):  # once before the call and once after it
                    done += 1
                    if done == ending_at:
                        raise Killed
                    if done % 2:
                        result = call(*arguments, **options)
                return result

            return wrapper

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", counted(link))
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(os, "fsync", counted(os.fsync))
            try:
                save(RunFolder(tmp_path), 30)
            except Killed:
                return True
        return False

    ending_at = 1
    while True:
        for path in tmp_path.iterdir():
            path.unlink()
        saved(tmp_path, 10, 20)
        if not interrupted_save(ending_at):
            break
        assert loaded(tmp_path)[0] in (20, 30), ending_at
        save(RunFolder(tmp_path), 40)
        assert loaded(tmp_path) == (40, "last.pt", None)
        assert names(tmp_path) == ["last.pt", "previous.pt"], ending_at
        ending_at += 1
    assert ending_at > 8
    assert loaded(tmp_path)[0] == 30 and loaded(tmp_path / "previous.pt")[0] == 20


def test_kill_9_at_any_moment(tmp_path):
    """Another process saves without end; after each kill the newest whole state is there."""
    model, step, chance = Model(700), 0, random.Random(1)
    for _ in range(12):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run = RunFolder(tmp_path)
                while True:
                    step += 1
                    save(run, step, model)
                    os.write(write, step.to_bytes(4, "little"))
            finally:
                os._exit(1)
        os.close(write)
        told = os.read(read, 4)
        time.sleep(chance.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 4):
            told = more
        os.close(read)
        newest = int.from_bytes(told, "little")
        step, _, note = loaded(tmp_path)
        assert step in (newest, newest + 1) and note is None  # +1: saved, and not yet told
        if newest > 1:
            assert loaded(tmp_path / "previous.pt")[0] in (step - 1, step)
    save(RunFolder(tmp_path), step + 1)
    assert names(tmp_path) == ["last.pt", "previous.pt"]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_run_as_it_was(tmp_path, monkeypatch, where):
    run = saved(tmp_path, 10, 20)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if where == "write":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    elif where == "fsync":
        monkeypatch.setattr(files.os, "fsync", full_disk)
    elif where == "replace":
        replace = os.replace

        def fail_for_last(source, target):
            (full_disk if str(target).endswith("last.pt") else replace)(source, target)

        monkeypatch.setattr(files.os, "replace", fail_for_last)
    try:
        with pytest.raises(InputError) as caught:
            save(run, 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        monkeypatch.undo()
    reason = "File too large" if where == "write" else "No space left on device"
    for word in (tmp_path / "last.pt", reason, f"--resume {tmp_path}", "previous.pt"):
        assert str(word) in str(caught.value)
    assert loaded(tmp_path) == (20, "last.pt", None)
    if where != "replace":  # where the former last.pt may be the previous one already
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    save(run, 30)
    assert loaded(tmp_path) == (30, "last.pt", None)
    assert loaded(tmp_path / "previous.pt")[0] == 20
    assert names(tmp_path) == ["last.pt", "previous.pt"]


def test_only_checkpoints_that_were_never_finished_are_deleted(tmp_path):
    for name in (".last.pt.x1.unfinished", ".best.pt.x2.unfinished", ".previous.pt.7.unfinished"):
        (tmp_path / name).touch()
    others = [".notes", ".other.pt.x.unfinished", "last.pt.unfinished", "log.csv"]
    for name in others:
        (tmp_path / name).touch()
    RunFolder(tmp_path)
    assert len(names(tmp_path)) == 7
    saved(tmp_path, 1)
    assert names(tmp_path) == sorted([*others, "last.pt"])


def test_checkpoints_without_training_state_are_refused_with_the_way_on(tmp_path):
    save_checkpoint(tmp_path / "best.pt", Model(), ["a", "b"], [1, 2])
    with pytest.raises(InputError, match="best.pt holds no training state.*--weights"):
        RunFolder(tmp_path / "best.pt").load()
    (tmp_path / "step 7.pt").write_bytes(b"PK\x03\x04 nonsense")
    saved(tmp_path, 1, 2)
    with pytest.raises(InputError, match="step 7.pt is damaged"):  # and no other one is taken
        RunFolder(tmp_path / "step 7.pt").load()


def test_what_resume_means(tmp_path):
    output = tmp_path / "my run"
    assert resolve_resume("auto", output) is None
    output.mkdir()
    (output / "log.csv").touch()  # of a run that ended before its first checkpoint
    assert resolve_resume("auto", output) is None
    saved(output, 1, 2)
    assert resolve_resume("auto", output) == resolve_resume(str(output), "elsewhere") == output
    previous = output / "previous.pt"
    assert resolve_resume(str(previous), output) == previous
    (output / "last.pt").unlink()
    assert resolve_resume("auto", output) == output

    save_checkpoint(tmp_path / "best.pt", Model(), ["a", "b"], [1, 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for resume, output_, *words in (
        (tmp_path / "nowhere", output, "nowhere", "no such file or folder"),
        (tmp_path / "empty", output, "empty", "holds no last.pt"),
        (tmp_path, output, "best.pt", "no training state", "--weights", "another --output"),
        ("auto", tmp_path, "best.pt", "no training state", "another --output"),
    ):
        with pytest.raises(InputError) as caught:
            resolve_resume(str(resume), output_)
        assert all(word in str(caught.value) for word in words)
    (tmp_path / "best.pt").unlink()
    saved(output, 3)
    with pytest.raises(InputError, match="there are runs below it: .*my run"):
        resolve_resume(str(tmp_path), output)
