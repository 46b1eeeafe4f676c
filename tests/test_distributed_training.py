"""Several processes train as one does, and end together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_faults import at_call, die
from training_runs import QUICK, Run, make_data, run_distributed

import train
from fastinst.training import arguments, sanity
from fastinst.training.gradients import BatchGradients
from fastinst.training.log import read_log
from fastinst.weights import read_checkpoint

# AdamW's first steps have the length of the learning rate wherever a gradient is not zero, be it
# no more than a rounding error, in which the processes differ.
OPTIONS = [*QUICK, "--batch-size", 4, "--lr", 1e-4, "--steps", 6, "--eval-every", 3, "--ema", 0.9]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images, of which the crops of some have no object."""
    return make_data(tmp_path_factory.mktemp("distributed") / "data", train=8, val=3)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    command = ["--data", data, "--output", folder / "run", *OPTIONS]
    code, printed = Run(command, folder / "printed.txt").end()
    assert code == 0, printed
    return folder / "run"


def end(runs):
    """Exit codes, and what all have printed."""
    codes, printed = zip(*(run.end() for run in runs), strict=True)
    return codes, "".join(printed)


def assert_same_numbers(found, expected, rel=1e-4):
    pairs = list(zip(read_log(found / "log.csv"), read_log(expected / "log.csv"), strict=True))
    for row, wanted in pairs:
        for name in ("step", "epoch", "lr", "loss", "loss_mask", "gradient_norm", "AP"):
            assert (name in row) == (name in wanted), (row["step"], name)
            if name in row:
                assert row[name] == pytest.approx(wanted[name], rel=rel), (row["step"], name)
    assert pairs


def test_two_processes_are_one(data, alone, tmp_path):
    """Losses, gradients and AP of every step, with batch norms that train."""
    command = ["--data", data, "--output", tmp_path / "run", *OPTIONS]
    codes, printed = end(run_distributed(command, tmp_path))
    assert codes == (0, 0), printed
    assert_same_numbers(tmp_path / "run", alone)
    assert printed.count("plan:") == printed.count("step 6: mask AP") == 1
    assert read_checkpoint(tmp_path / "run/last.pt")["training"]["progress"]["step"] == 6


def test_frozen_batch_norms_in_parts(data, alone, tmp_path):
    """Two processes in two parts each are one process at once."""
    options = [*OPTIONS, "--weights", alone / "best.pt", "--data", data, "--steps", 4]
    code, printed = Run([*options, "--output", tmp_path / "one"], tmp_path / "one.txt").end()
    assert code == 0 and "batch norms: frozen" in printed, printed
    options += ["--accumulate", 2, "--output", tmp_path / "two"]
    codes, printed = end(run_distributed(options, tmp_path))
    assert codes == (0, 0), printed
    assert_same_numbers(tmp_path / "two", tmp_path / "one")


def kill_before_the_fourth_step():
    at_call(4, BatchGradients, "compute", die)


