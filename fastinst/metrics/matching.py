"""Which results hit which annotations of an image, by COCO's rules.

The same as pycocotools' `COCOeval.evaluateImg` for its default parameters, for all classes, ranges
of area and thresholds at once.
"""

from typing import NamedTuple

import numpy as np

# pycocotools' parameters.
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the intersection over union
AREAS = {  # the objects that count, in square pixels, both limits included
    "all": (0, 1e5**2),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
}
MAX_RESULTS = 100  # of one class in one image


class Matches(NamedTuple):
    """Of one image; A ranges of area, T thresholds, D results, G annotations.

    labels: [D] int64
    scores: [D] float64, descending
    hit: [A, T, D] bool, whether the result has an annotation of its own, or lies in a crowd
    ignored: [A, T, D] bool, neither right nor wrong
    truth_labels: [G] int64
    truth_ignored: [A, G] bool
    """

    labels: np.ndarray
    scores: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truth_labels: np.ndarray
    truth_ignored: np.ndarray


def ranked(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The indices of the results that take part, best first."""
    order = np.argsort(-scores, kind="stable")
    kept = np.ones(len(order), bool)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count > MAX_RESULTS:
            kept[np.flatnonzero(labels[order] == label)[MAX_RESULTS:]] = False
    return order[kept]


def match(
    ious: np.ndarray,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Matches:
    """From the best result to the worst, give each the free annotation that it overlaps most.

    One that counts goes before one that is ignored. A crowd is never used up.

    ious: [D, G], below the lowest threshold between different classes
    found: labels, scores and areas [D], best first, as `ranked` orders them
    truth: labels, areas and crowd [G]
    """
    labels, scores, areas = found
    truth_labels, truth_areas, crowd = truth
    low, high = np.array(list(AREAS.values())).T[:, :, None]
    truth_ignored = crowd | (truth_areas < low) | (truth_areas > high)
    outside = (areas < low) | (areas > high)

    shape = (len(AREAS), len(THRESHOLDS))
    hit = np.zeros((*shape, len(labels)), bool)
    ignored = np.zeros_like(hit)
    free = np.ones((*shape, len(truth_labels)), bool)
    for i in np.flatnonzero((ious >= THRESHOLDS[0]).any(axis=1)):
        near = np.flatnonzero(ious[i] >= THRESHOLDS[0])
        candidates = free[:, :, near] & (ious[i, near] >= THRESHOLDS[:, None])
        counting = candidates & ~truth_ignored[:, None, near]
        candidates = np.where(counting.any(axis=2, keepdims=True), counting, candidates)
        hit[:, :, i] = candidates.any(axis=2)
        # Of equals pycocotools takes the last.
        values = np.where(candidates, ious[i, near], -1)[:, :, ::-1]
        best = near[len(near) - 1 - values.argmax(axis=2)]
        area, threshold = np.nonzero(hit[:, :, i])
        best = best[area, threshold]
        ignored[area, threshold, i] = truth_ignored[area, best]
        free[area, threshold, best] = crowd[best]
    ignored |= ~hit & outside[:, None]
    return Matches(labels, scores, hit, ignored, truth_labels, truth_ignored)
