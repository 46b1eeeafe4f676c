"""Where COCO annotations and their images are looked for."""

import json

import pytest
from coco_files import coco, save_image

from fastinst.data.coco import load_coco
from fastinst.data.layouts import find_coco
from fastinst.errors import InputError


@pytest.mark.parametrize(
    ("split", "json_name", "image_name"),
    [
        ("train", "annotations/instances_train2017.json", "train2017/a.jpg"),
        ("val", "annotations/instances_val.json", "val/a.jpg"),
        ("train", "annotations/instances_train.json", "train2017/a.jpg"),
        ("train", "annotations/instances_train.json", "images/train/a.jpg"),
        ("val", "annotations/instances_val2014.json", "images/val2014/a.jpg"),
        ("train", "annotations/instances_train.json", "images/a.jpg"),
        ("train", "annotations/instances_train.json", "a.jpg"),
        ("train", "train/_annotations.coco.json", "train/a.jpg"),
        ("val", "valid/_annotations.coco.json", "valid/a.jpg"),
        ("val", "val/_annotations.coco.json", "val/a.jpg"),
        ("train", "train.json", "train/a.jpg"),
        ("val", "validation.json", "images/a.jpg"),
        ("val", "test.json", "a.jpg"),
        ("train", "result.json", "a.jpg"),
        ("val", "result.json", "images/a.jpg"),
        ("train", "annotations/instances_default.json", "images/default/a.jpg"),
    ],
)
def test_common_layouts_are_found(tmp_path, split, json_name, image_name):
    save_image(tmp_path / image_name)
    json_path = tmp_path / json_name
    json_path.parent.mkdir(exist_ok=True)
    json_path.write_text(json.dumps(coco()))
    assert find_coco(tmp_path, split) == (json_path, (tmp_path / image_name).parent)
    assert find_coco(json_path, split) == (json_path, (tmp_path / image_name).parent)


def test_each_split_gets_its_own_files_when_image_names_are_the_same(tmp_path):
    for split in ("train", "val", "test"):
        save_image(tmp_path / split / "a.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(coco()))
    for split in ("train", "val"):
        json_path, folder = find_coco(tmp_path, split)
        assert (json_path.stem, folder.name) == (f"instances_{split}", split)


def test_a_missing_image_does_not_lead_to_the_other_split(tmp_path):
    image = coco()["images"][0]
    data = coco(images=[image, image | {"id": 6, "file_name": "b.jpg"}])
    for name in ("train/a.jpg", "train/b.jpg", "val/b.jpg"):
        save_image(tmp_path / name)
    (tmp_path / "val.json").write_text(json.dumps(data))
    json_path, folder = find_coco(tmp_path, "val")
    assert folder == tmp_path / "val"
    with pytest.raises(InputError, match=r"1 of its 2 images are not in .*val: a\.jpg"):
        load_coco(json_path, folder)


@pytest.mark.parametrize("before", [3_000_000, *range(2**20 - 70, 2**20, 10)])
def test_image_names_are_found_wherever_they_are(tmp_path, before):
    """The file is read in pieces of 2**20 characters; names may lie across two of them."""
    save_image(tmp_path / "images" / "a.jpg")
    data = {"info": "x" * before, "images": coco()["images"]}
    (tmp_path / "all.json").write_text(json.dumps(data))
    assert find_coco(tmp_path, "train")[1] == tmp_path / "images"


def test_the_other_splits_json_is_not_taken(tmp_path):
    save_image(tmp_path / "a.jpg")
    (tmp_path / "train.json").write_text(json.dumps(coco()))
    with pytest.raises(InputError, match=r"(?s)'val'.*annotations/instances_val\.json"):
        find_coco(tmp_path, "val")


def test_the_folder_of_images_may_be_given(tmp_path):
    save_image(tmp_path / "train" / "a.jpg")
    save_image(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "train.json").write_text(json.dumps(coco()))
    assert find_coco(tmp_path, "train")[1] == tmp_path / "train"
    folder = tmp_path / "elsewhere"
    assert find_coco(tmp_path, "train", str(folder)) == (tmp_path / "train.json", folder)
    with pytest.raises(InputError, match="none: no such folder of images"):
        find_coco(tmp_path, "train", tmp_path / "none")


def test_finding_fails_with_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        find_coco(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"(?s)Looked for.*_annotations\.coco\.json.*usual layout"):
        find_coco(tmp_path, "train")
    (tmp_path / "train_small.json").write_text(json.dumps(coco()))
    with pytest.raises(InputError, match=rf"(?s)a\.jpg.*in none of.*{tmp_path}/images"):
        find_coco(tmp_path, "train")
    (tmp_path / "train_large.json").write_text(json.dumps(coco()))
    with pytest.raises(InputError, match=r"2 files.*train_large\.json, train_small\.json"):
        find_coco(tmp_path, "train")
