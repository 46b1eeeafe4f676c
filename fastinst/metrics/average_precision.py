"""Precision and recall over all images, and the averages that COCO makes of them.

The same as pycocotools' `COCOeval.accumulate` and `summarize`, to the last digit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastinst.metrics.matching import AREAS, THRESHOLDS, Matches

RECALLS = np.linspace(0.0, 1.0, 101)

# What we show, and the threshold and the range of area that each is of.
AVERAGE_PRECISIONS = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}
STATISTICS = (*AVERAGE_PRECISIONS, "AR100")


class Curves(NamedTuple):
    """For T thresholds, K classes and A ranges of area; -1 where there is no ground truth.

    precision: [T, 101, K, A] float64 at each of `RECALLS`, of which it is a falling function
    recall: [T, K, A] float64, of all results
    """

    precision: np.ndarray
    recall: np.ndarray


def accumulate(matches: Sequence[Matches], num_classes: int) -> Curves:
    """matches: of all images, by ascending image id, which breaks the ties of scores"""
    precision = -np.ones((len(THRESHOLDS), len(RECALLS), num_classes, len(AREAS)))
    recall = -np.ones((len(THRESHOLDS), num_classes, len(AREAS)))
    if not matches:
        return Curves(precision, recall)
    labels, scores, hit, ignored, truth_labels, truth_ignored = (
        np.concatenate(part, axis=-1) for part in zip(*matches, strict=True)
    )
    for k in range(num_classes):
        order = np.flatnonzero(labels == k)
        order = order[np.argsort(-scores[order], kind="stable")]
        counts = (~truth_ignored[:, truth_labels == k]).sum(axis=1)
        for area in np.flatnonzero(counts):
            counted = ~ignored[area][:, order]
            true = hit[area][:, order] & counted
            false = counted & ~true
            precision[:, :, k, area], recall[:, k, area] = _curves(true, false, counts[area])
    return Curves(precision, recall)


def _curves(true: np.ndarray, false: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, 101] and recall [T] of results [T, D], best first."""
    right, wrong = true.cumsum(axis=1).astype(float), false.cumsum(axis=1).astype(float)
    recall = right / count
    precision = right / (wrong + right + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sampled = np.zeros((len(true), len(RECALLS)))
    for row, reached, values in zip(sampled, recall, precision, strict=True):
        places = np.searchsorted(reached, RECALLS, side="left")
        places = places[places < len(values)]
        row[: len(places)] = values[places]
    return sampled, recall[:, -1] if recall.size else np.zeros(len(true))


def statistics(curves: Curves) -> dict[str, float]:
    """`STATISTICS` in percent; nan where there is no ground truth."""
    averages = {
        name: _mean(select(curves.precision, *chosen))
        for name, chosen in AVERAGE_PRECISIONS.items()
    }
    return averages | {"AR100": _mean(curves.recall[:, :, 0])}


def class_statistics(curves: Curves, k: int) -> dict[str, float]:
    """`AVERAGE_PRECISIONS` of one class in percent; nan where there is no ground truth."""
    precision = curves.precision[:, :, k : k + 1]
    return {name: _mean(select(precision, *chosen)) for name, chosen in AVERAGE_PRECISIONS.items()}


def select(precision: np.ndarray, threshold: float | None, area: str) -> np.ndarray:
    """Of [T, 101, K, A] what belongs to one threshold, or None for all, and one range of area."""
    if threshold is not None:
        precision = precision[np.isclose(THRESHOLDS, threshold)]
    return precision[..., list(AREAS).index(area)]


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else math.nan
