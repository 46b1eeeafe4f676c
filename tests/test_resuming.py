"""Runs of train.py that are stopped, and go on as if they had not been."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_runs import PROGRAM, QUICK, make_data, rows, weights

import train
from fastinst.data.demo import write_demo
from fastinst.errors import InputError
from fastinst.model import create_model
from fastinst.weights import read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("training") / "my data")


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


def test_resuming_can_extend_a_run(data, tmp_path, run_train):
    out = tmp_path / "run"
    run_train("--data", data, "--output", out, *QUICK, "--steps", 1)
    run_train("--resume", out, "--epochs", 1, "--weight-decay", 0.5)
    assert [row["step"] for row in rows(out)] == ["1", "2", "3"]
    groups = read_checkpoint(out / "last.pt")["training"]["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0, 0, 0.5, 0.5]


def test_a_run_of_an_earlier_version_is_not_resumed_but_named(tmp_path, run_train):
    out = tmp_path / "run"
    out.mkdir()
    model = create_model("fastinst-d1-r18-192", 4)
    save_checkpoint(out / "last.pt", model, None, None, {"step": 3, "arguments": {}})
    with pytest.raises(InputError, match="earlier version.*--weights"):
        run_train("--resume", out)
