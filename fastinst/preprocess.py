"""Images of any sizes to one normalised, padded batch."""

import torch
from torch import Tensor

from fastinst.config import ModelConfig
from fastinst.errors import InputError
from fastinst.targets import padded_size, to_device


def preprocess(
    images: list[Tensor],
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    at_least: tuple[int, int] = (1, 1),
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Normalises, then pads with zeros to the right and bottom to one size.

    Args:
        images: uint8 RGB tensors [3, h, w] of any sizes. They are not resized here: see
            `fastinst.data.augment.resize_shortest_edge` for the sizes the models are made for
        config: its `pixel_mean` and `pixel_std`
        at_least: height and width that the batch has at least, for the size of other batches

    Returns:
        the batch [B, 3, H, W], channels-last in memory, H and W multiples of 32, and each image's
        (height, width) in it

    Raises:
        InputError: no image, or one that is not uint8 [3, h, w], by its place in the list.
    """
    if len(images) == 0:
        raise InputError("preprocess needs at least one image")
    for i, image in enumerate(images):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise InputError(
                f"image {i} must be a uint8 tensor [3, height, width], "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        if 0 in image.shape:
            raise InputError(f"image {i} has no pixels: {tuple(image.shape)}")
    exact = torch.promote_types(dtype, torch.float32)
    statistics = torch.tensor([config.pixel_mean, config.pixel_std], dtype=exact, device="cpu")
    mean, std = to_device(statistics, device).view(2, 3, 1, 1)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = padded_size(*map(max, zip(*sizes, at_least, strict=True)))
    rows = torch.zeros(len(images), height, width, 3, dtype=dtype, device=device)
    batch = rows.permute(0, 3, 1, 2)
    for padded, image, (h, w) in zip(batch, images, sizes, strict=True):
        padded[:, :h, :w] = (to_device(image, device).to(exact) - mean) / std
    return batch, sizes
