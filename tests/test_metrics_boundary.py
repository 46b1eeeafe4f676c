import math

import numpy as np
import pytest
from coco_cases import instances, load
from pycocotools import mask as rle
from small_coco import write_coco

from fastinst.metrics.boundary import boundary, boundary_width
from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.overlap import overlaps
from fastinst.metrics.regions import Found, Truth


def encode(mask):
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def defined_boundary(mask):
    """Set pixels with a pixel that is not, or none at all, up to the width away."""
    height, width = mask.shape
    distance = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    result = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                inside = 0 <= v < height and 0 <= u < width
                result[y, x] |= not (inside and mask[v, u])
    return result


def random_masks():
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (7, 5), (40, 60), (90, 70), (3, 200)]:
        blocks = rng.random((4, -(-height // 8), -(-width // 8))) < 0.7
        for block in blocks:
            yield np.kron(block, np.ones((8, 8), bool))[:height, :width]
        yield np.ones((height, width), bool)
        yield np.zeros((height, width), bool)
        corner = np.zeros((height, width), bool)
        corner[-1, -1] = True
        yield corner
        yield rng.random((height, width)) < 0.9


def test_the_boundary_is_the_defined_one():
    for mask in random_masks():
        assert boundary(encode(mask)) == encode(defined_boundary(mask))


def test_codes_may_be_text():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    code = encode(mask)
    text = {"size": code["size"], "counts": code["counts"].decode()}
    assert boundary(text) == boundary(code)


def test_the_width_is_a_fiftieth_of_the_diagonal():
    assert boundary_width(480, 640) == 16
    assert boundary_width(3, 4) == 1


def regions(masks, kind, **more):
    codes = [encode(mask) for mask in masks]
    labels = np.zeros(len(masks), np.int64)
    areas = np.array(rle.area(codes), float)
    return kind(labels=labels, codes=codes, boxes=rle.toBbox(codes), areas=areas, **more)


def test_overlap_is_the_lesser_of_mask_and_boundary():
    truth = np.zeros((5, 60, 80), bool)
    for i, mask in enumerate(truth):
        mask[5 + i : 30 + i, 8 * i : 30 + 8 * i] = True
    shifts = [(0, 0), (1, 0), (0, 0), (0, 1), (1, 1)]
    found = np.array([np.roll(a, b, (0, 1)) for a, b in zip(truth, shifts, strict=True)])
    crowd = np.array([False, False, True, False, False])
    got = overlaps(
        "boundary",
        regions(found, Found, scores=np.ones(5)),
        regions(truth, Truth, crowd=crowd),
    )

    def iou(a, b, crowd):
        return (a & b).sum() / (a.sum() if crowd else (a | b).sum())

    matches = 0
    edges = [[defined_boundary(mask) for mask in masks] for masks in (found, truth)]
    for i, a in enumerate(found):
        for j, b in enumerate(truth):
            exact = min(iou(a, b, crowd[j]), iou(edges[0][i], edges[1][j], crowd[j]))
            # Below the lowest threshold nothing can match, so it need not be exact.
            if max(exact, got[i, j]) >= 0.5:
                assert got[i, j] == pytest.approx(exact, abs=1e-12)
                matches += 1
    assert matches >= 3


def test_a_large_object_with_a_coarse_outline_has_mask_ap_but_no_boundary_ap(tmp_path):
    size = (400, 500)
    dataset = load(write_coco(tmp_path, [[(0, 40, 40, 440, 360)]], size))
    evaluator = CocoEvaluator(dataset, metrics=("mask", "box", "boundary"))
    evaluator.update(1, instances((0.9, 0, 48, 48, 432, 352), size=size))
    summary = evaluator.summarize()
    assert summary["AP75"] == summary["box"]["AP75"] == pytest.approx(100)
    assert summary["boundary"]["AP50"] == 0
