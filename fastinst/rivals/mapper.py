"""What `TrainingImages` is measured against: the same sample in the release's order of operations.

The release (github.com/junjiehe96/FastInst) augments by detectron2: every step makes an array of
its own, a crop is resized twice, and each object becomes a mask of the whole image.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from fastinst.data.augment import Augmentation, shortest_edge_size
from fastinst.data.dataset import ImageRecord

STAGES = ("decode", "resize", "masks", "tensors")


def staged_mapper(
    record: ImageRecord, settings: Augmentation, rng: np.random.Generator
) -> Iterator[dict]:
    """Yields after each of STAGES, at last the sample, its masks being bool [N, h, w].

    The generator is asked for the numbers that `Augmentation.draw` asks for, so the view is the
    same up to the rounding of the crop's edges.
    """
    with Image.open(record.path) as file:
        image = np.asarray(file.convert("RGB"))
    yield {}

    annotations = [annotation for annotation in record.annotations if not annotation.iscrowd]
    segmentations = [annotation.segmentation for annotation in annotations]
    for i, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict):
            segmentations[i] = annotations[i].mask(record.height, record.width).astype(np.uint8)
        else:
            segmentations[i] = [np.reshape(part, (-1, 2)) for part in segmentation]

    if rng.random() < settings.crop_probability:
        size = shortest_edge_size(*image.shape[:2], int(rng.choice(settings.crop_resize)))
        image, segmentations = _resize(image, segmentations, size)
        low, high = settings.crop_range
        height, width = (
            int(rng.integers(min(side, low), min(side, high), endpoint=True)) for side in size
        )
        top, left = (
            int(rng.integers(side - length, endpoint=True))
            for side, length in zip(size, (height, width), strict=True)
        )
        image = image[top : top + height, left : left + width]
        segmentations = [
            [part - (left, top) for part in segmentation]
            if isinstance(segmentation, list)
            else segmentation[top : top + height, left : left + width]
            for segmentation in segmentations
        ]
    short = int(rng.choice(settings.short_edges))
    size = shortest_edge_size(*image.shape[:2], short, settings.max_edge)
    image, segmentations = _resize(image, segmentations, size)
    if rng.random() < settings.flip_probability:
        image = np.flip(image, axis=1)
        segmentations = [
            [(size[1], 0) - part * (1, -1) for part in segmentation]
            if isinstance(segmentation, list)
            else np.flip(segmentation, axis=1)
            for segmentation in segmentations
        ]
    yield {}

    masks = [
        mask_utils.decode(
            mask_utils.merge(mask_utils.frPyObjects([part.ravel() for part in segmentation], *size))
        )
        if isinstance(segmentation, list)
        else segmentation
        for segmentation in segmentations
    ]
    yield {}

    image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    labels = torch.tensor([annotation.label for annotation in annotations])
    masks = torch.stack(
        [torch.from_numpy(np.ascontiguousarray(mask).astype(bool)) for mask in masks]
    )
    seen = masks.any(dim=2).any(dim=1)
    yield {"image": image, "target": {"labels": labels[seen], "masks": masks[seen]}}


def _resize(
    image: np.ndarray, segmentations: list, size: tuple[int, int]
) -> tuple[np.ndarray, list]:
    """Image, lists of polygons [P, 2] and uint8 masks [H, W], to (height, width)."""
    height, width = size
    scale = (width / image.shape[1], height / image.shape[0])
    view = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(view), [
        [part * scale for part in segmentation]
        if isinstance(segmentation, list)
        else np.asarray(
            Image.fromarray(segmentation).resize((width, height), Image.Resampling.NEAREST)
        )
        for segmentation in segmentations
    ]
