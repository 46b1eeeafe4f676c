"""Positions of the pixels, which only depend on the input's size: computed once for each size."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fastinst.engine.kept import kept
from fastinst.engine.linear import linear
from fastinst.positions import Positions

# Of COCO's images at 640 x 864 four of five have one of the last eight sizes. At D3-R50-640 in
# float32 a size takes 64 MB, most of them for the attentions' terms, and some 25 ms to make.
KEPT_SIZES = 8


class KeptPositions(nn.Module):
    """`Positions` that are the same tensors again for the last `KEPT_SIZES` sizes of an input.

    strides: of the maps whose tokens are asked for
    """

    def __init__(self, positions: Positions, strides: tuple[int, ...]):
        super().__init__()
        self.positions = positions
        self._kept_tokens = KEPT_SIZES * len(strides)
        self._maps: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._tokens: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def forward(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """[1, C, *size], channels-last."""
        return kept(self._maps, tuple(size), self._map, KEPT_SIZES)

    def tokens(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """The same, row by row: [1, h w, C]."""
        return kept(self._tokens, tuple(size), self._row_by_row, self._kept_tokens)

    def _map(self, size: tuple[int, int]) -> Tensor:
        return _complete(self.positions(size).contiguous(memory_format=torch.channels_last))

    def _row_by_row(self, size: tuple[int, int]) -> Tensor:
        return _complete(self.positions.tokens(size).contiguous())


class PositionTerm(nn.Module):
    """What the positions add to a linear map of tokens: W position + b, kept while they live.

    (x + position) W^T + b = x W^T + (position W^T + b), of which the latter is the same for every
    image of a size. It is computed in float32 or wider, and rounded once to `dtype`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, device: torch.device, dtype: torch.dtype):
        super().__init__()
        exact = torch.promote_types(dtype, torch.float32)
        self.map = linear(weight.detach().to(device, exact), bias.detach().to(device, exact))
        self._terms = WeakTensorKeyDictionary()

    def forward(self, position: Tensor) -> Tensor:
        """position [1, L, C] to [1, L, C_out], of its dtype."""
        term = self._terms.get(position)
        if term is None:
            term = self.map(position.to(self.map.bias.dtype))
            term = self._terms[position] = _complete(term.to(position.dtype))
        return term


def _complete(tensor: Tensor) -> Tensor:
    """Waits until a GPU has computed it: whoever finds it kept may use another stream."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return tensor
