"""COCO's compressed run-length encoding of masks."""

import numpy as np
import torch
from torch import Tensor

from fastinst.ops.bits import packed_length, unpack_bits


def encode_masks(masks: Tensor, width: int | None = None) -> list[dict]:
    """The encoding of each mask, the same bytes as pycocotools'.

    Args:
        masks: [N, H, W] bool; or their bits, [N, H, ceil(width / 32)] int32, as `read_out_masks`
            packs them, on any device
        width: of packed masks

    Returns:
        N of {"size": [H, W], "counts": bytes}

    Raises:
        ValueError: shapes, dtypes or a width that do not fit, by name.
    """
    if masks.dim() != 3 or masks.dtype not in (torch.bool, torch.int32):
        raise ValueError(
            f"masks must be [N, H, W] bool, or int32 of packed bits, got {masks.dtype} of shape "
            f"{tuple(masks.shape)}"
        )
    if masks.dtype == torch.bool:
        width = masks.shape[2] if width is None else width
    if width is None:
        raise ValueError("packed masks need their width")
    length = width if masks.dtype == torch.bool else packed_length(width)
    if width < 0 or masks.shape[2] != length:
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} and {masks.dtype} are not {width} wide"
        )
    text, lengths = _encode_masks(masks.cpu(), width)
    ends = lengths.cumsum(0).tolist()
    data, size = text.numpy().tobytes(), [masks.shape[1], width]
    starts = [0, *ends[:-1]] if ends else []
    return [
        {"size": list(size), "counts": data[start:end]}
        for start, end in zip(starts, ends, strict=True)
    ]


def definition(masks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """All strings one after the other, uint8 [T], and their lengths, int64 [N]."""
    import pycocotools.mask  # the one operator that needs it, where it has no kernel

    if masks.dtype == torch.int32:
        masks = unpack_bits(masks, width)
    columns = np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8))
    counts = [code["counts"] for code in pycocotools.mask.encode(columns)] if len(masks) else []
    text = torch.frombuffer(bytearray(b"".join(counts)), dtype=torch.uint8) if counts else None
    return (
        torch.empty(0, dtype=torch.uint8) if text is None else text,
        torch.tensor([len(code) for code in counts], dtype=torch.int64),
    )


_encode_masks = torch.library.custom_op("fastinst::encode_masks", mutates_args=())(definition)


@_encode_masks.register_fake
def _(masks, width):
    total = torch.library.get_ctx().new_dynamic_size()
    return (
        masks.new_empty(total, dtype=torch.uint8),
        masks.new_empty(masks.shape[0], dtype=torch.int64),
    )
