from pathlib import Path

import pytest

from fastinst.data.dataset import Annotation, Dataset, ImageRecord
from fastinst.training.typical_images import MOST_OBJECTS, object_length, typical_images


def record(id_, *sides, labels=None, crowds=0, size=(100, 200)):
    """An image with squares of these sides, and crowds of 25 x 25."""
    squares = [
        Annotation(i, label, [[0, 0, side, 0, side, side, 0, side]], i >= len(sides))
        for i, (side, label) in enumerate(
            zip((*sides, *[25] * crowds), (labels or [0] * len(sides)) + [0] * crowds, strict=True)
        )
    ]
    return ImageRecord(id_, Path(f"{id_}.png"), *size, tuple(squares))


def ids(count, *records, seed=0):
    names = ("a", "b", "c")
    dataset = Dataset(Path("x.json"), Path("."), names, (1, 2, 3), records, ())
    return [r.id for r in typical_images(dataset, count, seed)]


def test_the_length_of_objects_is_the_median_in_short_edges_without_crowds():
    assert object_length(record(1, 10, 20, 60, crowds=2)) == pytest.approx(0.2)
    assert object_length(record(1, crowds=2)) == object_length(record(1)) == 0


def test_objects_that_are_neither_tiny_nor_huge_come_first_whatever_the_seed():
    records = [record(1, 2), record(2, 26), record(3, 100), record(4, 12), record(5, crowds=1)]
    for seed in range(5):
        assert ids(10, *records, seed=seed) == [2, 4, 3, 1]
    assert ids(2, *records) == [2, 4]


def test_crowded_images_come_last():
    crowded = record(1, *[25] * (MOST_OBJECTS + 1))
    assert ids(2, crowded, record(2, 3)) == [2, 1]


def test_every_class_comes_before_any_twice():
    records = [
        record(1, 25, labels=[0]),
        record(2, 24, labels=[0]),
        record(3, 8, 8, labels=[0, 1]),
        record(4, 2, labels=[2]),
        record(5, 3, labels=[1]),
    ]
    assert ids(3, *records) == [1, 3, 4]
    assert ids(5, *records) == [1, 3, 4, 2, 5]


def test_no_images_or_none_with_objects():
    assert ids(3) == ids(3, record(1)) == []
