"""Reading Cityscapes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastinst.data.cityscapes import STUFF, THINGS, is_cityscapes, load_cityscapes
from fastinst.data.dataset import MissingSplit
from fastinst.errors import InputError
from fastinst.segments import SegmentMap

SIZE = (24, 40)


def add(root: Path, name: str, ids: np.ndarray | None, split="val", city="ulm") -> Path:
    """An image and, unless None, its instance ids; returns the path of the ids without kind."""
    image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(image)
    truth = root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png"
    truth.parent.mkdir(parents=True, exist_ok=True)
    if ids is not None:
        Image.fromarray(ids.astype(np.uint16)).save(truth)
    return truth


def scene() -> np.ndarray:
    """Road, two cars of which one is in two parts, a group of people, and a traffic sign."""
    ids = np.full(SIZE, 7)
    ids[2:8, 3:10] = ids[12:14, 3:6] = 26000
    ids[4:10, 20:30] = 26001
    ids[15:20, 20:38] = 24
    ids[16:18, 22:26] = 20
    return ids


def test_instances_groups_and_everything_else(tmp_path):
    ids = scene()
    root = tmp_path / "city scapes"
    add(root, "ulm_000000_000019", ids)
    add(root, "aachen_000001_000019", np.full(SIZE, 33007), city="aachen")
    assert is_cityscapes(root) and not is_cityscapes(tmp_path)
    dataset = load_cityscapes(root, "val")
    assert dataset.category_ids == (24, 25, 26, 27, 28, 31, 32, 33) == tuple(THINGS)
    assert dataset.class_names[2] == "car" and dataset.class_names[7] == "bicycle"
    assert not dataset.skipped
    aachen, ulm = dataset.images
    assert (aachen.id, ulm.id) == (1, 2)
    assert ulm.path == root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert (ulm.height, ulm.width) == SIZE
    assert [(a.id, a.label, a.iscrowd) for a in aachen.annotations] == [(1, 7, False)]
    found = [(a.id, a.label, a.iscrowd, a.area) for a in ulm.annotations]
    assert found == [(2, 0, True, 82), (3, 2, False, 48), (4, 2, False, 60)]
    for annotation, value in zip(ulm.annotations, (24, 26000, 26001), strict=True):
        np.testing.assert_array_equal(annotation.mask(*SIZE), ids == value)


def test_panoptic_targets_are_things_groups_and_stuff(tmp_path):
    ids = scene()
    ids[0, :5] = 29000  # a caravan, which is no class of the evaluation
    ids[0, 5:9] = 18  # nor are groups of poles
    add(tmp_path, "ulm_0", ids)
    dataset = load_cityscapes(tmp_path, "val", "panoptic")
    assert len(dataset.class_names) == 19 and dataset.category_ids == tuple(sorted(STUFF | THINGS))
    assert dataset.is_thing == tuple(i in THINGS for i in dataset.category_ids)
    (record,) = dataset.images
    found = [(dataset.class_names[a.label], a.iscrowd) for a in record.annotations]
    assert found == [
        ("road", False),
        ("traffic sign", False),
        ("person", True),
        ("car", False),
        ("car", False),
    ]
    for annotation, value in zip(record.annotations, (7, 20, 24, 26000, 26001), strict=True):
        np.testing.assert_array_equal(annotation.mask(*SIZE), ids == value)
    segments = SegmentMap.of(record)
    assert ((segments.ids == 0).numpy() == np.isin(ids, (29000, 18))).all()


def test_semantic_targets_are_all_there_is_of_a_class(tmp_path):
    ids = scene()
    ids[0, :5] = 29000
    ids[22, :5] = 24003
    add(tmp_path, "ulm_0", ids)
    dataset = load_cityscapes(tmp_path, "val", "semantic")
    assert dataset.is_thing == (False,) * 19
    (record,) = dataset.images
    class_ids = np.where(ids < 1000, ids, ids // 1000)
    assert not any(a.iscrowd for a in record.annotations)
    assert [dataset.category_ids[a.label] for a in record.annotations] == [7, 20, 24, 26]
    for annotation in record.annotations:
        mask = class_ids == dataset.category_ids[annotation.label]
        np.testing.assert_array_equal(annotation.mask(*SIZE), mask)
    table = np.array([*dataset.category_ids, *[29] * 237])
    np.testing.assert_array_equal(table[SegmentMap.of(record).labels().numpy()], class_ids)


def test_polygons_stand_in_for_the_ids(tmp_path):
    def box(left, top, right, bottom):  # both ends are drawn
        return [[left, top], [right, top], [right, bottom], [left, bottom]]

    truth = add(tmp_path, "ulm_000000_000019", None)
    things = [
        ("road", box(0, 0, 39, 23)),
        ("car", box(3, 2, 9, 7)),
        ("car", box(20, 4, 29, 9)),
        ("license plate", box(22, 5, 24, 6)),
        ("persongroup", box(20, 15, 37, 19)),
        ("traffic sign", box(22, 16, 25, 17)),
        ("bicycle", [[1, 1], [2, 2]]),
        ("polegroup", box(30, 0, 31, 1)),
        ("caravan", box(33, 0, 34, 1)),
    ]
    content = {
        "imgHeight": SIZE[0],
        "imgWidth": SIZE[1],
        "objects": [{"label": label, "polygon": polygon} for label, polygon in things],
    }
    polygons = Path(str(truth).replace("instanceIds.png", "polygons.json"))
    polygons.write_text(json.dumps(content))
    (record,) = load_cityscapes(tmp_path, "val").images
    ids = scene()
    ids[12:14, 3:6] = 7
    assert [(a.label, a.iscrowd) for a in record.annotations] == [(0, 1), (2, 0), (2, 0)]
    for annotation, value in zip(record.annotations, (24, 26000, 26001), strict=True):
        np.testing.assert_array_equal(annotation.mask(*SIZE), ids == value)
    (record,) = load_cityscapes(tmp_path, "val", "panoptic").images
    ids[0:2, 30:32] = ids[0:2, 33:35] = 0
    values = (7, 20, 24, 26000, 26001)
    for annotation, value in zip(record.annotations, values, strict=True):
        np.testing.assert_array_equal(annotation.mask(*SIZE), ids == value)
    # Where both are there, the ids count.
    add(tmp_path, "ulm_000000_000019", np.zeros(SIZE))
    assert load_cityscapes(tmp_path, "val").images[0].annotations == ()


def test_missing_parts_are_named_with_the_fix(tmp_path):
    fix = r"[\s\S]*Download .*gtFine_trainvaltest\.zip [\s\S]*/gtFine/\{train,val\}/CITY"
    (tmp_path / "gtFine/val/ulm").mkdir(parents=True)
    with pytest.raises(MissingSplit, match=r"no images leftImg8bit/val/CITY" + fix):
        load_cityscapes(tmp_path, "val")
    for i in range(7):
        add(tmp_path, f"ulm_{i}", scene() if i == 3 else None)
    with pytest.raises(InputError, match=r"6 of 7 .*ulm_0_gtFine_instanceIds\.png.*, \.\.\." + fix):
        load_cityscapes(tmp_path, "val")
    with pytest.raises(MissingSplit, match="leftImg8bit/train"):
        load_cityscapes(tmp_path, "train")


def test_broken_annotations_are_named(tmp_path):
    truth = add(tmp_path, "ulm_0", scene())
    data = truth.read_bytes()
    truth.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"ulm_0_gtFine_instanceIds\.png: cannot be read"):
        load_cityscapes(tmp_path, "val")
    Image.new("RGB", SIZE[::-1]).save(truth)
    with pytest.raises(InputError, match=r"instanceIds\.png: .*RGB, not 16-bit ids"):
        load_cityscapes(tmp_path, "val")
    truth.unlink()
    polygons = Path(str(truth).replace("instanceIds.png", "polygons.json"))
    for text in ("{", "[]", '{"imgHeight": 2}', '{"imgHeight": 2, "imgWidth": 2, "objects": [1]}'):
        polygons.write_text(text)
        with pytest.raises(InputError, match=r"ulm_0_gtFine_polygons\.json: cannot be read"):
            load_cityscapes(tmp_path, "val")
