"""Matching and averaging against pycocotools, and against what they say in words."""

import numpy as np
import pytest
from coco_cases import PLACES, edit, load, pycocotools_evaluation
from pycocotools import mask as rle
from small_coco import write_coco

from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.matching import AREAS, MAX_RESULTS, THRESHOLDS, match, ranked

NAMES, IDS = ("a", "b", "c", "d"), (2, 3, 11, 90)


def random_data(rng, folder, images, objects, results):
    """A data set with crowds, ties and objects of all sizes, and results of any kind."""
    size = (160, 200)

    def rectangle():
        width, height = rng.integers(2, 120, 2)
        left, top = rng.integers(0, size[1] - width), rng.integers(0, size[0] - height)
        return [int(x) for x in (left, top, left + width, top + height)]

    truth = [
        [(int(rng.integers(3)), *rectangle()) for _ in range(rng.integers(objects))]
        for _ in range(images)
    ]
    path = write_coco(folder, truth, size, NAMES, IDS)

    def change(content):
        for annotation in content["annotations"]:
            left, top, _, _, right, bottom, _, _ = annotation["segmentation"][0]
            annotation["id"] += 1
            annotation["iscrowd"] = int(rng.random() < 0.15)
            annotation["area"] *= float(rng.uniform(0.8, 1.2))
            # Such as COCO's own, which are not quite the extents of the polygons.
            box = np.array([left, top, right - left, bottom - top]) + rng.uniform(-0.5, 0.5, 4)
            annotation["bbox"] = box.round(2).tolist()

    edit(path, change)
    found = []
    for image, shapes in enumerate(truth, start=1):
        for _ in range(rng.integers(results)):
            label, *box = shapes[rng.integers(len(shapes))] if shapes else (0, *rectangle())
            if rng.random() < 0.2:
                label, box = int(rng.integers(4)), rectangle()
            left, top, right, bottom = box
            left, right = (int(np.clip(x + rng.integers(-3, 4), 0, 199)) for x in (left, right))
            mask = np.zeros(size, np.uint8, order="F")
            mask[top:bottom, left:right] = 1
            if not mask.any():
                continue
            code = rle.encode(mask)
            found.append(
                {
                    "image_id": image,
                    "category_id": IDS[label],
                    "segmentation": {"size": list(size), "counts": code["counts"].decode()},
                    "score": float(rng.integers(1, 20) / 20),  # many are equal
                }
            )
    return path, found


@pytest.mark.parametrize(
    "seed, images, objects, results", [(0, 12, 6, 20), (1, 6, 1, 5), (2, 2, 8, 500), (3, 25, 3, 4)]
)
@pytest.mark.parametrize("kind, metric", [("segm", "mask"), ("bbox", "box")])
def test_all_curves_are_those_of_pycocotools(
    tmp_path, seed, images, objects, results, kind, metric
):
    path, found = random_data(np.random.default_rng(seed), tmp_path, images, objects, results)
    evaluator = CocoEvaluator(load(path), metrics=(metric,))
    for image_id in evaluator.image_ids:
        evaluator.update_results(image_id, [r for r in found if r["image_id"] == image_id])
    expected = pycocotools_evaluation(path, found, kind)
    curves = evaluator.curves(metric)
    np.testing.assert_array_equal(curves.precision, expected.eval["precision"][..., 2])
    np.testing.assert_array_equal(curves.recall, expected.eval["recall"][..., 2])
    numbers = evaluator.summarize()
    for name, place in PLACES.items():
        measured = -1 if np.isnan(numbers[name]) else numbers[name]
        assert measured == (expected.stats[place] * (100 if expected.stats[place] >= 0 else 1))


def test_only_the_best_results_of_a_class_take_part():
    labels = np.array([0, 1] * 150)
    scores = np.random.default_rng(0).permutation(300) / 300
    kept = ranked(labels, scores)
    assert (np.diff(scores[kept]) < 0).all()
    for label in (0, 1):
        own = np.flatnonzero(labels == label)
        best = own[np.argsort(-scores[own])[:MAX_RESULTS]]
        assert set(kept[labels[kept] == label]) == set(best)


def matched(ious, crowd=(), areas=None):
    """hit and ignored of "all" [T, D]; all of one class."""
    ious = np.array(ious, float)
    results, objects = ious.shape
    crowd = np.array(crowd or [False] * objects)
    areas = np.full(objects, 500.0) if areas is None else np.array(areas, float)
    nothing = np.zeros(results, np.int64)
    found = nothing, np.arange(results, 0, -1.0), np.full(results, 500.0)
    result = match(ious, found, (np.zeros(objects, np.int64), areas, crowd))
    assert result.hit.shape == (len(AREAS), len(THRESHOLDS), results)
    return result.hit[0], result.ignored[0]


def test_an_object_is_hit_once_and_the_second_may_take_the_next_best():
    hit, _ = matched([[0.9, 0.6], [0.8, 0.55], [0.7, 0.0]])
    assert hit[0].tolist() == [True, True, False]  # at 0.5
    assert hit[2].tolist() == [True, False, False]  # at 0.6
    assert hit[9].tolist() == [False, False, False]  # at 0.95


def test_a_crowd_takes_any_number_of_results_and_they_are_ignored():
    hit, ignored = matched([[0.9, 1.0], [0.0, 0.8], [0.0, 0.7]], crowd=[False, True])
    assert hit[0].tolist() == [True, True, True]
    assert ignored[0].tolist() == [False, True, True]  # the first rather hits the object


def test_an_iou_at_the_threshold_counts():
    hit, _ = matched([[0.5]])
    assert hit[:, 0].tolist() == [True] + [False] * 9
