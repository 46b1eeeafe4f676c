"""Whether an exported file finds what the model finds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment

from fastinst.export.artefact import Artefact
from fastinst.model import FastInst
from fastinst.predictor import Predictor
from fastinst.results import Instances, postprocess

BEST = 20  # of each image are compared


@dataclass(frozen=True)
class Limits:
    """What is tolerated.

    iou: the least mean IoU of masks
    score: the largest difference of scores, of 99 pairs in 100; the last may be an instance that
        rounding alone tips over, as where two queries are about equally likely
    """

    iou: float
    score: float


LIMITS = {
    "float32": Limits(0.999, 1e-3),
    "float16": Limits(0.98, 0.02),
    "bfloat16": Limits(0.98, 0.02),
}


@dataclass(frozen=True)
class Drift:
    """How far results are from the model's, over pairs of instances.

    An instance that the other side does not have counts as a pair without overlap, and with the
    whole of its score as the difference.
    """

    ious: np.ndarray  # [P] float, of the pairs' masks
    scores: np.ndarray  # [P] float, the scores' absolute differences

    @property
    def usual_score(self) -> float:
        """The difference of scores that 99 pairs in 100 do not exceed."""
        return float(np.quantile(self.scores, 0.99))

    def within(self, limits: Limits) -> bool:
        """False where there is nothing to compare."""
        return len(self.ious) > 0 and bool(
            self.ious.mean() >= limits.iou and self.usual_score <= limits.score
        )


def measure_drift(model: FastInst, artefact: Artefact, images: Iterable[np.ndarray]) -> Drift:
    """Runs both on the same padded batches, one for each uint8 [H, W, 3] RGB image.

    model: in float32 and on the artefact's device
    """
    resize = Predictor(artefact).resize
    drifts = []
    for image in images:
        batch, sizes = model.preprocess([resize(image)], at_least=artefact.metadata.shape[1:])
        with torch.inference_mode():
            expected, actual = (
                postprocess(network(batch), sizes, [image.shape[:2]])[0]
                for network in (model, artefact)
            )
        drifts += [compare(expected, actual), compare(actual, expected)]
    return Drift(
        np.concatenate([drift.ious for drift in drifts]),
        np.concatenate([drift.scores for drift in drifts]),
    )


def compare(one: Instances, other: Instances, best: int = BEST) -> Drift:
    """The `best` first of `one`, each with the most alike of all the `other` of its class.

    Alike are instances of much overlap and little difference of score; none is taken twice.
    """
    first = one[:best]
    if not len(first):
        return Drift(np.zeros(0), np.zeros(0))
    overlaps = np.zeros((len(first), len(other)))
    if len(other):
        codes = first.rle(), other.rle()
        overlaps = rle.iou(*codes, [0] * len(other))
        # Two empty masks are the same mask.
        empty = [np.array([rle.area(code) == 0 for code in side]) for side in codes]
        overlaps[empty[0][:, None] & empty[1]] = 1.0
    scores, other_scores = (side.scores.cpu().double().numpy() for side in (first, other))
    scores, differences = (
        np.nan_to_num(x, nan=1.0) for x in (scores, np.abs(scores[:, None] - other_scores))
    )
    same = first.labels.cpu().numpy()[:, None] == other.labels.cpu().numpy()
    rows, columns = linear_sum_assignment(np.where(same, overlaps - differences, -2), maximize=True)
    ious, drifts = np.zeros(len(first)), scores.copy()
    for row, column in zip(rows, columns, strict=True):
        if same[row, column]:
            ious[row], drifts[row] = overlaps[row, column], differences[row, column]
    return Drift(ious, drifts)
