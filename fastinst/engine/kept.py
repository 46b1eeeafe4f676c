"""Things that only depend on an input's size: computed once for each of the last sizes."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor


def kept(
    tensors: OrderedDict[tuple[int, ...], Tensor],
    key: tuple[int, ...],
    compute: Callable[[tuple[int, ...]], Tensor],
    most: int,
) -> Tensor:
    """`compute(key)`, from `tensors` if it is there, which holds so many of the last at most.

    Threads may share `tensors`: of those that miss at once each computes.
    """
    tensor = tensors.pop(key, None)
    if tensor is None:
        tensor = compute(key)
    tensors[key] = tensor
    while len(tensors) > most:
        tensors.popitem(last=False)
    return tensor
