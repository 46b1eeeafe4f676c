"""Binary cross-entropy and dice of mask logits against packed masks, at points."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinst.ops.bilinear import chunks, sample_bits, sample_dtype, sample_maps


def point_losses(
    logits: Tensor, masks: Tensor, mask_index: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of P predicted masks, each at K points of its own or at K shared ones.

    With x the bilinear samples of a pair's logits, s = sigmoid(x) and t those of its mask:
    bce = mean over K of max(x, 0) - x t + log(1 + exp(-|x|)),
    dice = 1 - (2 sum(s t) + 1) / (sum s + sum t + 1).

    Args:
        logits: [P, h, w]
        masks: [M, H, W32] int32, bits of masks of the size H x 32 W32 (`pack_bits`)
        mask_index: int64 [P] in 0..M-1, the mask that each of `logits` is to predict
        points: float32 or float64 [P, K, 2] or [1, K, 2], (x, y) in [0, 1] over both

    Returns:
        bce and dice, each [P] in float32, of float64 logits in float64. The gradient is that of
        the logits; points and masks have none.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, by name.
    """
    _check(logits, masks, mask_index, points)
    return _point_losses(logits, masks, mask_index, points)


def definition(
    logits: Tensor, masks: Tensor, mask_index: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    bce, dice = logits.new_empty(2, len(logits), dtype=sample_dtype(logits))
    for part in chunks(len(logits), points.shape[1]):
        x, t, _ = _samples(logits[part], masks, mask_index[part], _rows(points, part))
        bce[part] = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1)
        s = x.sigmoid()
        dice[part] = 1 - (2 * (s * t).sum(1) + 1) / (s.sum(1) + t.sum(1) + 1)
    return bce.clone(), dice.clone()


def backward_definition(
    grad_bce: Tensor,
    grad_dice: Tensor,
    logits: Tensor,
    masks: Tensor,
    mask_index: Tensor,
    points: Tensor,
) -> Tensor:
    """The gradient of the logits, [P, h, w] in their dtype."""
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for part in chunks(len(logits), points.shape[1]):
        x, t, grid = _samples(logits[part], masks, mask_index[part], _rows(points, part))
        s = x.sigmoid()
        total = (s.sum(1) + t.sum(1) + 1).unsqueeze(1)
        overlap = (2 * (s * t).sum(1) + 1).unsqueeze(1)
        dice_by_s = (overlap - 2 * t * total) / total**2
        by_bce, by_dice = grad_bce[part].unsqueeze(1), grad_dice[part].unsqueeze(1)
        by_x = by_bce * (s - t) / x.shape[1] + by_dice * dice_by_s * s * (1 - s)
        grad_maps, _ = torch.ops.aten.grid_sampler_2d_backward(
            by_x[:, None, None], logits[part, None].to(x.dtype), grid, 0, 0, False, [True, False]
        )
        grad_logits[part] = grad_maps[:, 0].to(logits.dtype)
    return grad_logits


_point_losses = torch.library.custom_op("fastinst::point_losses", mutates_args=())(definition)
_point_losses_backward = torch.library.custom_op(
    "fastinst::point_losses_backward", mutates_args=()
)(backward_definition)


def _rows(points: Tensor, part: slice) -> Tensor:
    return points if len(points) == 1 else points[part]


def _samples(
    logits: Tensor, masks: Tensor, mask_index: Tensor, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of logits and of masks, each [P, K], and the points as grid_sample takes them."""
    points = points.to(sample_dtype(logits)).expand(len(logits), -1, -1)
    x = sample_maps(logits.unsqueeze(1).to(points.dtype), points).squeeze(1)
    return x, sample_bits(masks, mask_index, points), (2 * points - 1).unsqueeze(1)


@_point_losses.register_fake
def _(logits, masks, mask_index, points):
    shape, dtype = logits.shape[:1], sample_dtype(logits)
    return logits.new_empty(shape, dtype=dtype), logits.new_empty(shape, dtype=dtype)


@_point_losses_backward.register_fake
def _(grad_bce, grad_dice, logits, masks, mask_index, points):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_bce, grad_dice):
    return _point_losses_backward(grad_bce, grad_dice, *ctx.saved_tensors), None, None, None


_point_losses.register_autograd(_backward, setup_context=_setup_context)


def _check(logits: Tensor, masks: Tensor, mask_index: Tensor, points: Tensor) -> None:
    if logits.dim() != 3 or 0 in logits.shape[1:] or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating-point [P, h, w], got {logits.dtype} {tuple(logits.shape)}"
        )
    if masks.dim() != 3 or 0 in masks.shape[1:] or masks.dtype != torch.int32:
        raise ValueError(f"masks must be int32 [M, H, W32], got {masks.dtype} {tuple(masks.shape)}")
    if mask_index.dtype != torch.int64 or mask_index.shape != logits.shape[:1]:
        raise ValueError(
            f"mask_index must be int64 [{len(logits)}], "
            f"got {mask_index.dtype} {tuple(mask_index.shape)}"
        )
    fits = points.dim() == 3 and points.shape[0] in (1, len(logits)) and points.shape[2] == 2
    if not fits or points.shape[1] == 0 or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"points must be float32 or float64 [1 or {len(logits)}, K, 2], "
            f"got {points.dtype} {tuple(points.shape)}"
        )
    for name, tensor in (("masks", masks), ("mask_index", mask_index), ("points", points)):
        if tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, logits on {logits.device}")
