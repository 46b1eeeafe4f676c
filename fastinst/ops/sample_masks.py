"""Bilinear samples of packed masks."""

import torch
from torch import Tensor

from fastinst.ops.bilinear import chunks, sample_bits


def sample_masks(masks: Tensor, points: Tensor, groups: Tensor) -> Tensor:
    """Each mask at the points of its group (its image).

    Args:
        masks: [M, H, W32] int32, bits of masks of the size H x 32 W32 (`pack_bits`)
        points: float32 or float64 [G, K, 2], (x, y) in [0, 1]; pixel centres lie at
            (i + 1/2) / size, outside is 0
        groups: int64 [M] in 0..G-1

    Returns:
        samples in [0, 1], [M, K] in the points' dtype, without gradient

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, by name.
    """
    _check(masks, points, groups)
    return _sample_masks(masks, points, groups)


def definition(masks: Tensor, points: Tensor, groups: Tensor) -> Tensor:
    samples = points.new_empty(len(masks), points.shape[1])
    for part in chunks(*samples.shape):
        index = torch.arange(part.start, part.stop, device=masks.device)
        samples[part] = sample_bits(masks, index, points[groups[part]])
    return samples


_sample_masks = torch.library.custom_op("fastinst::sample_masks", mutates_args=())(definition)


@_sample_masks.register_fake
def _(masks, points, groups):
    return points.new_empty(masks.shape[0], points.shape[1])


def _check(masks: Tensor, points: Tensor, groups: Tensor) -> None:
    if masks.dim() != 3 or 0 in masks.shape[1:] or masks.dtype != torch.int32:
        raise ValueError(f"masks must be int32 [M, H, W32], got {masks.dtype} {tuple(masks.shape)}")
    fits = points.dim() == 3 and points.shape[2] == 2
    if not fits or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"points must be float32 or float64 [G, K, 2], got {points.dtype} {tuple(points.shape)}"
        )
    if groups.dtype != torch.int64 or groups.shape != masks.shape[:1]:
        raise ValueError(
            f"groups must be int64 [{len(masks)}], got {groups.dtype} {tuple(groups.shape)}"
        )
    for name, tensor in (("points", points), ("groups", groups)):
        if tensor.device != masks.device:
            raise ValueError(f"{name} are on {tensor.device}, masks on {masks.device}")
