"""The instances of a batch in the frame of the padded images, ragged and packed."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastinst.errors import InputError
from fastinst.ops import pack_bits

# Heights and widths of a batch are multiples of this, so that masks are whole words, p3 is every
# 8th pixel and each pixel of p4 a block of 16 x 16.
SIZE_DIVISOR = 32


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Of a batch that holds images of up to this height and width."""
    return -(-height // SIZE_DIVISOR) * SIZE_DIVISOR, -(-width // SIZE_DIVISOR) * SIZE_DIVISOR


class Targets(NamedTuple):
    """The M instances of B images, one image after the other. All tensors are on one device."""

    counts: list[int]  # of each image's instances
    labels: Tensor  # [M] int64
    images: Tensor  # [M] int64, the image that each belongs to
    slots: Tensor  # [B, N] int64, the instances of each image; 0 past its count. N is the largest
    masks: Tensor  # [M, H, W / 32] int32, bits of the masks (`ops.pack_bits`)
    image_seeds: Tensor  # [B] int64, of the random points that an image's masks are matched at
    mask_seeds: Tensor  # [M] int64, of those that a mask's losses are taken at


def pad_targets(targets: list[dict], batch: Tensor, num_classes: int) -> Targets:
    """Targets at their images' own sizes to targets in the frame of the padded batch.

    targets: for each image `labels` [N] int64 in 0..K-1, `masks` [N, h, w] bool or their bits,
        [N, h, ceil(w / 32)] int32, and a `seed`, without which one is drawn from torch's generator
    batch: [B, 3, H, W] on the device that the result is wanted on
    Raises InputError, with the image's place in the batch, for what does not fit.
    """
    height, width = batch.shape[2:]
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        raise InputError(
            f"a batch must be padded to multiples of {SIZE_DIVISOR}, as model.preprocess does; "
            f"got {height}x{width}"
        )
    if len(targets) != len(batch):
        raise InputError(f"{len(batch)} images but {len(targets)} targets")
    for i, target in enumerate(targets):
        _check(i, target, height, width, num_classes)

    counts = [len(target["labels"]) for target in targets]
    masks = torch.zeros(
        (sum(counts), height, width // 32), dtype=torch.int32, device=targets[0]["masks"].device
    )
    for part, target in zip(masks.split(counts), targets, strict=True):
        bits = (
            target["masks"] if target["masks"].dtype == torch.int32 else pack_bits(target["masks"])
        )
        part[:, : bits.shape[1], : bits.shape[2]] = bits

    slots = np.zeros((len(counts), max(counts)), dtype=np.int64)
    for row, count, end in zip(slots, counts, np.cumsum(counts), strict=True):
        row[:count] = range(end - count, end)
    images = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) for count in counts])  # in the image
    seeds = np.array(_seeds(targets), dtype=np.int64)
    # The place goes where a seed is not hashed with a point's number: see `ops.random_points`.
    tables = [images, slots.ravel(), seeds, seeds[images] + (place + 1 << 32)]
    table = to_device(torch.from_numpy(np.concatenate(tables)), batch.device)
    images, slots, image_seeds, mask_seeds = table.split([part.size for part in tables])
    labels = torch.cat([target["labels"] for target in targets]).to(torch.int64)
    return Targets(
        counts,
        to_device(labels, batch.device),
        images,
        slots.view(len(counts), -1),
        to_device(masks, batch.device),
        image_seeds,
        mask_seeds,
    )


def nearest(masks: Tensor, stride: int) -> Tensor:
    """Masks [M, H, W / 32] int32 on a map of that stride, which is 8, 16 or 32: every so many
    pixels of every so many rows, as a nearest resize takes them. [M, H / stride, W / stride] bool.
    """
    words = {8: torch.int8, 16: torch.int16, 32: torch.int32}[stride]
    return (masks[:, ::stride].view(words) & 1).bool()


def reaches_p4(masks: Tensor) -> Tensor:
    """Which blocks of 16 x 16 pixels masks [M, H, W / 32] int32 have a part in.

    [M, H / 16, W / 16] bool.
    """
    return masks.view(torch.int16).unflatten(1, (-1, 16)).any(dim=2)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """On a GPU a copy that the host does not wait for."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    # To the host, the values could be read before they are there.
    return values.to(device, non_blocking=device.type == "cuda")


def _seeds(targets: list[dict]) -> list[int]:
    missing = [i for i, target in enumerate(targets) if "seed" not in target]
    drawn = torch.randint(2**63 - 1, (len(missing),), device="cpu").tolist() if missing else []
    return [target["seed"] if "seed" in target else drawn.pop(0) for target in targets]


def _check(i: int, target: dict, height: int, width: int, num_classes: int) -> None:
    if not {"labels", "masks"} <= target.keys():
        raise InputError(f"target {i} needs labels and masks, it has {', '.join(target)}")
    labels, masks = target["labels"], target["masks"]
    if labels.is_floating_point() or masks.dtype not in (torch.bool, torch.int32):
        raise InputError(
            f"target {i}: labels must be integers and masks bool, or int32 of packed bits, "
            f"got {labels.dtype} and {masks.dtype}"
        )
    if labels.dim() != 1 or masks.dim() != 3 or len(labels) != len(masks):
        raise InputError(
            f"target {i}: labels must be [N] and masks [N, h, w], "
            f"got {tuple(labels.shape)} and {tuple(masks.shape)}"
        )
    h, w = masks.shape[1], masks.shape[2] * (32 if masks.dtype == torch.int32 else 1)
    if h > height or w > width:
        raise InputError(f"target {i}: masks of {h}x{w} exceed the batch of {height}x{width}")
    # On a GPU the check would have to wait for it.
    if not labels.is_cuda and not all(0 <= label < num_classes for label in labels.tolist()):
        raise InputError(f"target {i}: labels must be in 0..{num_classes - 1}, got {labels}")
