"""Position encodings of the pixels: learnable, as FastInst's, or sines, as Mask2Former's."""

import math

import torch
from torch import Tensor, nn

from fastinst.pixel_decoder import resize

TEMPERATURE = 10000.0


class Positions(nn.Module):
    """Positions of a grid's pixels: called with its size a map, [1, C, *size]."""

    def tokens(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """The same, row by row: [1, h w, C]."""
        return self(size).flatten(2).transpose(1, 2)


class PositionEmbedding(Positions):
    """A learnable 10 x 10 map of positions, resized to whatever grid needs one."""

    def __init__(self, channels: int):
        super().__init__()
        # The release leaves this memory as it comes. From zeros, which tell no place from another,
        # training takes longer to find any masks (benchmarks/LOG.md).
        self.weight = nn.Parameter(torch.empty(1, channels, 10, 10).normal_())

    def forward(self, size: tuple[int, int] | torch.Size) -> Tensor:
        return resize(self.weight, size)


class SinePositions(Positions):
    """Sines and cosines of a pixel's row, then of its column (DETR, arXiv 2005.12872, appendix).

    Channel 2 i of either half is sin(p / 10000^(2 i / (C / 2))), channel 2 i + 1 the cosine, with
    p from 0 to 2 pi over the grid, the padding included.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        # Only says where and in what dtype positions are wanted.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def forward(self, size: tuple[int, int] | torch.Size) -> Tensor:
        height, width = size
        rows, columns = (self._axis(length) for length in size)  # [C / 2, length]
        rows = rows.unsqueeze(2).expand(-1, -1, width)
        columns = columns.unsqueeze(1).expand(-1, height, -1)
        return torch.cat([rows, columns]).unsqueeze(0)

    def _axis(self, length: int) -> Tensor:
        exact = torch.promote_types(self.like.dtype, torch.float32)
        to = {"device": self.like.device, "dtype": exact}
        place = torch.arange(1, length + 1, **to) / (length + 1e-6) * (2 * math.pi)
        pairs = torch.arange(self.channels // 4, **to)
        angles = place / TEMPERATURE ** (pairs * 4 / self.channels).unsqueeze(1)
        waves = torch.stack([angles.sin(), angles.cos()], dim=1)  # [C / 4, 2, length]
        return waves.flatten(0, 1).to(self.like.dtype)
