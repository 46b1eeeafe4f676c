"""The samples of deformable convolution: where its taps lie, and columns out of them.

Corners and weights are computed once per pixel and tap and shared by all channels; columns are
gathered channels-last, so that each corner is one contiguous row. Coordinates are float32 or wider.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Taps(NamedTuple):
    """Where the columns come from: four corners, each [B, l, K, G] for l = h w output pixels."""

    rows: tuple[Tensor, ...]  # int64 into `pixel_rows`
    weights: tuple[Tensor, ...]  # bilinear, 0 for a corner outside
    weights_dy: tuple[Tensor, ...]  # their derivatives
    weights_dx: tuple[Tensor, ...]
    modulation: Tensor  # [B, l, K, G], the mask of v2, else 1


def sampling_taps(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Taps:
    """See `ops.deform_conv2d` for the arguments."""
    kernel_height, kernel_width = weight.shape[2:]
    batch, _, out_height, out_width = offset.shape
    height, width = input.shape[2:]
    num_taps = kernel_height * kernel_width
    groups = offset.shape[1] // (2 * num_taps)
    dtype = torch.promote_types(torch.promote_types(input.dtype, weight.dtype), torch.float32)
    device = input.device

    num_pixels = out_height * out_width
    pixel = torch.arange(num_pixels, device=device)[:, None, None]
    tap = torch.arange(num_taps, device=device)[:, None]
    y = pixel // out_width * stride[0] - padding[0] + tap // kernel_width * dilation[0]
    x = pixel % out_width * stride[1] - padding[1] + tap % kernel_width * dilation[1]
    offset = offset.to(dtype).reshape(batch, groups, num_taps, 2, num_pixels)
    offset = offset.permute(3, 0, 4, 2, 1)
    y, x = y + offset[0], x + offset[1]
    modulation = (
        torch.ones_like(y)
        if mask is None
        else mask.to(dtype).reshape(batch, groups, num_taps, num_pixels).permute(0, 3, 2, 1)
    )

    # Clamping keeps huge and non-finite offsets inside the integers; what lies a pixel or more
    # outside has no weight either way.
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = y.clamp(-1, height), x.clamp(-1, width)
    top, left = y.floor(), x.floor()
    fraction_y, fraction_x = y - top, x - left
    image = torch.arange(batch, device=device)[:, None, None, None]
    group = torch.arange(groups, device=device)
    corners = []
    for below in (0, 1):
        for right in (0, 1):
            row, column = top.long() + below, left.long() + right
            valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
            weight_y = fraction_y if below else 1 - fraction_y
            weight_x = fraction_x if right else 1 - fraction_x
            corners.append(
                (
                    ((image * height + row) * width + column) * groups + group,
                    torch.where(valid, weight_y * weight_x, 0.0),
                    torch.where(valid, weight_x if below else -weight_x, 0.0),
                    torch.where(valid, weight_y if right else -weight_y, 0.0),
                )
            )
    return Taps(*zip(*corners, strict=True), modulation)


def pixel_rows(input: Tensor, taps: Taps) -> Tensor:
    """[B, C, H, W] to one row of channels per image, pixel and offset group: [B H W G, C / G]."""
    return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1] // taps.modulation.shape[3])


def gather_columns(input: Tensor, weight: Tensor, taps: Taps) -> Tensor:
    """[B, l, K, groups, C / groups], sampled and modulated."""
    rows = pixel_rows(input, taps).to(taps.modulation.dtype)
    columns = sum(
        rows[index] * (corner * taps.modulation).unsqueeze(-1)
        for index, corner in zip(taps.rows, taps.weights, strict=True)
    )
    group_channels = weight.shape[1]
    return columns.reshape(*columns.shape[:3], input.shape[1] // group_channels, group_channels)
