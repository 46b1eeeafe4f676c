"""Reading and checking YOLO labels."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from yolo_files import HEIGHT, SQUARE, WIDTH, add, one

from fastinst.data.images import read_image
from fastinst.data.yolo import load_yolo, read_labels
from fastinst.errors import InputError


def test_masks_are_those_of_the_polygons_in_pixels(tmp_path):
    dataset = one(tmp_path, f"{SQUARE}\n\n  0 .5 0 1 0 1 1 .5 1  \r\n")
    first, second = dataset.images[0].annotations
    assert (first.id, second.id) == (1, 2) and not first.iscrowd and first.area is None
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:15, 10:30] = True
    np.testing.assert_array_equal(first.mask(HEIGHT, WIDTH), expected)
    assert second.mask(HEIGHT, WIDTH)[:, 20:].all() and second.mask(HEIGHT, WIDTH).sum() == 400


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2 0.2", "a box is no mask"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.5", "odd number"),
        ("0 0.1 0.1", "fewer than 3 points"),
        ("0", "fewer than 3 points"),
        ("0 0.1 0.1 nan 0.9 0.5 0.2", "not finite"),
        ("0 0.1 0.1 inf 0.9 0.5 0.2", "no fractions"),
        ("0 10 20 300 20 300 150", "no fractions"),
        ("0 0.1 0.1 0.5 0.5 0.9 0.9", "area is zero"),
        ("0 1.1 0.1 1.5 0.1 1.5 0.5", "outside the image"),
        ("0.5 0.1 0.1 0.9 0.1 0.9 0.9", "class 0.5 is no whole number"),
        ("-1 0.1 0.1 0.9 0.1 0.9 0.9", "class -1 is no whole number"),
        ("nan 0.1 0.1 0.9 0.1 0.9 0.9", "class nan is no whole number"),
        ("cat 0.1 0.1 0.9 0.1 0.9 0.9", "'cat 0.1 .* not all numbers"),
        ("0,0.1,0.1,0.9,0.1,0.9,0.9", "not all numbers"),
    ],
)
def test_unusable_lines_are_skipped_with_the_reason(tmp_path, line, reason):
    dataset = one(tmp_path, f"{SQUARE}\n{line}\n{SQUARE}")
    assert [a.id for a in dataset.images[0].annotations] == [1, 3]
    (skipped,) = dataset.skipped
    assert re.search(rf"labels/a\.txt, line 2 \(a\.jpg\): .*{reason}", skipped)
    (record,) = dataset.images
    assert len(record.invisible) == (reason in ("area is zero", "outside the image"))


def test_missing_and_empty_label_files_mean_no_objects(tmp_path):
    add(tmp_path, "images/a.jpg", None)
    add(tmp_path, "images/b.jpg", "labels/b.txt", "")
    add(tmp_path, "images/c.jpg", "labels/c.txt")
    dataset = load_yolo(tmp_path, "train")
    assert [len(r.annotations) for r in dataset.images] == [0, 0, 1]
    assert [r.id for r in dataset.images] == [1, 2, 3] and not dataset.skipped


def test_no_label_file_at_all_is_an_error_that_says_where_they_should_be(tmp_path):
    add(tmp_path, "images/train/a.jpg", "labels/train/b.txt")
    with pytest.raises(
        InputError, match=r"none of 1 images .*a\.jpg would be .*labels/train/a\.txt"
    ):
        load_yolo(tmp_path, "train")


def test_labels_without_an_image_are_told(tmp_path):
    add(tmp_path, "images/a.jpg", "labels/a.txt")
    (tmp_path / "labels/b.txt").write_text(SQUARE)
    (line,) = load_yolo(tmp_path, "train").skipped
    assert line.endswith("labels/b.txt: there is no image of this name")


def test_a_class_without_a_name_is_an_error(tmp_path):
    (tmp_path / "data.yaml").write_text("names: {0: a, 2: b}")
    with pytest.raises(InputError, match=r"a\.txt, line 2: class 1, .*data\.yaml .* 0, 2"):
        one(tmp_path, SQUARE + "\n" + SQUARE.replace("0 ", "1 ", 1))


def test_broken_images_and_labels_are_named(tmp_path):
    for i in range(13):
        add(tmp_path, f"images/{i:02}.jpg", f"labels/{i:02}.txt")
    for i in range(1, 13):
        (tmp_path / f"images/{i:02}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"12 of 13 images are unusable") as error:
        load_yolo(tmp_path, "train")
    lines = str(error.value).splitlines()
    assert "01.jpg" in lines[1] and lines[-1].strip() == "and 2 more" and len(lines) == 12
    (tmp_path / "labels/00.txt").write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match=r"00\.txt: cannot be read as YOLO labels"):
        load_yolo(tmp_path, "train")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_labels_are_for_the_upright_image(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    add(tmp_path, "images/a.txt.jpg", "labels/a.txt")
    (tmp_path / "images/a.txt.jpg").unlink()
    path = tmp_path / f"images/a.{suffix}"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)
    (record,) = load_yolo(tmp_path, "train").images
    assert (record.height, record.width) == (WIDTH, HEIGHT)
    assert read_image(record.path, (record.height, record.width)).shape == (WIDTH, HEIGHT, 3)
    assert record.annotations[0].mask(WIDTH, HEIGHT)[10:30, 5:15].all()


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text() | st.lists(st.text("0123456789.- \tein\n", max_size=40)).map("\n".join))
def test_any_text_is_objects_and_reasons(tmp_path, text):
    lines = one(tmp_path, "")  # so that the folders are there
    (tmp_path / "labels/a.txt").write_text(text, newline="")
    expected = sum(
        1 for line in (tmp_path / "labels/a.txt").read_text().split("\n") if line.strip()
    )
    assert len(read_labels(tmp_path / "labels/a.txt")) == expected
    lines = load_yolo(tmp_path, "train")
    (record,) = lines.images
    assert len(record.annotations) + len(lines.skipped) == expected
    for annotation in record.annotations:
        assert annotation.mask(HEIGHT, WIDTH).any()
