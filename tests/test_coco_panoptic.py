"""COCO panoptic annotations, read and written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastinst.data.augment import Augmentation
from fastinst.data.coco_panoptic import load_coco_panoptic
from fastinst.data.dataset import MissingSplit
from fastinst.data.id_maps import colours_of_ids, ids_of_colours
from fastinst.data.layouts import MissingImages
from fastinst.data.loader import TrainingImages
from fastinst.data.panoptic_results import PanopticResults
from fastinst.errors import InputError
from fastinst.segments import Segment, SegmentMap

SIZE = (20, 30)
CATEGORIES = [
    {"id": 90, "name": "sky", "isthing": 0},
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 7, "name": "train", "isthing": 1},
]


def scene():
    """Sky, two cars, a crowd of trains, and void between them; ids as large as COCO's."""
    ids = np.zeros(SIZE, np.int32)
    ids[:8] = 9_000_017
    ids[9:14, 2:9] = ids[9:11, 20:22] = 300
    ids[10:16, 12:18] = 65_536
    ids[17:, 3:] = 1
    segments = [
        {"id": 300, "category_id": 3, "iscrowd": 0, "area": 39},
        {"id": 9_000_017, "category_id": 90, "iscrowd": 0, "area": 240},
        {"id": 1, "category_id": 7, "iscrowd": 1},
        {"id": 65_536, "category_id": 3},
    ]
    return ids, segments


def write(folder: Path, scenes, split="val", **changes) -> Path:
    """A folder in COCO's layout with the images 5, 6, ...; returns the JSON."""
    stem = folder / "annotations" / f"panoptic_{split}2017"
    stem.mkdir(parents=True)
    images = folder / f"{split}2017"
    images.mkdir()
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id, (ids, segments) in enumerate(scenes, start=5):
        Image.new("RGB", SIZE[::-1]).save(images / f"{image_id:012}.jpg")
        colours_of_ids(ids).save(stem / f"{image_id:012}.png")
        content["images"].append(
            {"id": image_id, "file_name": f"{image_id:012}.jpg", "height": 20, "width": 30}
        )
        content["annotations"].append(
            {"image_id": image_id, "file_name": f"{image_id:012}.png", "segments_info": segments}
        )
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(content | changes))
    return path


def test_things_stuff_crowds_and_void(tmp_path):
    ids, segments = scene()
    path = write(tmp_path / "co co", [(ids, segments), (np.zeros(SIZE), [])])
    dataset = load_coco_panoptic(tmp_path / "co co", "val")
    assert (dataset.source, dataset.image_folder) == (path, tmp_path / "co co/val2017")
    assert dataset.class_names == ("car", "train", "sky") and dataset.category_ids == (3, 7, 90)
    assert dataset.is_thing == (True, True, False) and not dataset.skipped
    first, second = dataset.images
    assert (first.id, first.path.name, first.height, first.width) == (5, "000000000005.jpg", *SIZE)
    assert second.annotations == ()
    found = [(a.id, a.label, a.iscrowd) for a in first.annotations]
    assert found == [(1, 0, False), (2, 2, False), (3, 1, True), (4, 0, False)]
    for annotation, segment in zip(first.annotations, segments, strict=True):
        np.testing.assert_array_equal(annotation.mask(*SIZE), ids == segment["id"])
        assert annotation.area == (ids == segment["id"]).sum()
    truth = SegmentMap.of(first)
    assert ((truth.ids == 0).numpy() == (ids == 0)).all()
    assert [s.iscrowd for s in truth.segments] == [False, False, True, False]


def test_stuff_is_learnt_like_things(tmp_path):
    dataset = load_coco_panoptic(write(tmp_path, [scene()]), "val")
    images = TrainingImages(dataset, Augmentation.flip_only(*SIZE), seed=0)
    target = images[0, 0]["target"]
    assert target["labels"].tolist() == [0, 2, 0]  # two cars, the sky; not the crowd


def test_what_is_written_is_read_back(tmp_path):
    ids, segments = scene()
    dataset = load_coco_panoptic(write(tmp_path, [(ids, segments)]), "val")
    truth = SegmentMap.of(dataset.images[0])
    (tmp_path / "annotations" / "panoptic_val2017.json").rename(tmp_path / "truth.json")
    results = PanopticResults(tmp_path / "out" / "panoptic_val2017.json", dataset.category_ids)
    results.add(5, truth)
    results.add("ulm_0", truth)
    results.finish()
    written = json.loads((tmp_path / "out" / "panoptic_val2017.json").read_text())
    names = [row["file_name"] for row in written["annotations"]]
    assert names == ["000000000005.png", "ulm_0.png"]
    with Image.open(tmp_path / "out" / "panoptic_val2017" / names[0]) as image:
        np.testing.assert_array_equal(ids_of_colours(image), truth.ids.numpy())
    truths = json.loads((tmp_path / "truth.json").read_text())
    truths["annotations"] = written["annotations"][:1]
    path = tmp_path / "out" / "panoptic_val2017.json"
    path.write_text(json.dumps(truths))
    again = load_coco_panoptic(path, "val", tmp_path / "val2017")
    assert torch.equal(SegmentMap.of(again.images[0]).ids, truth.ids)
    assert SegmentMap.of(again.images[0]).segments == truth.segments


