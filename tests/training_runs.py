"""Runs of train.py in processes of their own, which tests may break at an exact moment.

They fork from a server that has imported everything already, and their model's backbone is a few
convolutions, so that one takes a second and not ten.
"""

import csv
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastinst.model
import train
from fastinst.backbone import FrozenBatchNorm2d, Normalised, conv3x3
from fastinst.data.demo import write_demo
from fastinst.errors import run
from fastinst.training.log import read_log
from fastinst.weights import read_checkpoint

TINY = "--model fastinst-d1-r18-192 --size 64 --set num_points=32 ffn_dim=32 hidden_dim=64"
QUICK = f"{TINY} --batch-size 2 --workers 0 --device cpu --lr 1e-3 --backbone-lr 1".split()
PROGRAM = Path(train.__file__)
OF_THE_CLOCK = ("seconds", "images_per_second", "memory_mib")

_context = multiprocessing.get_context("forkserver")
# By their names from the repository's root; elsewhere they are imported by each process.
_context.set_forkserver_preload(["train", "fastinst.data.demo", "torch._dynamo", "pytest"])


class SmallBackbone(nn.Module):
    """Has what `fastinst.backbone.ResNet` has, but 40 kB in place of 45 MB in each checkpoint."""

    channels = (16, 24, 32)

    def __init__(self, name: str, frozen_batch_norm: bool = True):
        super().__init__()
        self.norm = FrozenBatchNorm2d if frozen_batch_norm else nn.BatchNorm2d
        widths = (3, 8, *self.channels)
        self.convs = nn.ModuleList(
            conv3x3(*pair, stride=4 if i == 0 else 2) for i, pair in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(map(self.norm, widths[1:]))

    def forward(self, x):
        features, normalised = [], self.normalised()
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = normalised(conv, norm, x, relu=True)
            features.append(x)
        return features[1:]

    def normalised(self) -> Normalised:
        return Normalised(self)


class Run:
    """train.py with these arguments in a process of its own.

    printed_to: a file for what it prints
    fault: called there beforehand, to break something
    environment: added to it
    """

    def __init__(self, arguments, printed_to: Path, fault: Callable | None = None, environment=()):
        self._printed_to = printed_to
        arguments = [str(argument) for argument in arguments]
        options = (arguments, printed_to, fault, dict(environment))
        self.process = _context.Process(target=_train, args=options)
        self.process.start()

    def end(self, timeout: float = 60) -> tuple[int, str]:
        """Its exit code, negative for a signal, and what it has printed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"still running after {timeout} s:\n{self._printed_to.read_text()}")
        return self.process.exitcode, self._printed_to.read_text()


def _train(arguments, printed_to, fault, environment):
    # Of this process and of those that it starts.
    printed = os.open(printed_to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    for stream, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, stream, open(number, "w", buffering=1, closefd=False))
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # of workers, which so share the fault
    fastinst.model.ResNet = SmallBackbone
    os.fsync = lambda _: None  # what a killed process has written stays, and only then it is slow
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # whatever depends on the state of torch's generator shows
    os.environ.update(environment)
    sys.argv = ["train.py", *arguments]
    if fault:
        fault()
    run(train.main)


def run_distributed(arguments, folder: Path, world: int = 2, faults=None) -> list[Run]:
    """The processes of one run, as torchrun would start them, which has the store that they share.

    faults: by rank
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"WORLD_SIZE": str(world), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    runs = [
        Run(
            arguments,
            folder / f"rank{rank}.txt",
            (faults or {}).get(rank),
            environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]
    runs[0].store = store  # which must outlive them
    return runs


def make_data(folder: Path, train: int = 6, val: int = 2) -> Path:
    write_demo(folder, train=train, val=val, seed=0)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    """Of a run's log, as text."""
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's last checkpoint."""
    return read_checkpoint(folder / "last.pt")["model"]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same_run(found: Path, expected: Path) -> None:
    """Everything that two folders of finished runs hold is bit-equal, but for what a clock says."""
    for name in ("last.pt", "best.pt"):
        _assert_equal(read_checkpoint(found / name), read_checkpoint(expected / name), name)
    rows = [
        [
            {k: v for k, v in row.items() if k not in OF_THE_CLOCK}
            for row in read_log(folder / "log.csv")
        ]
        for folder in (found, expected)
    ]
    assert rows[0] == rows[1]


def _assert_equal(found, expected, name):
    if isinstance(expected, dict):
        # Where and how a run was started may differ.
        keys = expected.keys() - {"arguments", *OF_THE_CLOCK}
        assert keys == found.keys() - {"arguments", *OF_THE_CLOCK}, name
        for key in keys:
            _assert_equal(found[key], expected[key], f"{name}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for i, pair in enumerate(zip(found, expected, strict=True)):
            _assert_equal(*pair, f"{name}/{i}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), name
    else:
        assert found == expected, name
