"""A picture of what a model is trained on: augmented images with their masks, side by side."""

import numpy as np
import torch
from PIL import Image

from fastinst.data.loader import TrainingImages
from fastinst.examination.findings import counted
from fastinst.ops.bits import unpack_bits
from fastinst.results import Instances
from fastinst.visualize import BACKGROUND, grid, overlay, titled

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
    framed = np.full([sheet.shape[0] + 2 * MARGIN, sheet.shape[1] + 2 * MARGIN, 3], BACKGROUND)
    framed[MARGIN:-MARGIN, MARGIN:-MARGIN] = sheet
    return framed.astype(np.uint8)


def _picture(sample: dict, class_names: tuple[str, ...]) -> np.ndarray:
    image, target = sample["image"], sample["target"]
    masks = unpack_bits(target["masks"], image.shape[2])
    scale = CELL / max(image.shape[1:])
    height, width = (max(1, round(side * scale)) for side in image.shape[1:])
    # Masks are drawn on the enlarged image, where contours and labels are sharp.
    rows, columns = (
        torch.arange(new) * old // new
        for old, new in zip(image.shape[1:], (height, width), strict=True)
    )
    masks = masks[:, rows][:, :, columns]
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    instances = Instances.from_masks(torch.ones(len(masks)), target["labels"], masks)
    drawn = overlay(np.array(pixels), instances, class_names, show_scores=False)
    return titled(drawn, f"image {sample['image_id']}, {counted(len(masks), 'object')}")
