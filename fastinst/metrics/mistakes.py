"""What a model gets wrong, sorted into kinds, the worst first.

The kinds and their limits are those of TIDE (Bolya, Foley, Hays and Hoffman, ECCV 2020), with one
kind for results that are wrong in class and place, and one for objects that are found in parts
(over-segmentation, as in the paper's Figure VI).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.metrics.matching import ranked
from fastinst.metrics.regions import Found, Truth, found_regions, ground_truth

FOUND_AT, NEAR_AT = 0.5, 0.1  # intersection over union of masks
PART_INSIDE = 0.75  # of the area of a result, in the object that it is a part of
MIN_SCORE = 0.3  # what scores less is taken for not found

KINDS = {
    "missed": "missed objects, the largest first",
    "false": "found where no such object is, the surest first",
    "class": "taken for another class, the surest first",
    "mask": f"masks that overlap the object by less than {FOUND_AT:g}, the surest first",
    "twice": "objects found twice, the surest first",
    "parts": "parts of objects found as objects, the surest first",
}


class Mistake(NamedTuple):
    """kind: of KINDS
    record: the image
    rank: the higher, the worse: the score, or of a missed object the area in pixels
    result: place in `regions`' results; None of a missed object
    object: place in its annotations; None if there is none near
    iou: of both; 0 if one is none
    beside: places of the results that this one is one too many to: those that have the object
        already, or the other parts of it
    """

    kind: str
    record: ImageRecord
    rank: float
    result: int | None
    object: int | None
    iou: float
    beside: tuple[int, ...] = ()


@dataclass(frozen=True)
class Regions:
    """Of one image the results that are sure enough, best first, and the annotations."""

    found: Found
    truth: Truth


def regions(
    record: ImageRecord,
    results: Sequence[Mapping],
    dataset: Dataset,
    min_score: float = MIN_SCORE,
) -> Regions:
    """results: of this image, with masks, in the COCO results format"""
    labels = {id_: label for label, id_ in enumerate(dataset.category_ids)}
    found = found_regions([r for r in results if r["score"] >= min_score], labels)
    return Regions(found[ranked(found.labels, found.scores)], ground_truth(record))


def find_mistakes(record: ImageRecord, image: Regions) -> list[Mistake]:
    """Of one image, in no order; results in crowds and crowds that were missed are none."""
    found, truth = image.found, image.truth
    ious = np.zeros((len(found), len(truth)))
    if ious.size:
        ious = rle.iou(found.codes, truth.codes, truth.crowd.tolist())
    in_crowd = (ious * truth.crowd >= FOUND_AT).any(axis=1)
    ious = np.where(truth.crowd, 0.0, ious)
    same = (found.labels[:, None] == truth.labels) & ~truth.crowd
    hits = same & (ious >= FOUND_AT)
    parts = _parts(image, same, hits)
    free = ~truth.crowd
    mistakes, wrong = [], []
    for i in range(len(found)):
        if (hits[i] & free).any():
            free[np.where(hits[i] & free, ious[i], -1).argmax()] = False
        elif not in_crowd[i]:
            wrong.append(i)
    for i in wrong:
        own, other = (np.where(kind, ious[i], 0.0) for kind in (same[i], ~same[i]))
        if hits[i].any():
            kind, near = "twice", own
        elif other.max(initial=0) >= FOUND_AT:
            kind, near = "class", other
        elif parts[i].any():
            kind, near = "parts", np.where(parts[i], ious[i], 0.0)
        elif own.max(initial=0) >= NEAR_AT:
            kind, near = "mask", own
        else:
            kind, near = "false", ious[i]
        best = int(near.argmax()) if near.max(initial=0) > 0 else None
        iou = 0.0 if best is None else float(near[best])
        beside = []
        if kind == "twice":
            beside = np.flatnonzero(hits[:i, best]).tolist()
        elif kind == "parts":
            beside = np.flatnonzero(hits[:, best] | parts[:, best]).tolist()
            beside.remove(i)
        score = float(found.scores[i])
        mistakes.append(Mistake(kind, record, score, i, best, iou, tuple(beside)))
    # What another kind of mistake is about was not missed.
    seen = (ious >= FOUND_AT) | (same & (ious >= NEAR_AT)) | parts
    for g in np.flatnonzero(free & ~seen.any(axis=0)):
        area = float(rle.area(truth.codes[g]))
        mistakes.append(Mistake("missed", record, area, None, int(g), 0.0))
    return mistakes


def _parts(image: Regions, same: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """[D, G] bool: whether a result is one of several that an object was found as.

    A part lies in the object, and something else was found there too: another part, or the whole.
    Two results that overlap by FOUND_AT are one part, found twice.

    same: [D, G] bool, whether both are of one class
    hits: [D, G] bool, whether the result is right
    """
    found, truth = image.found, image.truth
    if not hits.size:
        return hits
    elsewhere = hits.any(axis=1, keepdims=True) & ~hits
    of_results = rle.iou(found.codes, truth.codes, [True] * len(truth))  # as of crowds
    inside = same & (of_results >= PART_INSIDE) & ~elsewhere
    apart = rle.iou(found.codes, found.codes, [False] * len(found)) < FOUND_AT
    return inside & ~hits & (apart @ (inside | hits))


def worst(mistakes: Sequence[Mistake], count: int, per_image: int = 1) -> list[Mistake]:
    """The worst `count`, of each image `per_image` at most unless that leaves room."""
    ordered = sorted(mistakes, key=lambda mistake: -mistake.rank)
    taken: dict[int, int] = {}
    first, later = [], []
    for mistake in ordered:
        taken[mistake.record.id] = taken.get(mistake.record.id, 0) + 1
        (first if taken[mistake.record.id] <= per_image else later).append(mistake)
    return [*first, *later][:count]