def test_another_number_of_processes_goes_on(data, alone, tmp_path):
    """Two are killed after step 3, four take it up for a step, and one ends it."""
    out = tmp_path / "run"
    command = ["--data", data, "--output", out, *OPTIONS]
    faults = dict.fromkeys((0, 1), kill_before_the_fourth_step)
    codes, _ = end(run_distributed(command, tmp_path, faults=faults))
    assert codes == (-signal.SIGKILL,) * 2
    codes, printed = end(run_distributed(["--resume", out, "--steps", 6], tmp_path, world=4))
    assert codes == (0,) * 4, printed
    assert_same_numbers(out, alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_run_with_one_error(data, tmp_path, rank):
    command = ["--data", data, "--output", tmp_path / "run", *OPTIONS, "--batch-size", 3]
    runs = run_distributed(command, tmp_path, 3, {rank: kill_before_the_fourth_step})
    codes, printed = end(runs)
    assert [code for i, code in enumerate(codes) if i != rank] == [2, 2], printed
    assert codes[rank] == -signal.SIGKILL
    assert printed.count("error: ") == 1 and "has lost another one of this run" in printed, printed
    assert "continue with --resume" in printed and "Traceback" not in printed
    assert read_checkpoint(tmp_path / "run/last.pt")["training"]["progress"]["step"] == 3


def break_the_loss():
    def explode(self, samples):
        losses = compute(self, samples)
        return losses | {"loss_ce": losses["loss_ce"] * float("nan")}

    compute, BatchGradients.compute = BatchGradients.compute, explode


def test_an_error_that_all_have_is_told_once(data, tmp_path):
    """It names the images of all processes."""
    command = ["--data", data, "--output", tmp_path / "run", *OPTIONS]
    codes, printed = end(run_distributed(command, tmp_path, faults={1: break_the_loss}))
    assert codes == (2, 2) and printed.count("error: ") == 1, printed
    error = printed[printed.index("error: ") :]
    assert len(error[error.index("images ") : error.index(";")].split(",")) == 4
    assert "Traceback" not in printed


def test_a_wrong_path_is_told_once(tmp_path):
    codes, printed = end(run_distributed(["--data", tmp_path / "nowhere", *OPTIONS], tmp_path))
    assert codes == (2, 2) and printed.count("error: ") == 1 and "nowhere" in printed, printed


def learn_nothing():
    sanity.MOST_STEPS, sanity.LEARNED, sanity.UNSEEN = 1, 2, 2


def test_one_process_tries_whether_the_data_can_be_learnt(data, tmp_path):
    command = ["--data", data, "--output", tmp_path, *QUICK, "--sanity"]
    codes, printed = end(
        run_distributed(command, tmp_path, faults=dict.fromkeys((0, 1), learn_nothing))
    )
    assert codes == (1, 0) and printed.count("FAIL: the time was over at step 1") == 1, printed


def see_no_run():
    arguments.resolve_resume = train.resolve_resume = lambda *_: None


def test_a_folder_that_only_one_process_can_read(data, alone, tmp_path):
    """As a disk of one machine among several: the others would start anew, and nobody notice."""
    shutil.copytree(alone, tmp_path / "run")
    command = ["--resume", "auto", "--data", data, "--output", tmp_path / "run", *OPTIONS]
    command += ["--steps", 9]
    codes, printed = end(run_distributed(command, tmp_path, faults={1: see_no_run}))
    assert codes == (2, 2) and printed.count("error: ") == 1, printed
    assert "process 1 is at step 0 and others are further" in printed, printed


def test_under_torchrun_a_killed_process_ends_the_run(data, tmp_path):
    """The real one: it ends soon, and of all that it prints one line says what to do."""
    program = tmp_path / "program.py"
    folders = [str(Path(train.__file__).parent), str(Path(__file__).parent)]
    program.write_text(
        f"import os, sys; sys.path[:0] = {folders}\n"
        "import train; from fastinst.errors import run\n"
        "from test_distributed_training import kill_before_the_fourth_step as fault\n"
        "if os.environ['RANK'] == '1': fault()\n"
        "run(train.main)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [program, "--data", data, "--output", tmp_path / "run", *OPTIONS]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert done.stderr.count("\nerror: ") == 1 and "has lost another one" in done.stderr, (
        done.stderr
    )
    assert read_checkpoint(tmp_path / "run/last.pt")["training"]["progress"]["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_and_all_its_processes_saves(data, tmp_path, signum):
    """As Ctrl-C in a terminal: torchrun passes on what its processes have got already."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [train.__file__, "--data", data, "--output", out, *OPTIONS, "--steps", 5000]
    command += ["--eval-every", 5000]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    _wait_for_steps(process, out / "log.csv", 2)
    os.killpg(process.pid, signum)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "continue with: torchrun ... train.py --resume" in printed, (
        printed
    )
    assert read_checkpoint(out / "last.pt")["training"]["progress"]["step"] >= 2


def _wait_for_steps(process: subprocess.Popen, log: Path, steps: int):
    deadline = time.monotonic() + 120
    while not log.exists() or len(read_log(log)) < steps:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--size", 0], "argument --size: must be positive"), (["--resume", "nowhere"], "nowhere")],
)
def test_wrong_arguments_are_told_once(data, tmp_path, options, message):
    arguments = ["--data", data, "--output", tmp_path / "run", *options]
    codes, printed = end(run_distributed(arguments, tmp_path))
    assert codes == (2, 2)
    assert printed.count(message) == printed.count("error:") == 1
