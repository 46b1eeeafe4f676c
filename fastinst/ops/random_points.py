"""Random points that follow from a seed and a number alone, the same on every device."""

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF  # 32 bits


def random_points(seeds: Tensor, count: int, start: int = 0) -> Tensor:
    """Points start .. start + count - 1 of each seed, evenly distributed over the unit square.

    Point i is a hash of i and the seed (two multiplications and three shifts, "lowbias32" of
    C. Wellons' hash prospector), so that any kernel can compute any point where it needs it.
    Its 16 + 16 bits are the middles of 65536 x 65536 cells, exact in float32.

    Args:
        seeds: int64 [G], of which all 64 bits count

    Returns:
        (x, y) in (0, 1), float32 [G, count, 2]
    """
    number = torch.arange(start, start + count, device=seeds.device)
    # In int64, whose overflow leaves the low 32 bits of a product right.
    x = number * 0x9E3779B9 + (seeds & _LOW).unsqueeze(1) & _LOW
    x = x ^ (seeds >> 32 & _LOW).unsqueeze(1)
    x = (x ^ x >> 16) * 0x7FEB352D & _LOW
    x = (x ^ x >> 15) * 0x846CA68B & _LOW
    x = x ^ x >> 16
    return (torch.stack([x & 0xFFFF, x >> 16], dim=-1).float() + 0.5) / 65536
