import math
from itertools import permutations

import numpy as np
import pytest
import torch
from small_coco import CATEGORY_IDS, write_coco

from fastinst.data.coco import load_coco
from fastinst.metrics.label_agreement import label_agreement
from fastinst.results import Instances

PLACES = [(0, 0, 16, 16), (32, 0, 48, 16), (64, 0, 80, 16), (0, 32, 16, 48), (32, 32, 48, 48)]


def dataset(folder, labels):
    places = zip(labels, PLACES, strict=False)
    path = write_coco(folder, [[(label, *place) for label, place in places]])
    return load_coco(path, path.parent / "val")


def found(*instances):
    """Results of image 1 for (score, label, left, top, right, bottom) each."""
    masks = torch.zeros(len(instances), 64, 96, dtype=torch.bool)
    for mask, (_, _, left, top, right, bottom) in zip(masks, instances, strict=True):
        mask[top:bottom, left:right] = True
    scores = torch.tensor([instance[0] for instance in instances])
    labels = torch.tensor([instance[1] for instance in instances])
    return Instances.from_masks(scores, labels, masks).to_coco(1, CATEGORY_IDS)


def test_right_and_guessed_as_counted_by_hand(tmp_path):
    truth = dataset(tmp_path, (0, 0, 1, 1, 2))
    results = found(*[(0.9, label, *p) for label, p in zip((0, 1, 1, 1, 0), PLACES, strict=True)])
    agreement = label_agreement(truth, results)
    # Labels 2:2:1, classes 2:3:0 of 5.
    guessed = (2 * 2 + 2 * 3 + 1 * 0) / 25
    assert agreement == (5, pytest.approx(3 / 5), pytest.approx(guessed))
    deviation = math.sqrt(guessed * (1 - guessed) / 5)
    assert agreement.sigmas == pytest.approx((3 / 5 - guessed) / deviation)


def test_the_best_of_the_results_that_overlap_by_half_decides(tmp_path):
    truth = dataset(tmp_path, (0, 1, 2))
    results = found(
        (0.3, 1, *PLACES[0]),
        (0.6, 0, 0, 0, 16, 8),  # half of it
        (0.9, 2, 0, 0, 16, 7),  # less
        (0.2, 1, *PLACES[1]),
        (0.9, 0, 80, 48, 96, 64),  # nothing is there
    )
    objects, right, _ = label_agreement(truth, results)
    assert (objects, right) == (2, 1.0)


def test_classes_dealt_at_random_are_right_as_often_as_guessed(tmp_path):
    labels = (0, 0, 1, 1, 2)
    truth = dataset(tmp_path, labels)
    agreements = []
    for dealt in set(permutations(labels)):
        results = found(*[(0.9, label, *p) for label, p in zip(dealt, PLACES, strict=True)])
        agreements.append(label_agreement(truth, results))
    assert len(agreements) == 30
    assert np.mean([a.right for a in agreements]) == pytest.approx(agreements[0].guessed)


def test_nothing_found_and_a_single_class(tmp_path):
    truth = dataset(tmp_path, (1, 1))
    assert label_agreement(truth, []).objects == 0
    one = label_agreement(truth, found(*[(0.9, 1, *p) for p in PLACES[:2]]))
    assert one == (2, 1.0, 1.0) and math.isnan(one.sigmas)
