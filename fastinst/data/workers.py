"""The worker processes of a DataLoader: their start, and reading from them though they may die."""

import gc
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from fastinst.errors import InputError

# What torch says of a worker, and of the thread that copies what the workers have read for a GPU.
_DIED = ("DataLoader worker", "Pin memory thread")


def start_worker(worker: int) -> None:
    """To be called in each worker before it reads anything (`worker_init_fn`)."""
    # Signals reach the workers too, but it is the main process that ends them.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    # A collection would write to the data set's objects, and so copy their shared memory.
    gc.freeze()


def read_batches(loader: DataLoader) -> Iterator[Any]:
    """What the loader yields.

    Raises InputError, and only where a batch is asked for, if a worker died.
    """
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
