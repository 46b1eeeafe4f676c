"""Where YOLO labels, their images and class names are looked for."""

import pytest
from yolo_files import SQUARE, add, one

from fastinst.data.dataset import MissingSplit
from fastinst.data.yolo import load_yolo
from fastinst.data.yolo_layouts import find_yolo, is_yolo
from fastinst.errors import InputError


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
