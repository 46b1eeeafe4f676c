"""From mask logits at 1/8 of the padded input to masks at the original image size."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinst.ops.bits import pack_bits, packed_length

# Floats held at once while resizing, so that 100 masks of a large photograph fit in memory.
CHUNK_ELEMENTS = 1 << 25


class Masks(NamedTuple):
    """N masks and what is measured while they are made."""

    masks: Tensor  # [N, H, W] bool, logit > 0; or its bits, [N, H, ceil(W / 32)] int32
    scores: Tensor  # [N], mean sigmoid inside the mask, sum / (area + 1e-6), float32 or wider
    areas: Tensor  # [N] int64, pixels
    boxes: Tensor  # [N, 4] int64 (left, top, right, bottom), the last two exclusive; 0 if empty


def read_out_masks(
    mask_logits: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    packed: bool = False,
) -> Masks:
    """Resizes as the release does (to the padded input, crop, to the output) and thresholds at 0.

    Two successive resizes differ from a single one, and the published numbers have two.

    Nothing of the result has a gradient.

    Args:
        mask_logits: [N, h, w]
        padded_size: (height, width) of the network's input
        image_size: (height, width) of the image in it, before padding
        output_size: (height, width) of the masks to return
        packed: return the masks' bits (`pack_bits`), an eighth of the bytes

    Raises:
        ValueError: shapes or sizes that do not fit, by name.
    """
    if mask_logits.dim() != 3 or 0 in mask_logits.shape[1:]:
        raise ValueError(f"mask_logits must have shape [N, h, w], got {tuple(mask_logits.shape)}")
    if not mask_logits.is_floating_point():
        raise ValueError(f"mask_logits must be a floating-point tensor, got {mask_logits.dtype}")
    sizes = (("padded_size", padded_size), ("image_size", image_size), ("output_size", output_size))
    for name, size in sizes:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"{name} must be (height, width) of at least 1, got {tuple(size)}")
    if image_size[0] > padded_size[0] or image_size[1] > padded_size[1]:
        raise ValueError(f"image_size {image_size} is larger than padded_size {padded_size}")
    sizes = ([int(side) for side in size] for _, size in sizes)
    return Masks(*_read_out_masks(mask_logits, *sizes, packed))


def definition(
    mask_logits: Tensor,
    padded_size: list[int],
    image_size: list[int],
    output_size: list[int],
    packed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(mask_logits.dtype, torch.float32)
    masks = mask_logits.new_empty(len(mask_logits), *output_size, dtype=torch.bool)
    inside = mask_logits.new_zeros(len(mask_logits), dtype=exact)
    for part, logits in resized_in_parts(mask_logits, padded_size, image_size, output_size):
        torch.gt(logits, 0, out=masks[part])
        # Rows first: threads split the sum over a whole mask if it is alone in its chunk.
        inside[part] = (logits.sigmoid() * masks[part]).sum(dim=2).sum(dim=1)
    areas = masks.sum(dim=(1, 2))
    scores, boxes = inside / (areas.to(exact) + 1e-6), mask_boxes(masks)
    return pack_bits(masks) if packed else masks, scores, areas, boxes


def resized_in_parts(
    mask_logits: Tensor,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
) -> Iterator[tuple[slice, Tensor]]:
    """Logits [N, h, w] at the output size, in float32 or wider: some masks at a time.

    Yields which of the masks, and their logits [n, H, W]. The sizes are those of
    `read_out_masks`.
    """
    exact = torch.promote_types(mask_logits.dtype, torch.float32)
    step = max(1, CHUNK_ELEMENTS // max(math.prod(padded_size), math.prod(output_size)))
    for start in range(0, len(mask_logits), step):
        part = slice(start, start + step)
        logits = mask_logits[part, None].to(exact)
        logits = F.interpolate(logits, size=tuple(padded_size), mode="bilinear")
        logits = logits[:, :, : image_size[0], : image_size[1]]
        if logits.shape[2:] != tuple(output_size):  # to the same size it changes no bit
            logits = F.interpolate(logits, size=tuple(output_size), mode="bilinear")
        yield part, logits[:, 0]


_read_out_masks = torch.library.custom_op("fastinst::read_out_masks", mutates_args=())(definition)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(*output)


def _backward(ctx, *_):
    return None, None, None, None, None


_read_out_masks.register_autograd(_backward, setup_context=_setup_context)


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes of [N, H, W] bool masks: [N, 4] int64 xyxy, exclusive right and bottom, 0 if empty."""
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    left, top = columns.long().argmax(dim=1), rows.long().argmax(dim=1)
    right = columns.shape[1] - columns.flip(1).long().argmax(dim=1)
    bottom = rows.shape[1] - rows.flip(1).long().argmax(dim=1)
    boxes = torch.stack([left, top, right, bottom], dim=1)
    return boxes * rows.any(dim=1, keepdim=True)


@_read_out_masks.register_fake
def _(mask_logits, padded_size, image_size, output_size, packed):
    count = mask_logits.shape[0]
    exact = torch.promote_types(mask_logits.dtype, torch.float32)
    height, width = output_size
    return (
        mask_logits.new_empty(count, height, packed_length(width), dtype=torch.int32)
        if packed
        else mask_logits.new_empty(count, height, width, dtype=torch.bool),
        mask_logits.new_empty(count, dtype=exact),
        mask_logits.new_empty(count, dtype=torch.int64),
        mask_logits.new_empty(count, 4, dtype=torch.int64),
    )
