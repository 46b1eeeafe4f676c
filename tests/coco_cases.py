"""Data sets of rectangles, results for them, and pycocotools' own evaluation of these."""

import contextlib
import io
import json

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastinst.data.coco import load_coco
from fastinst.results import Instances

TWO_REDS = [(0, 0, 0, 32, 32), (0, 48, 0, 80, 32)]


def instances(*found, size=(64, 96)):
    """Instances of (score, label, left, top, right, bottom) each."""
    masks = torch.zeros(len(found), *size, dtype=torch.bool)
    for mask, (_, _, left, top, right, bottom) in zip(masks, found, strict=True):
        mask[top:bottom, left:right] = True
    return Instances.from_masks(
        torch.tensor([f[0] for f in found]),
        torch.tensor([f[1] for f in found], dtype=torch.int64),
        masks,
    )


def load(path):
    return load_coco(path, path.parent / path.stem)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def pycocotools_evaluation(path, results, kind="segm"):
    """COCOeval on the file itself and on results that went through JSON."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
        evaluation = COCOeval(reference, reference.loadRes(json.loads(json.dumps(results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# Where COCOeval.stats holds what we show.
PLACES = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


def random_images(rng, count):
    """Rectangles and what is found of them: shifted, mislabelled, made up, empty."""
    truth, found = [], []
    for _ in range(count):
        boxes = [
            (int(rng.integers(3)), x, y, x + int(rng.integers(4, 48)), y + int(rng.integers(4, 32)))
            for x, y in rng.integers(0, 48, (rng.integers(0, 6), 2)).tolist()
        ]
        guesses = []
        for label, left, top, right, bottom in boxes * 2:
            shift = int(rng.integers(0, 6))
            label = label if rng.random() < 0.8 else int(rng.integers(3))
            guesses.append((rng.random(), label, left + shift, top, right, bottom))
        guesses.append((0.0, 0, 5, 5, 5, 5))
        found.append(instances(*sorted(guesses, reverse=True)))
        truth.append(boxes)
    return truth, found
