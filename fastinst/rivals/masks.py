"""The choice of queries and the masks' way out beside eager PyTorch and pycocotools."""

import functools
from collections.abc import Iterator

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from torch import Tensor

from fastinst import ops
from fastinst.rivals.case import (
    CHANNELS,
    CLASSES,
    ORIGINAL,
    PADDED,
    QUERIES,
    RESIZED,
    Case,
    definition,
)


def select_queries_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    randn = functools.partial(torch.randn, device=device, dtype=dtype)
    size = [side // 16 for side in PADDED]
    maps = (randn(1, CLASSES + 1, *size), randn(1, CHANNELS, *size), randn(1, CHANNELS, *size))
    for name, local in (("local maxima first", True), ("by probability", False)):
        arguments = (*maps, QUERIES, local)
        rivals = {
            "kernel": functools.partial(ops.select_queries, *arguments),
            "definition": functools.partial(definition("select_queries"), *arguments),
        }
        if local:
            rivals["max_pool2d of every class"] = functools.partial(_select_by_pooling, *maps)
        yield Case("select_queries", name, rivals, {}, exact=True)


def _select_by_pooling(class_logits: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    """With a map for each class, 0 where another class is the best; of equal ranks any wins."""
    probability, best = class_logits.float().softmax(dim=1)[:, :-1].max(dim=1, keepdim=True)
    by_class = probability.new_zeros(1, CLASSES, *best.shape[2:]).scatter_(1, best, probability)
    around = F.max_pool2d(by_class, 3, stride=1, padding=1).gather(1, best)
    rank = probability + ((probability >= around) & (probability >= 1e-6))
    indices = rank.flatten(1).topk(QUERIES).indices.sort().values
    index = indices.unsqueeze(1).expand(-1, CHANNELS, -1)
    return *(x.flatten(2).gather(2, index).transpose(1, 2) for x in maps), indices


def read_out_masks_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    logits = _blobs([side // 8 for side in PADDED]).to(device, dtype)
    for name, packed in (("bool", False), ("bits", True)):
        arguments = (logits, PADDED, RESIZED, ORIGINAL, packed)
        rivals = {
            "kernel": functools.partial(ops.read_out_masks, *arguments),
            "definition": functools.partial(definition("read_out_masks"), *arguments),
        }
        yield Case("read_out_masks", name, rivals, {}, exact=True)


def encode_masks_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    masks = (_blobs(ORIGINAL) > 0).to(device)

    def pycocotools_encode():
        # It reads columns, one mask after the other.
        columns = (mask.t().contiguous().cpu().numpy().T.view(np.uint8) for mask in masks)
        return [pycocotools.mask.encode(mask) for mask in columns]

    for name, argument in (("bool", masks), ("bits", ops.pack_bits(masks))):
        rivals = {
            "kernel": functools.partial(ops.encode_masks, argument, ORIGINAL[1]),
            "pycocotools": pycocotools_encode,
        }
        yield Case("encode_masks", name, rivals, {}, exact=True)


def _blobs(size: tuple[int, int] | list[int]) -> Tensor:
    """[queries, *size] of smooth logits, positive on about a tenth of the pixels."""
    noise = F.interpolate(torch.randn(1, QUERIES, 8, 10), tuple(size), mode="bicubic")[0]
    return noise - noise.std() * 1.28
