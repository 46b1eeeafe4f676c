"""The intersection over union of results and annotations, by mask, box or boundary."""

import numpy as np
from pycocotools import mask as rle

from fastinst.metrics.boundary import boundary
from fastinst.metrics.matching import THRESHOLDS
from fastinst.metrics.regions import Found, Truth

METRICS = ("mask", "box", "boundary")


def overlaps(metric: str, found: Found, truth: Truth) -> np.ndarray:
    """[D, G] float64, 0 between different classes; that with a crowd is over the result alone.

    "boundary" is the lesser of the mask's and the boundary's, as in the authors' evaluation. Where
    that of the masks is below the lowest threshold, it stands for both: there is no match.
    """
    result = np.zeros((len(found), len(truth)))
    for label in np.intersect1d(found.labels, truth.labels):
        rows, columns = np.flatnonzero(found.labels == label), np.flatnonzero(truth.labels == label)
        crowd = truth.crowd[columns].tolist()
        if metric == "box":
            result[np.ix_(rows, columns)] = rle.iou(found.boxes[rows], truth.boxes[columns], crowd)
            continue
        codes = [found.codes[i] for i in rows], [truth.codes[i] for i in columns]
        ious = rle.iou(*codes, crowd)
        if metric == "boundary":
            near = ious >= THRESHOLDS[0]
            kept = near.any(axis=1), near.any(axis=0)
            if near.any():
                parts = (
                    [boundary(code) for code, keep in zip(*side, strict=True) if keep]
                    for side in zip(codes, kept, strict=True)
                )
                window = np.ix_(*kept)
                of_boundaries = rle.iou(*parts, truth.crowd[columns][kept[1]].tolist())
                ious[window] = np.minimum(ious[window], of_boundaries)
        result[np.ix_(rows, columns)] = ious
    return result
