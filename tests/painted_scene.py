"""An image whose objects are painted, so that masks can be compared with pixels."""

import dataclasses

import numpy as np
import torch
from pycocotools import mask as mask_utils
from scipy import ndimage

from fastinst.data.augment import Augmentation
from fastinst.data.dataset import Annotation
from fastinst.data.objects import Objects
from fastinst.ops import pack_bits, unpack_bits

SMALL = Augmentation.for_size(160, 213)
STILL = Augmentation(short_edges=(100,), max_edge=999, crop_probability=0, flip_probability=0)


def polygon(id_: int, label: int, *points: float, iscrowd: bool = False) -> Annotation:
    return Annotation(id_, label, [np.array(points, float)], iscrowd)


def as_rle(annotation: Annotation, height: int, width: int) -> Annotation:
    mask = np.asfortranarray(annotation.mask(height, width), np.uint8)
    return dataclasses.replace(annotation, segmentation=mask_utils.encode(mask))


def scene(height=120, width=150) -> tuple[np.ndarray, list[Annotation]]:
    """Object k is painted in red 80 k; the scene has no symmetry that could hide a wrong flip."""
    annotations = [
        polygon(1, 4, 10, 8, 70, 20, 55, 70, 15, 60),
        polygon(2, 7, 90.5, 30.2, 140, 60, 120, 110, 80, 90),
        Annotation(
            3,
            2,
            [np.array([20.0, 80, 60, 80, 20, 112]), np.array([70.0, 3, 99.7, 3, 99.7, 21.8])],
            False,
        ),
    ]
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 2] = 200
    for k, annotation in enumerate(annotations, start=1):
        image[annotation.mask(height, width)] = (80 * k, 0, 0)
    return image, annotations


def augment(
    image: np.ndarray, annotations: list[Annotation], rng: np.random.Generator, settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3], labels and masks bool [N, h, w] of a random view."""
    view = settings.draw(*image.shape[:2], rng)
    rendered = view.render(image)
    labels, words = view.masks(Objects(annotations))
    masks = unpack_bits(torch.from_numpy(words), rendered.shape[2])
    assert torch.equal(pack_bits(masks), torch.from_numpy(words))  # no bit past the width
    return rendered.permute(1, 2, 0).numpy(), labels, masks.numpy()


def away_from_borders(mask: np.ndarray) -> np.ndarray:
    disc = np.hypot(*np.mgrid[-3:4, -3:4]) <= 3
    return ndimage.binary_erosion(mask, disc)
