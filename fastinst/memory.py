"""Going on with less where a device's memory runs out."""

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")


class LargestBatch:
    """How many items a device has memory for at once, which is found out by failing.

    device: what messages call it
    """

    def __init__(self, device: str):
        self.device = device
        self.size = sys.maxsize

    def compute(self, function: Callable[[list[T]], list[R]], items: list[T]) -> list[R]:
        """`function(items)`, in parts if there is not enough memory for all at once.

        Warns of a new largest size once it has worked. What happens with a single item is raised.
        """
        results: list[R] = []
        failed = 0
        while len(results) < len(items):
            part = items[len(results) :][: self.size]
            try:
                results += function(part)
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                failed = failed or len(part)
                self.size = min(self.size, len(part) // 2)
                continue  # here the error and with it what the failed call held are gone
            if failed:
                warnings.warn(
                    f"{self.device} has not enough memory for {failed} images at once; "
                    f"{len(part)} work, and are the most it gets from now on",
                    stacklevel=2,
                )
                failed = 0
        return results


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device's memory, or the host's, ran out."""
    # PyTorch's own class is for GPUs alone.
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )
