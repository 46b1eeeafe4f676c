"""What a measurement says of itself."""

import json
from pathlib import Path

import torch

import fastinst
from fastinst import records
from fastinst.records import describe_command, describe_machine, print_machine

PACKAGE = Path(fastinst.__file__).parent


def test_a_command_can_be_repeated_elsewhere():
    module = [str(PACKAGE / "loading_timing.py"), "/somewhere/my data", "--csv", "rows/a.csv"]
    assert describe_command(module) == (
        "python -m fastinst.loading_timing 'my data' --csv rows/a.csv"
    )
    assert describe_command(["benchmark.py", "--ops"]) == "python benchmark.py --ops"
    assert describe_command(["/here/benchmark.py", "d1"]) == "python benchmark.py d1"


def test_what_is_known_of_the_machine(capsys):
    known = describe_machine(torch.device("cpu"))
    assert json.loads(json.dumps(known)) == known
    assert known["threads"] == torch.get_num_threads() and known["torch"] == torch.__version__
    assert known["isa"].startswith(torch.backends.cpu.get_cpu_capability())
    print_machine(known)
    out = capsys.readouterr().out
    assert known["machine"] in out and known["torch"] in out and "CUDA" not in out


def test_a_gpu_as_nvidia_smi_describes_it(monkeypatch):
    answers = ["575.57, 700.00 W, 1980 MHz, 35\n", "No devices were found\n"]

    class Answer:
        def communicate(self):
            return answers.pop(0), None

    monkeypatch.setattr(records, "query_gpu", lambda device, columns: Answer())
    gpu = records.describe_gpu(torch.device("cuda"))
    assert gpu["driver_version"] == "575.57" and gpu["power.limit"] == "700.00 W"
    assert records.describe_gpu(torch.device("cuda")) == {}
    monkeypatch.setattr(records, "query_gpu", lambda device, columns: None)
    assert records.describe_gpu(torch.device("cuda")) == {}
