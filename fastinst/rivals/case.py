"""The shapes of the cases, those of FastInst-D3 with one photograph of 480 x 640; their parts."""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Sizes are (height, width): of the original, resized to the network's input, and padded.
ORIGINAL, RESIZED, PADDED = (480, 640), (640, 854), (640, 864)
CHANNELS, HEADS, CLASSES = 256, 8, 80
QUERIES, AUXILIARY = 100, 8

Call = Callable[[], object]


class Case(NamedTuple):
    """One operator with one kind of input, in the hands of several that compute the same."""

    op: str
    name: str
    rivals: dict[str, Call]  # the first is "kernel", the operator itself
    absent: dict[str, str]  # those that cannot run here, and why
    exact: bool = False  # all give the same bits, whatever comes first in their results


def definition(op: str, name: str = "definition") -> Callable:
    # The package's attribute of this name is the operator.
    return getattr(importlib.import_module(f"fastinst.ops.{op}"), name)


def backward(function: Callable[..., Tensor], *inputs: Tensor) -> Call:
    """The backward pass alone of function(*inputs)."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    # At the first call, where it may fail: not every rival has every dtype.
    @functools.cache
    def forward() -> tuple[Tensor, Tensor]:
        output = function(*leaves)
        return output, torch.ones_like(output)

    def run() -> tuple[Tensor, ...]:
        output, grad = forward()
        return torch.autograd.grad(output, leaves, grad, retain_graph=True)

    return run
