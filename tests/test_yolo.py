"""Finding, reading and checking YOLO data sets."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastinst.data.dataset import MissingSplit
from fastinst.data.images import read_image
from fastinst.data.yolo import load_yolo, read_labels
from fastinst.data.yolo_layouts import find_yolo, is_yolo
from fastinst.errors import InputError

HEIGHT, WIDTH = 20, 40
SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"


def add(root: Path, image: str, label: str | None, lines: str = SQUARE) -> None:
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / image)
    if label is not None:
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_text(lines)


def one(tmp_path, lines: str):
    """A data set of one image with these lines."""
    add(tmp_path, "images/a.jpg", "labels/a.txt", lines)
    return load_yolo(tmp_path, "train")


# Finding


@pytest.mark.parametrize(
    ("split", "image", "label", "source"),
    [
        ("train", "images/train/a.jpg", "labels/train/a.txt", "labels/train"),
        ("train", "images/train2017/a.jpg", "labels/train2017/a.txt", "labels/train2017"),
        ("val", "images/val/a.jpg", "labels/val/a.txt", "labels/val"),
        ("train", "train/images/a.jpg", "train/labels/a.txt", "train/labels"),
        ("val", "valid/images/a.jpg", "valid/labels/a.txt", "valid/labels"),
        ("val", "images/test/a.jpg", "labels/test/a.txt", "labels/test"),
        ("train", "images/train/sub/a.jpg", "labels/train/sub/a.txt", "labels/train"),
        ("train", "images/a.jpg", "labels/a.txt", "labels"),
        ("val", "images/a.jpg", "labels/a.txt", "labels"),
        ("train", "train/a.jpg", "train/a.txt", "train"),
        ("val", "a.jpg", "a.txt", "."),
    ],
)
def test_common_layouts_are_found(tmp_path, split, image, label, source):
    root = tmp_path / "my data"
    add(root, image, label)
    files = find_yolo(root, split)
    assert files.images == (root / image,) and files.source == root / source
    assert is_yolo(root)
    dataset = load_yolo(root, split)
    assert [r.path for r in dataset.images] == [root / image] and not dataset.skipped
    assert len(dataset.images[0].annotations) == 1


def test_each_split_gets_its_own_files(tmp_path):
    for split in ("train", "val"):
        add(tmp_path, f"images/{split}/{split}.jpg", f"labels/{split}/{split}.txt")
    for split in ("train", "val"):
        assert [p.stem for p in find_yolo(tmp_path, split).images] == [split]


def test_a_split_that_is_not_there_is_said(tmp_path):
    add(tmp_path, "images/train/a.jpg", "labels/train/a.txt")
    with pytest.raises(MissingSplit, match=r"(?s)split 'val'.*images/val.*val\.txt.*data\.yaml"):
        find_yolo(tmp_path, "val")


def test_archives_and_hidden_files_are_passed_over(tmp_path):
    add(tmp_path, "images/train2017/a.jpg", "labels/train2017/a.txt")
    for name in (
        "images/train2017.zip",
        "images/train2017/._a.jpg",
        "labels/train2017/classes.txt",
    ):
        (tmp_path / name).write_bytes(b"no image")
    (record,) = load_yolo(tmp_path, "train").images
    assert record.path.name == "a.jpg"


def test_two_folders_of_one_split_are_an_error(tmp_path):
    for year in (2014, 2017):
        add(tmp_path, f"images/train{year}/a.jpg", f"labels/train{year}/a.txt")
    with pytest.raises(InputError, match=r"2 folders .*images/train2014, images/train2017"):
        find_yolo(tmp_path, "train")


def test_lists_of_images(tmp_path):
    for name in ("a", "b", "c"):
        add(tmp_path, f"images/{name}.jpg", f"labels/{name}.txt")
    (tmp_path / "train.txt").write_text(
        f"./images/c.jpg\n\n{tmp_path}/images/a.jpg\nimages/a.jpg\n"
    )
    for path in (tmp_path, tmp_path / "train.txt"):
        files = find_yolo(path, "train")
        assert [p.stem for p in files.images] == ["a", "c"]
        assert files.source == tmp_path / "train.txt"
    assert not load_yolo(tmp_path, "train").skipped  # b's labels may be another split's
    (tmp_path / "train.txt").write_text("images/a.jpg\nimages/x.jpg\n")
    with pytest.raises(InputError, match=r"train\.txt: 1 of its 2 .* images/x\.jpg"):
        find_yolo(tmp_path, "train")
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train\.txt: it lists no images"):
        find_yolo(tmp_path, "train")


@pytest.mark.parametrize(
    ("location", "value"),
    [
        ("path: .", "images/train"),
        ("path: ../my data", "images/train"),
        ("path: /nowhere", "images/train"),
        ("", "../images/train"),  # an exporter's, meaning ./
        ("", "./images/train/"),
        ("", "[images/train, more]"),
        ("", "list.txt"),
    ],
)
def test_places_of_data_yaml(tmp_path, location, value):
    root = tmp_path / "my data"
    add(root, "images/train/a.jpg", "labels/train/a.txt", SQUARE.replace("0 ", "1 ", 1))
    add(root, "more/b.jpg", "more/b.txt", "")
    (root / "list.txt").write_text("images/train/a.jpg")
    (root / "data.yaml").write_text(f"{location}\ntrain: {value}\nnames: [dog, cat]\n")
    assert is_yolo(root)
    for path in (root, root / "data.yaml"):
        dataset = load_yolo(path, "train")
        assert dataset.images[0].path == root / "images/train/a.jpg"
        assert (dataset.class_names, dataset.category_ids) == (("dog", "cat"), (0, 1))
        assert [a.label for a in dataset.images[0].annotations] == [1]
        assert len(dataset) == (2 if "more" in value else 1)


def test_data_yaml_that_leads_nowhere(tmp_path):
    add(tmp_path, "images/train/a.jpg", "labels/train/a.txt")
    path = tmp_path / "data.yaml"
    path.write_text("train: pictures\nnames: [a]")
    with pytest.raises(InputError, match=rf"(?s)data\.yaml: train: pictures .*{tmp_path}/pictures"):
        find_yolo(tmp_path, "train")
    with pytest.raises(MissingSplit):
        find_yolo(tmp_path, "val")
    for line in ("train: {0: a}", "train: [images, null]", "path: [a]\ntrain: images"):
        path.write_text(f"{line}\nnames: [a]")
        with pytest.raises(InputError, match=r"data\.yaml: 'path' and 'train' must be paths"):
            find_yolo(tmp_path, "train")
    path.unlink()
    (tmp_path / "a.yaml").write_text("train: images/train\nnames: [a]")
    assert find_yolo(tmp_path, "train").names_source == tmp_path / "a.yaml"
    (tmp_path / "b.yml").write_text("names: [a]")
    with pytest.raises(InputError, match=r"2 files .*a\.yaml, b\.yml.* name the one"):
        find_yolo(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "names", "ids"),
    [
        ("names: [b, a]", ("b", "a"), (0, 1)),
        ("names:\n  7: b\n  0: a\n  3: c", ("a", "c", "b"), (0, 3, 7)),
        ("nc: 2\nnames: ['cell', 'cell']", ("cell (0)", "cell (1)"), (0, 1)),
    ],
)
def test_class_names(tmp_path, text, names, ids):
    (tmp_path / "data.yaml").write_text(text)
    dataset = one(tmp_path, SQUARE)
    assert (dataset.class_names, dataset.category_ids) == (names, ids)


@pytest.mark.parametrize("name", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_class_names_from_a_list(tmp_path, name):
    add(tmp_path, "images/a.jpg", "labels/a.txt")
    (tmp_path / name).write_text("small dog\ncat\n\n")
    dataset = load_yolo(tmp_path, "train")
    assert dataset.class_names == ("small dog", "cat") and not dataset.skipped
    (tmp_path / name).write_text("dog\n\ncat")
    with pytest.raises(InputError, match=f"{name}: .* no empty line"):
        load_yolo(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: cat", "neither a list nor numbered"),
        ("names: {cat: 0}", "neither a list nor numbered"),
        ("names: []", "must not be empty"),
        ("names: [a, null]", "must not be empty"),
        ("names: {'-1': a}", "negative"),
        ("nc: 3\nnames: [a, b]", "nc 3 and 2 names"),
    ],
)
def test_bad_class_names(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"data\.yaml: .*{message}"):
        one(tmp_path, SQUARE)


def test_made_up_class_names_are_the_same_for_both_splits(tmp_path):
    add(tmp_path, "images/train/a.jpg", "labels/train/a.txt", SQUARE.replace("0 ", "4 ", 1))
    add(tmp_path, "images/val/a.jpg", "labels/val/a.txt", SQUARE + "\nnonsense")
    for split in ("train", "val"):
        dataset = load_yolo(tmp_path, split)
        assert (dataset.class_names, dataset.category_ids) == (("class 0", "class 4"), (0, 4))


# Lines


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
