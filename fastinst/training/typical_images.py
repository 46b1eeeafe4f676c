"""A few images of a data set to try a model on: easy ones, of as many classes as possible."""

import math

import numpy as np
from pycocotools import mask as mask_utils

from fastinst.data.dataset import Dataset, ImageRecord

# What objects should be as long as, in short edges of their image, and how many there may be.
LENGTH = 0.25
MOST_OBJECTS = 50
LOOKED_AT = 512  # images at most, so that large data sets take no longer


def typical_images(dataset: Dataset, count: int, seed: int = 0) -> tuple[ImageRecord, ...]:
    """Up to `count` images with objects, the best first: what they show is neither tiny nor huge.

    Of those that `seed` draws, images with a class that none before them has come first, then
    whatever comes nearest to `LENGTH`; crowded ones come last.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.images)).tolist()
    with_objects = (r for r in map(dataset.images.__getitem__, order) if object_length(r))
    records = [record for record, _ in zip(with_objects, range(LOOKED_AT), strict=False)]
    records.sort(key=_unsuitability)
    new, others, seen = [], [], set()
    for record in records:
        labels = {a.label for a in record.annotations if not a.iscrowd}
        (others if labels <= seen else new).append(record)
        seen |= labels
    return tuple((new + others)[:count])


def object_length(record: ImageRecord) -> float:
    """The median over the image's objects of the root of their area, in short edges of the image.

    0 if nothing but crowds is in it.
    """
    codes = [a.rle(record.height, record.width) for a in record.annotations if not a.iscrowd]
    if not codes:
        return 0.0
    return float(np.median(np.sqrt(mask_utils.area(codes)))) / min(record.height, record.width)


def _unsuitability(record: ImageRecord) -> tuple[bool, float]:
    crowded = sum(not a.iscrowd for a in record.annotations) > MOST_OBJECTS
    return crowded, abs(math.log(object_length(record) / LENGTH))
