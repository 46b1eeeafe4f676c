"""The worker processes of a DataLoader: their start, and reading from them though they may die."""

import contextlib
import gc
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from fastinst.data.loader import EpochSampler, TrainingImages, collate
from fastinst.errors import InputError

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None

# What torch says of a worker, and of the thread that copies what the workers have read for a GPU.
_DIED = ("DataLoader worker", "Pin memory thread")


def start_worker(worker: int) -> None:
    """To be called in each worker before it reads anything (`worker_init_fn`)."""
    # Signals reach the workers too, but it is the main process that ends them.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    # A collection would write to the data set's objects, and so copy their shared memory.
    gc.freeze()


# What workers hand over takes an open file for every tensor: many images and workers are more than
# the 1024 that systems allow at first.
OPEN_FILES = 65536


def allow_open_files() -> None:
    """Let this process, and those it starts, open as many files as OPEN_FILES if they may."""
    if resource is None:
        return
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS allows fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def read_batches(
    images: TrainingImages, sampler: EpochSampler, workers: int, pin_memory: bool
) -> Iterator[Any]:
    """The sampler's batches of samples, made by so many processes, or with 0 by this one.

    Raises InputError, and only where a batch is asked for, if a worker died.
    """
    allow_open_files()
    loader = DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
        pin_memory=pin_memory,
    )
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # torch's own handler raises in the middle of whatever is running when a worker dies, be it a
    # step that is half done. Without it, the loader finds out when the worker's batch is due.
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    try:
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith(_DIED):
            raise
        raise InputError(
            f"a process that loads images died ({error}). Often memory ran out: try fewer --workers"
        ) from error
