import os
import signal
import sys
from pathlib import Path

import pytest
import torch


def pytest_configure():
    """FASTINST_DEVICE=cuda runs the tests on a GPU, wherever they do not choose a device."""
    if os.environ.get("FASTINST_DEVICE"):
        torch.set_default_device(os.environ["FASTINST_DEVICE"])


@pytest.fixture(autouse=True)
def _seed():
    """The same random numbers in a test whether it runs alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def _signals():
    """Programs that run in this process handle signals no longer than the test."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture
def run_train(monkeypatch, _signals):
    """Runs train.main() in this process with the given arguments."""
    import train  # and all that it needs, which few tests do

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        return train.main()

    return call


@pytest.fixture
def predict(monkeypatch, capsys, _signals):
    """Runs predict.py in this process, by default with `ColourModel`; see `program_runner`."""
    from small_coco import program_runner

    program = Path(__file__).parents[1] / "predict.py"
    return program_runner(monkeypatch, capsys, program, "--device", "cpu")


@pytest.fixture
def run_benchmark(monkeypatch, capsys):
    """Runs benchmark.py in this process: (arguments) -> (exit code, stdout, stderr)."""
    import benchmark
    from fastinst.errors import run

    # Set to what it is, so that it is that again after the test: the program changes it.
    monkeypatch.setattr(torch.backends, "fp32_precision", torch.backends.fp32_precision)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run(benchmark.main)
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return call
