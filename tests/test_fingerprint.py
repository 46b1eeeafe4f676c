"""What a changed data set is told by, and what is no change."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import torch

from fastinst.data.dataset import Annotation, Dataset, ImageRecord
from fastinst.training.fingerprint import difference, fingerprint

SQUARE = np.array([1.0, 1, 5, 1, 5, 5, 1, 5])


def annotation(label=0, segmentation=None, iscrowd=False, id_=7):
    return Annotation(id_, label, [SQUARE] if segmentation is None else segmentation, iscrowd)


def dataset(folder, count=3, classes=("cat", "dog")):
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(count):
        path = folder / "sub" / f"{i}.png"
        path.write_bytes(bytes(10 + i))
        records.append(ImageRecord(10 * i, path, 8, 9, (annotation(),) * i))
    ids = tuple(range(len(classes)))
    return Dataset(folder / "a.json", folder, tuple(classes), ids, tuple(records), ())


def replaced(data, index, **fields):
    images = list(data.images)
    images[index] = dataclasses.replace(images[index], **fields)
    return dataclasses.replace(data, images=tuple(images))


@pytest.fixture
def data(tmp_path):
    return dataset(tmp_path / "data")


def told(before, after):
    """The difference, by way of a checkpoint's file."""
    file = io.BytesIO()
    torch.save(fingerprint(before), file)
    file.seek(0)
    return difference(torch.load(file, weights_only=True), fingerprint(after))


def test_what_is_no_change(data, tmp_path):
    assert told(data, data) is None
    shutil.copytree(data.image_folder, tmp_path / "moved")
    assert told(data, dataset(tmp_path / "moved")) is None
    # Lists instead of arrays, views, and other ids of the same annotations.
    view = np.stack([SQUARE, SQUARE], 1)[:, 0]
    for segmentation in (SQUARE.tolist(), view, SQUARE.astype(np.float32)):
        other = replaced(data, 1, annotations=(annotation(segmentation=[segmentation], id_=99),))
        assert told(data, other) is None
    empty = dataset(tmp_path / "empty", count=0)
    assert told(empty, empty) is None


@pytest.mark.parametrize(
    "changed",
    [
        (),
        (annotation(label=1),),
        (annotation(iscrowd=True),),
        (annotation(), annotation()),
        (annotation(segmentation=[SQUARE + 0.25]),),
        (annotation(segmentation=[SQUARE, SQUARE]),),
        (annotation(segmentation=[SQUARE[:6]]),),
        (annotation(segmentation={"size": [8, 9], "counts": b"X01"}),),
    ],
)
def test_changed_annotations_are_named(data, changed):
    line = "the annotations (or the stated size) of image 10 (sub/1.png) changed"
    assert told(data, replaced(data, 1, annotations=changed)) == line


def test_the_same_points_in_other_polygons_or_other_run_lengths_are_a_change(data):
    def other(segmentation):
        return replaced(data, 1, annotations=(annotation(segmentation=segmentation),))

    points = np.arange(16.0)
    assert told(other([points]), other([points[:8], points[8:]]))
    assert told(other([points[:6], points[6:]]), other([points[:8], points[8:]]))
    rles = [b"X01", "X10", [3, 4, 65], [3, 46, 5]]
    different = [other({"size": [8, 9], "counts": counts}) for counts in rles]
    for i, first in enumerate(different):
        for j, second in enumerate(different):
            assert (told(first, second) is None) == (i == j)
    same = [other({"size": [8, 9], "counts": counts}) for counts in (b"X01", "X01")]
    assert told(*same) is None  # the same in Python's two forms


def test_images_that_are_gone_new_renamed_resized_or_reordered(data, tmp_path):
    assert told(data, replaced(data, 0, height=7)) == (
        "the annotations (or the stated size) of image 0 (sub/0.png) changed"
    )
    more = dataset(tmp_path / "data", count=8)
    line = "5 images are {}: 30 (sub/3.png), 40 (sub/4.png), 50 (sub/5.png), ..."
    assert told(data, more) == line.format("new")
    assert told(more, data) == line.format("gone")
    fewer = dataclasses.replace(data, images=data.images[:2])
    assert told(data, fewer) == "image 20 (sub/2.png) is gone"
    assert told(fewer, data) == "image 20 (sub/2.png) is new"

    reversed_ = dataclasses.replace(data, images=data.images[::-1])
    assert told(data, reversed_) == "the images are in another order"

    renamed = data.images[1].path.with_name("new.png")
    shutil.copy(data.images[1].path, renamed)
    line = "image 10 (sub/new.png) had another file"
    assert told(data, replaced(data, 1, path=renamed)) == line

    before = fingerprint(data)
    data.images[2].path.write_bytes(bytes(99))
    line = "the file of image 20 (sub/2.png) has another length"
    assert difference(before, fingerprint(data)) == line
    data.images[2].path.unlink()
    assert difference(before, fingerprint(data)) == line


def test_classes(data, tmp_path):
    def with_classes(*classes):
        return dataclasses.replace(data, class_names=classes)

    assert told(data, with_classes("cat", "dog", "cow")) == "class 'cow' is new"
    assert told(data, with_classes("cat", "cow")) == "class 'dog' is gone; class 'cow' is new"
    assert told(data, with_classes("dog", "cat")) == "the classes are in another order"
    # Their labels have moved with the classes; the annotations are not blamed for it.
    moved = replaced(with_classes("ape", "cat", "dog"), 1, annotations=(annotation(label=1),))
    assert told(data, moved) == "class 'ape' is new"


def test_several_differences_stand_in_one_line(data, tmp_path):
    changed = replaced(dataset(tmp_path / "data", 4, ("cat",)), 0, id=5)
    line = told(data, changed)
    assert line.count("; ") == 2 and "\n" not in line
    for words in (
        "'dog' is gone",
        "image 0 (sub/0.png) is gone",
        "2 images are new: 5 (sub/0.png)",
    ):
        assert words in line
