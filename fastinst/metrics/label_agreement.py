"""Whether the classes of objects that a model has found agree with their labels."""

import math
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from fastinst.data.dataset import Dataset

FOUND_AT = 0.5  # intersection over union


class LabelAgreement(NamedTuple):
    """objects: how many were found, whatever class they were taken for
    right: the share of them whose class is their label
    guessed: the share that would be right if the same classes were dealt to them at random
    """

    objects: int
    right: float
    guessed: float

    @property
    def sigmas(self) -> float:
        """By how many of its standard deviations `right` is above `guessed`, were it guessed.

        nan if guessing cannot fail, as with a single class, or if nothing was found.
        """
        if not 0 < self.guessed < 1:
            return math.nan
        deviation = math.sqrt(self.guessed * (1 - self.guessed) / self.objects)
        return (self.right - self.guessed) / deviation


def label_agreement(dataset: Dataset, results: list[dict]) -> LabelAgreement:
    """Compare labels and classes of the objects that `results` have found.

    results: in the COCO results format, of images of the data set. An object that is no crowd is
        found by the result of the highest score that overlaps it by `FOUND_AT`.
    """
    by_image: dict[int, list[dict]] = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)
    pairs = []
    for record in dataset.images:
        objects = [a for a in record.annotations if not a.iscrowd]
        found = sorted(by_image.get(record.id, []), key=lambda result: -result["score"])
        if not objects or not found:
            continue
        overlaps = mask_utils.iou(
            [result["segmentation"] for result in found],
            [a.rle(record.height, record.width) for a in objects],
            [0] * len(objects),
        )
        for annotation, hits in zip(objects, overlaps.T >= FOUND_AT, strict=True):
            if hits.any():
                category = found[int(hits.argmax())]["category_id"]
                pairs.append((annotation.label, dataset.category_ids.index(category)))
    if not pairs:
        return LabelAgreement(0, 0.0, 0.0)
    labels, classes = np.array(pairs).T
    count = len(dataset.class_names)
    of_labels, of_classes = (np.bincount(x, minlength=count) / len(x) for x in (labels, classes))
    return LabelAgreement(
        len(pairs), float((labels == classes).mean()), float(of_labels @ of_classes)
    )
