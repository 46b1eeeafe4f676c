"""Every format becomes the same data set."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_coco import ColourModel, write_coco, write_yolo

from fastinst.data import formats
from fastinst.data.coco import load_coco
from fastinst.data.dataset import MissingSplit
from fastinst.data.formats import load_dataset, load_splits
from fastinst.errors import InputError
from fastinst.metrics.evaluate import evaluate
from fastinst.predictor import Predictor

SIZE = (64, 96)
RECTANGLES = [[(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)], [(2, 16, 16, 80, 56)], []]


def coco(folder: Path) -> Path:
    write_coco(folder, RECTANGLES, SIZE)
    return folder


def roboflow(folder: Path) -> Path:
    write_coco(folder, RECTANGLES, SIZE)
    (folder / "val.json").rename(folder / "val" / "_annotations.coco.json")
    (folder / "val").rename(folder / "valid")
    return folder


def yolo(folder: Path) -> Path:
    """Beside a JSON that is no COCO, as some programs write it."""
    write_yolo(folder, RECTANGLES, SIZE)
    (folder / "notes.json").write_text('{"categories": []}')
    return folder


def cityscapes(folder: Path) -> Path:
    write_coco(folder, RECTANGLES, SIZE)
    (folder / "val.json").unlink()
    places = [folder / kind / "val" / "ulm" for kind in ("leftImg8bit", "gtFine")]
    for place in places:
        place.mkdir(parents=True)
    for number, objects in enumerate(RECTANGLES, start=1):
        (folder / "val" / f"{number}.png").rename(places[0] / f"ulm_{number}_leftImg8bit.png")
        ids = np.zeros(SIZE, np.uint16)
        for i, (label, left, top, right, bottom) in enumerate(objects):
            ids[top:bottom, left:right] = 1000 * (24 + label) + i
        Image.fromarray(ids).save(places[1] / f"ulm_{number}_gtFine_instanceIds.png")
    (folder / "val").rmdir()
    return folder


FORMATS = [coco, roboflow, yolo, cityscapes]


@pytest.mark.parametrize("write", FORMATS)
def test_the_format_is_found_out_and_all_become_the_same(tmp_path, write):
    dataset = load_dataset(str(write(tmp_path / "my data")), "val")
    assert [r.id for r in dataset.images] == [1, 2, 3] and not dataset.skipped
    for record, objects in zip(dataset.images, RECTANGLES, strict=True):
        assert (record.height, record.width) == SIZE and record.path.is_file()
        assert [a.label for a in record.annotations] == [label for label, *_ in objects]
        for annotation, (_, left, top, right, bottom) in zip(
            record.annotations, objects, strict=True
        ):
            expected = np.zeros(SIZE, bool)
            expected[top:bottom, left:right] = True
            np.testing.assert_array_equal(annotation.mask(*SIZE), expected)
            assert annotation.area in (None, expected.sum())


@pytest.mark.parametrize("write", FORMATS)
def test_all_are_evaluated_alike(tmp_path, write):
    dataset = load_dataset(write(tmp_path), "val")
    model = ColourModel(len(dataset.class_names))
    summary = evaluate(Predictor(model), dataset, progress=False).summarize()
    assert [summary["AP"], summary["APm"]] == pytest.approx([100, 100])
    assert (summary["images"], summary["instances"]) == (3, 3) and math.isnan(summary["APl"])


@pytest.mark.parametrize("write", FORMATS)
def test_a_missing_split_is_told_from_broken_data(tmp_path, write):
    folder = write(tmp_path)
    (folder / "images" / "train").mkdir(parents=True)
    with pytest.raises(MissingSplit, match="train"):
        load_dataset(folder, "train")


@pytest.mark.parametrize("write", FORMATS)
def test_one_split_alone_is_both_or_said_to_be_missing(tmp_path, write):
    folder = write(tmp_path / "data")
    with pytest.raises(MissingSplit):
        load_splits(folder)
    rename = {coco: "val.json", roboflow: "valid", yolo: "labels/val", cityscapes: "gtFine/val"}
    place = folder / rename[write]
    place.rename(place.with_name(place.name.replace("valid", "val").replace("val", "train")))
    for images in ("images", "leftImg8bit", ""):
        if (folder / images / "val").exists():
            (folder / images / "val").rename(folder / images / "train")
    (folder / "data.yaml").unlink(missing_ok=True)
    train, val, reason = load_splits(folder)
    assert len(train) == 3 and val is None and "val" in reason
    other = write(tmp_path / "other")
    assert len(load_splits(folder, other)[1]) == 3


def test_a_json_for_both_splits_is_not_validated_on(tmp_path):
    folder = coco(tmp_path)
    (folder / "val.json").rename(folder / "all.json")
    (folder / "val").rename(folder / "images")
    train, val, reason = load_splits(folder)
    assert len(train) == 3 and val is None and "all.json is the training set" in reason


def test_files_may_be_given_instead_of_folders(tmp_path):
    coco(tmp_path / "coco")
    yolo(tmp_path / "yolo")
    assert len(load_dataset(tmp_path / "coco" / "val.json", "train")) == 3
    assert len(load_dataset(tmp_path / "yolo" / "data.yaml", "val")) == 3
    (tmp_path / "yolo" / "some.txt").write_text("images/val/2.png")
    assert len(load_dataset(tmp_path / "yolo" / "some.txt", "val")) == 1


def test_images_of_a_json_may_lie_anywhere(tmp_path):
    coco(tmp_path / "data")
    (tmp_path / "data" / "val").rename(tmp_path / "pictures")
    dataset = load_dataset(tmp_path / "data" / "val.json", "val", tmp_path / "pictures")
    assert dataset.images[0].path == tmp_path / "pictures" / "1.png"
    with pytest.raises(InputError, match="nowhere: no such folder of images"):
        load_dataset(tmp_path / "data", "val", tmp_path / "nowhere")
    for write in (yolo, cityscapes):
        with pytest.raises(InputError, match="for a COCO JSON only"):
            load_dataset(write(tmp_path / write.__name__), "val", tmp_path)


def test_one_folder_may_hold_the_images_of_both_splits(tmp_path):
    coco(tmp_path / "data")
    val, images = tmp_path / "data" / "val.json", tmp_path / "pictures"
    (tmp_path / "data" / "val").rename(images)
    assert load_splits(val, None, images)[1:] == (None, f"{val} is the training set")
    train = val.with_name("train.json")
    train.write_text(val.read_text())
    for arguments in ((val.parent, None, images), (train, val, images)):
        found = load_splits(*arguments)
        assert [dataset.source for dataset in found[:2]] == [train, val]
        assert {record.path.parent for record in found[1].images} == {images}
    with pytest.raises(InputError, match="--images FOLDER says where they are"):
        load_splits(train, val)
    other = coco(tmp_path / "other")  # has its own
    assert load_splits(train, other, images)[1].images[0].path.parent == other / "val"


def test_annotations_named_after_the_split_come_before_labels(tmp_path):
    """Downloads of COCO for YOLO hold both; the JSON knows crowds and holes."""
    folder = yolo(tmp_path)
    (folder / "annotations").mkdir()
    source = write_coco(tmp_path / "other", RECTANGLES, SIZE)
    content = json.loads(source.read_text())
    content["annotations"][0]["iscrowd"] = 1
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    assert load_dataset(folder, "val").images[0].annotations[0].iscrowd


def test_what_fits_nothing_is_told_what_would(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    for path, words in ((tmp_path, "nothing in it is"), (tmp_path / "a.jpg", "this is not")):
        with pytest.raises(InputError) as error:
            load_dataset(path, "train")
        message = str(error.value)
        assert message.startswith(f"{path}: {words} a data set in a known format")
        for part in ("annotations/instances_train.json", "labels/train/*.txt", "gtFine/train"):
            assert part in message
    with pytest.raises(InputError, match="none: no such file or folder"):
        load_dataset(tmp_path / "none", "train")
    (tmp_path / "labelme.json").write_text("{}")
    with pytest.raises(InputError, match=r"labelme\.json: not COCO"):
        load_dataset(tmp_path, "train")


def test_a_json_for_both_splits_is_read_once(tmp_path, monkeypatch):
    path, read = coco(tmp_path / "data") / "val.json", []

    def counted(*places):
        read.append(places)
        return load_coco(*places)

    monkeypatch.setattr(formats, "load_coco", counted)
    train, val, reason = load_splits(path)
    assert len(read) == 1
    assert len(train) == 3 and val is None and reason == f"{path} is the training set"
