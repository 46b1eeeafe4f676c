"""Bilinear samples of maps and of packed masks, as the operators' definitions need them.

Points are (x, y) in [0, 1] over a map; pixel centres lie at (i + 1/2) / size; outside is 0.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Samples taken at once, so that those of some hundred masks do not fill the memory.
CHUNK_ELEMENTS = 1 << 22


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """maps [N, C, h, w] at points [N, K, 2] of the same dtype: [N, C, K]."""
    grid = (2 * points - 1).unsqueeze(1)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False).squeeze(2)


def sample_bits(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Packed masks [M, H, W32] (`pack_bits`), those of index [N], at points [1 or N, K, 2]: [N, K].

    The result has the points' dtype.
    """
    height, words = masks.shape[1:]
    x, y = points[..., 0] * (32 * words) - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    left, top = left.long(), top.long()
    flat, first = masks.flatten(), index.unsqueeze(1) * (height * words)
    total = points.new_zeros(())
    for row, row_share in ((top, 1 - bottom_share), (top + 1, bottom_share)):
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < 32 * words)
            word = row.clamp(0, height - 1) * words + (column.clamp(0, 32 * words - 1) >> 5)
            bit = flat[first + word] >> (column & 31).int() & 1
            total = total + bit * (row_share * column_share * inside)
    return total


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Parts of `rows` rows of `columns` samples each, of about CHUNK_ELEMENTS samples."""
    step = max(1, CHUNK_ELEMENTS // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def sample_dtype(logits: Tensor) -> torch.dtype:
    """What logits are sampled in: float32, or float64 for float64."""
    return torch.promote_types(logits.dtype, torch.float32)
