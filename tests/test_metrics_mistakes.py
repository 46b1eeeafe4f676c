"""The kinds of mistakes, and the pictures of a report."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from coco_cases import edit, instances, load
from PIL import Image
from small_coco import write_coco

from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.gallery import COLUMNS, draw_gallery
from fastinst.metrics.mistakes import KINDS, Mistake, find_mistakes, regions, worst
from fastinst.metrics.report import write_report

SQUARE = (0, 16, 16, 48, 48)


@pytest.fixture
def judge(tmp_path):
    """What of these (score, label, left, top, right, bottom) is wrong: {kind: (score, IoU)}."""

    def run(*found, truth=(SQUARE,), crowd=False):
        path = write_coco(Path(tempfile.mkdtemp(dir=tmp_path)), [truth])
        if crowd:
            edit(path, lambda content: [a.update(iscrowd=1) for a in content["annotations"]])
        dataset = load(path)
        (record,) = dataset.images
        results = instances(*found).to_coco(record.id, dataset.category_ids)
        image = regions(record, results, dataset)
        return {
            m.kind: (m.rank if m.result is None else image.found.scores[m.result], m.iou)
            for m in find_mistakes(record, image)
        }

    return run


def test_what_is_right_is_no_mistake(judge):
    assert judge((0.9, 0, 16, 16, 48, 48)) == {}
    assert judge(truth=()) == {}


def test_missed(judge):
    assert judge() == {"missed": (32 * 32, 0)}
    assert judge((0.29, 0, 16, 16, 48, 48)) == {"missed": (32 * 32, 0)}  # not sure enough


def test_nothing_there(judge):
    assert judge((0.75, 0, 60, 0, 90, 30), truth=()) == {"false": (0.75, 0)}
    assert set(judge((0.75, 0, 60, 0, 90, 30))) == {"false", "missed"}


def test_another_class(judge):
    assert judge((0.75, 2, 16, 16, 48, 48)) == {"class": (0.75, 1)}


def test_a_bad_mask(judge):
    assert judge((0.75, 0, 16, 16, 48, 28)) == {"mask": (0.75, 12 / 32)}


def test_found_twice(judge):
    twice = judge((0.875, 0, 16, 16, 48, 48), (0.75, 0, 16, 16, 48, 40))
    assert twice == {"twice": (0.75, 24 / 32)}


LEFT, MIDDLE, RIGHT = (16, 16, 30, 48), (24, 16, 38, 48), (30, 16, 48, 48)


def test_found_in_parts(judge):
    both = judge((0.875, 0, *LEFT), (0.75, 0, 32, 16, 46, 48))
    assert both == {"parts": (0.75, 14 / 32)}
    # Beside the whole object, and reaching out of it a little.
    whole = judge((0.875, 0, 16, 16, 48, 48), (0.75, 0, 42, 16, 50, 48))
    assert whole == {"parts": (0.75, 6 / 34)}
    # A whole that reaches far out of it is right too.
    assert judge((0.875, 0, 16, 16, 68, 48), (0.75, 0, *LEFT)) == {"parts": (0.75, 14 / 32)}
    # However small they are, the object was not missed.
    assert judge((0.875, 0, 16, 16, 20, 20), (0.75, 0, 40, 40, 44, 44)).keys() == {"parts"}


def test_what_is_no_part(judge):
    assert judge((0.75, 0, *LEFT)).keys() == {"mask"}  # alone
    assert judge((0.875, 0, *LEFT), (0.75, 0, 16, 16, 31, 48)).keys() == {"mask"}  # the same twice
    assert judge((0.875, 0, *LEFT), (0.75, 1, *RIGHT)).keys() == {"mask", "class"}
    half_outside = judge((0.875, 0, *LEFT), (0.75, 0, 40, 16, 56, 48))
    assert half_outside.keys() == {"mask"}
    # What is right about another object is no part of this one.
    small = (0, 16, 16, 26, 26)
    nested = judge((0.875, 0, *small[1:]), (0.75, 0, *MIDDLE), truth=(SQUARE, small))
    assert nested.keys() == {"mask"}


def test_a_mistake_knows_the_results_that_it_is_one_too_many_to(tmp_path):
    dataset = load(write_coco(tmp_path, [[SQUARE, (0, 56, 16, 88, 48)]]))
    (record,) = dataset.images
    twice = [(0.9, 0, 16, 16, 48, 48), (0.8, 0, 16, 16, 48, 44), (0.7, 0, 16, 16, 44, 48)]
    parts = [(0.6, 0, 56, 16, 66, 48), (0.5, 0, 66, 16, 76, 48), (0.4, 0, 76, 16, 86, 48)]
    results = instances(*twice, *parts).to_coco(record.id, dataset.category_ids)
    mistakes = find_mistakes(record, regions(record, results, dataset))
    assert [(m.kind, m.result, m.beside) for m in mistakes] == [
        ("twice", 1, (0,)),
        ("twice", 2, (0, 1)),
        ("parts", 3, (4, 5)),
        ("parts", 4, (3, 5)),
        ("parts", 5, (3, 4)),
    ]
    assert {m.object for m in mistakes[2:]} == {1}


def test_a_crowd_is_neither_missed_nor_wrongly_found(judge):
    assert judge((0.9, 0, 16, 16, 24, 24), crowd=True) == {}
    assert judge(crowd=True) == {}


def test_the_worst_of_many_images_come_first():
    class Record:
        def __init__(self, id):
            self.id = id

    a, b = Record(1), Record(2)
    mistakes = [
        Mistake("false", record, rank, 0, None, 0.0)
        for record, rank in ((a, 0.5), (a, 0.9), (a, 0.8), (b, 0.6))
    ]
    assert [m.rank for m in worst(mistakes, 3)] == [0.9, 0.6, 0.8]
    assert [m.rank for m in worst(mistakes, 9)] == [0.9, 0.6, 0.8, 0.5]


def test_the_gallery_has_a_row_for_each_kind(tmp_path):
    truth = [[SQUARE, (1, 60, 20, 90, 50)]] * 3
    dataset = load(write_coco(tmp_path, truth))
    found = instances((0.9, 0, 16, 16, 48, 48), (0.8, 0, 16, 16, 48, 44), (0.7, 2, 60, 20, 90, 50))
    results = {r.id: found.to_coco(r.id, dataset.category_ids) for r in dataset.images}
    picture = draw_gallery(dataset, results, progress=False)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    nothing = draw_gallery(dataset, {}, progress=False)
    one = draw_gallery(dataset, {1: results[1]}, progress=False)
    assert nothing.shape[0] < one.shape[0] == picture.shape[0]  # two kinds, one row each
    cell = (picture.shape[1] - 32 - 16 * (COLUMNS - 1)) // COLUMNS
    assert not (picture[16:-16, 16 : 16 + cell] == picture[0, 0]).all()
    assert set(KINDS) == {"missed", "false", "class", "mask", "twice", "parts"}
    chosen = draw_gallery(dataset, results, ["twice"], progress=False)
    assert chosen.shape[0] < one.shape[0]
    sure = draw_gallery(dataset, results, min_score=0.75, progress=False)  # missed, found twice
    assert sure.shape == picture.shape and (sure != picture).any()


def test_objects_at_the_border_of_a_narrow_image(tmp_path):
    dataset = load(write_coco(tmp_path, [[(0, 0, 0, 8, 8), (1, 240, 8, 256, 16)]], size=(16, 256)))
    assert draw_gallery(dataset, {1: []}, progress=False).shape[0] > 240


def test_a_report_of_no_ground_truth_has_no_curves(tmp_path):
    dataset = load(write_coco(tmp_path, [[], []]))
    evaluator = CocoEvaluator(dataset)
    evaluator.update(1, instances((0.9, 0, 0, 0, 32, 32)))
    assert [p.name for p in write_report(evaluator, "m", tmp_path)] == ["mistakes.jpg"]


def test_a_report_of_many_classes(tmp_path):
    names = tuple(f"class {i}" for i in range(12))
    truth = [[(i % 12, 8, 8, 40, 40) for i in range(13)]]
    rectangles = [[(i % 3, *box) for i, *box in truth[0]]]
    path = write_coco(tmp_path, rectangles, names=names, category_ids=range(1, 13))
    edit(path, lambda c: [a.update(category_id=i % 12 + 1) for i, a in enumerate(c["annotations"])])
    evaluator = CocoEvaluator(load(path))
    evaluator.update(1, instances(*((0.9, i, 8, 8, 40, 40) for i in range(12))))
    written = write_report(evaluator, "a model", tmp_path)
    assert [path.name for path in written] == ["precision_recall.png", "mistakes.jpg"]
    with Image.open(written[0]) as picture:
        assert picture.size[0] == 1200 and picture.size[1] > 900
    assert json.loads(json.dumps(evaluator.summarize()))["AP50"] > 90
