import os
import signal
import sys

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
def run_train(monkeypatch):
    """Runs train.main() in this process with the given arguments."""
    import train  # and all that it needs, which few tests do

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        return train.main()

    yield call
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


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