def test_what_json_and_png_disagree_on_is_said(tmp_path):
    ids, segments = scene()
    ids[ids == 300] = 0
    ids[0, 0] = 77
    path = write(tmp_path, [(ids, segments)])
    dataset = load_coco_panoptic(path, "val", tmp_path / "val2017")
    assert dataset.skipped == (
        "segment 300 of image 5 (000000000005.jpg): no pixel",
        "segment 77 of image 5 (000000000005.jpg): not listed, so void",
    )
    (record,) = dataset.images
    assert [a.label for a in record.annotations] == [2, 1, 0]
    assert [a.label for a in record.invisible] == [0]
    truth = SegmentMap.of(record)
    assert len(truth.segments) == 4 and truth.segments[-1] == Segment(4, 0)
    assert truth.ids[0, 0] == 0


def test_missing_files_come_with_the_fix(tmp_path):
    with pytest.raises(
        MissingSplit, match=r"panoptic_train\*\.json\. Download https://images\.coco"
    ):
        load_coco_panoptic(tmp_path, "train")
    with pytest.raises(InputError, match="nowhere: no such file"):
        load_coco_panoptic(tmp_path / "nowhere", "val")
    path = write(tmp_path, [scene(), scene()])
    (path.with_suffix("") / "000000000006.png").unlink()
    message = r"1 of its 2 PNGs are not in .*panoptic_val2017: 000000000006\.png\. Download"
    with pytest.raises(InputError, match=message):
        load_coco_panoptic(path, "val", tmp_path / "val2017")
    Image.new("RGB", SIZE[::-1]).save(path.with_suffix("") / "000000000006.png")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingImages):
        load_coco_panoptic(tmp_path, "val")
    elsewhere = tmp_path / "elsewhere"
    assert load_coco_panoptic(tmp_path, "val", elsewhere).image_folder == elsewhere
    (elsewhere / "000000000006.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of its 2 images are not in .*elsewhere: 0+6\.jpg"):
        load_coco_panoptic(path, "val", elsewhere)
    with pytest.raises(InputError, match="no such folder of images"):
        load_coco_panoptic(tmp_path, "val", tmp_path / "not there")
    path.with_name("panoptic_val2014.json").write_text("{}")
    with pytest.raises(InputError, match=r"2 files .*panoptic_val2014\.json, panoptic_val2017"):
        load_coco_panoptic(tmp_path, "val")


def row(**changes):
    return {"image_id": 5, "file_name": "000000000005.png", "segments_info": scene()[1]} | changes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"categories": [{"id": 3, "name": "car"}]}, "json: no panoptic annotations"),
        (
            {"categories": [*CATEGORIES, {"id": 99, "name": "car"}]},
            "category .* has no isthing of type int",
        ),
        ({"annotations": [row(image_id=8)]}, "the annotation of image 8: no such image"),
        ({"annotations": [row(), row()]}, "the annotation of image 5 is there twice"),
        ({"annotations": [row(file_name=None)]}, "has no file_name of type str"),
        ({"annotations": [row(segments_info={})]}, "has no segments_info of type list"),
        ({"annotations": [row(segments_info=[{"id": 1}])]}, "segment .* has no category_id"),
        ({"annotations": [row(segments_info=[3])]}, "segment 3 .* has no id of type int"),
        (
            {"annotations": [row(segments_info=[{"id": 1, "category_id": 4}])]},
            "image 5 names the category 4, which is not listed",
        ),
        (
            {"annotations": [row(segments_info=2 * [{"id": 1, "category_id": 3}])]},
            "image 5: its segments' ids are not different numbers",
        ),
        (
            {"annotations": [row(segments_info=[{"id": 1 << 24, "category_id": 3}])]},
            "its segments' ids are not different numbers",
        ),
        ({"images": []}, "its list of images is empty"),
        (
            {"images": [{"id": 5, "file_name": "000000000005.jpg", "height": 20, "width": 31}]},
            r"000000000005\.png: it is 30 x 20, its image 31 x 20",
        ),
    ],
)
def test_broken_entries_are_named(tmp_path, changes, message):
    path = write(tmp_path, [scene()], **changes)
    with pytest.raises(InputError, match=message):
        load_coco_panoptic(path, "val", tmp_path / "val2017")


def test_broken_pngs_are_named(tmp_path):
    path = write(tmp_path, [scene()])
    png = path.with_suffix("") / "000000000005.png"
    Image.new("L", SIZE[::-1]).save(png)
    with pytest.raises(InputError, match=r"0005\.png: .*its pixels are L, not the RGB"):
        load_coco_panoptic(path, "val", tmp_path / "val2017")
    png.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0005\.png: cannot be read as panoptic ids"):
        load_coco_panoptic(path, "val", tmp_path / "val2017")
