"""A picture of what a model is trained on: augmented images with their masks, side by side."""

import numpy as np
import torch

from fastinst.data.loader import TrainingImages
from fastinst.examination.findings import counted
from fastinst.ops.bits import unpack_bits
from fastinst.results import Instances
from fastinst.visualize import fitted, framed, grid, overlay, titled

CELL = 400  # pixels, the longer edge of each image on the sheet
MARGIN = 12


def contact_sheet(
    images: TrainingImages, class_names: tuple[str, ...], count: int = 12, columns: int = 4
) -> np.ndarray:
    """uint8 [H, W, 3]: the first epoch's views of up to `count` images, spread over the data set.

    These are the very samples that training gets. Raises InputError if images cannot be read.
    """
    count = min(count, len(images))
    chosen = np.linspace(0, len(images), count, endpoint=False).astype(int).tolist()
    pictures = [_picture(images[0, index], class_names) for index in chosen]
    sheet = grid(pictures, min(columns, len(pictures)))
    return framed(sheet, MARGIN)


def _picture(sample: dict, class_names: tuple[str, ...]) -> np.ndarray:
    image, target = sample["image"], sample["target"]
    masks = unpack_bits(target["masks"], image.shape[2])
    instances = Instances.from_masks(torch.ones(len(masks)), target["labels"], masks)
    pixels, instances = fitted(image.permute(1, 2, 0).numpy(), instances, CELL)
    drawn = overlay(pixels, instances, class_names, show_scores=False)
    return titled(drawn, f"image {sample['image_id']}, {counted(len(masks), 'object')}")
