"""Finding, reading and checking COCO files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from fastinst.data.coco import load_coco
from fastinst.data.dataset import Annotation
from fastinst.data.layouts import find_coco
from fastinst.errors import InputError

HEIGHT, WIDTH = 20, 30
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]


def coco(segmentations=(SQUARE,), **changes) -> dict:
    """One image, one annotation per segmentation, categories with a gap and out of order."""
    data = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": i + 1, "image_id": 5, "category_id": 9, "segmentation": segmentation}
            for i, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    return data | changes


def save_image(path: Path, height=HEIGHT, width=WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).save(path)


def load(folder: Path, data: object):
    json_path = folder / "data.json"
    json_path.write_text(data if isinstance(data, str) else json.dumps(data))
    save_image(folder / "a.jpg")
    return load_coco(json_path, folder)


# Finding


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


# Loading


def test_labels_count_up_by_category_id(tmp_path):
    data = coco([SQUARE, SQUARE])
    data["annotations"][1] |= {"category_id": 3, "iscrowd": 1}
    dataset = load(tmp_path, data)
    assert (dataset.class_names, dataset.category_ids) == (("dog", "cat"), (3, 9))
    (record,) = dataset.images
    assert (record.id, record.path, record.height, record.width) == (5, tmp_path / "a.jpg", 20, 30)
    assert [(a.id, a.label, a.iscrowd) for a in record.annotations] == [(1, 1, False), (2, 0, True)]
    assert len(dataset) == 1 and not dataset.skipped


def test_classes_of_one_name_are_told_apart(tmp_path):
    categories = [{"id": 9, "name": "cell"}, {"id": 3, "name": "cell"}, {"id": 4, "name": "dog"}]
    assert load(tmp_path, coco(categories=categories)).class_names == (
        "cell (3)",
        "dog",
        "cell (9)",
    )


def test_sizes_may_be_written_as_whole_floats(tmp_path):
    image = {"id": 5, "file_name": "a.jpg", "height": float(HEIGHT), "width": float(WIDTH)}
    (record,) = load(tmp_path, coco(images=[image])).images
    assert (record.height, record.width) == (HEIGHT, WIDTH) and type(record.height) is int
    with pytest.raises(InputError, match="has no height of type int"):
        load(tmp_path, coco(images=[image | {"height": 20.5}]))


def test_masks_of_all_kinds_of_segmentation(tmp_path):
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[3:13, 2:12] = True
    compressed = mask_utils.encode(np.asfortranarray(square, np.uint8))["counts"].decode()
    parts = [[2, 3, 7, 3, 7, 13, 2, 13], [7, 3, 12, 3, 12, 13, 7, 13]]
    plain = [2 * HEIGHT + 3] + [10, 10] * 9 + [10, (WIDTH - 12) * HEIGHT + HEIGHT - 13]
    rles = [{"size": [HEIGHT, WIDTH], "counts": counts} for counts in (compressed, plain)]
    outside = [[-250.0, 3, 12, 3, 12, 13, -250, 13]]
    dataset = load(tmp_path, coco([SQUARE, parts, *rles, outside]))
    masks = [a.mask(HEIGHT, WIDTH) for a in dataset.images[0].annotations]
    assert all(mask.dtype == bool and mask.flags.c_contiguous for mask in masks)
    for mask in masks[:4]:
        np.testing.assert_array_equal(mask, square)
    square[3:13, :2] = True
    np.testing.assert_array_equal(masks[4], square)


def rle(counts, size=(HEIGHT, WIDTH)) -> dict:
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[[2.0, 3.0], [12.0, 3.0], [12.0, 13.0], [2.0, 13.0]]], "a list of points"),
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[]], "fewer than 3 points"),
        ([[1.0, 1.0, 5.0, 5.0]], "fewer than 3 points"),
        ([[1.0, 1.0, 5.0, 5.0, 2.0, 7.0, 3.0]], "odd number"),
        ([1.0, 1.0, 5.0, 1.0, 5.0, 5.0], "not a list of polygons"),
        ([[1.0, 1.0, 5.0, "5", 2.0, 7.0]], "not a number"),
        ([[1.0, 1.0, 5.0, float("nan"), 2.0, 7.0]], "not finite"),
        ([[1.0, 1.0, float("inf"), 5.0, 2.0, 7.0]], "not finite"),
        ([[1.0, 1.0, 5.0, 5.0, 10.0, 10.0]], "area is zero"),
        ([[4.0, 4.0] * 3], "area is zero"),
        ([[40.0, 1.0, 50.0, 1.0, 50.0, 9.0]], "outside the image"),
        ([[1.0, 1.0, 1e9, 1.0, 9.0, 9.0]], "far outside the image"),
        ([[1.0, 1.0, 1e200, 1e200, 9.0, 9.0]], "far outside the image"),
        (rle([300, 300], (WIDTH, HEIGHT)), r"size \[30, 20\], its image \[20, 30\]"),
        (rle([600]), "area is zero"),
        (rle([300, 299]), "add up"),
        (rle([700, -100]), "add up"),
        (rle([2**62] * 4 + [600]), "add up"),
        (rle([300.0, 300.0]), "not integers"),
        (rle([]), "not integers"),
        (rle(None), "no counts"),
        (rle(""), "no counts"),
        (rle("ooo"), "not an RLE string"),
        (rle("\u00e9"), "corrupt"),
        (rle("oooooooooooooooo0"), "more than 32 bits"),
        (rle("0"), "add up"),
        ("polygon", "no segmentation"),
    ],
)
def test_unusable_segmentations_are_skipped_with_the_reason(tmp_path, segmentation, reason):
    dataset = load(tmp_path, coco([SQUARE, segmentation]))
    assert [a.id for a in dataset.images[0].annotations] == [1]
    assert len(dataset.skipped) == 1
    assert re.search(rf"annotation 2 of image 5 \(a\.jpg\): .*{reason}", dataset.skipped[0])


def test_a_bad_part_does_not_cost_the_good_ones(tmp_path):
    bad = [1.0, 1.0]
    outside = [40.0, 1.0, 50.0, 1.0, 50.0, 9.0]
    dataset = load(tmp_path, coco([[bad, *SQUARE, outside], [outside, bad, *SQUARE]]))
    assert not dataset.skipped
    assert [len(a.segmentation) for a in dataset.images[0].annotations] == [1, 1]


def test_a_figure_of_eight_has_an_area(tmp_path):
    dataset = load(tmp_path, coco([[[2.0, 2.0, 12.0, 12.0, 12.0, 2.0, 2.0, 12.0]]]))
    assert dataset.images[0].annotations[0].mask(HEIGHT, WIDTH).sum() > 20


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_not_coco(tmp_path, name):
    data = coco()
    with pytest.raises(InputError, match=rf"data\.json: not COCO: its list of {name} is a dict"):
        load(tmp_path, data | {name: {}})
    del data[name]
    with pytest.raises(InputError, match=rf"data\.json: not COCO: its list of {name} is missing"):
        load(tmp_path, data)


ANNOTATION = coco()["annotations"][0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"images": [\n1,,]}', "not JSON: .* line 2, column 3"),
        ("[1]", "not COCO: it holds a list"),
        ("[" * 100_000, "cannot be read as JSON"),
        (coco(annotations=[{"segments_info": []}]), "panoptic"),
        (coco(images=[]), "list of images is empty"),
        (coco(categories=[]), "list of categories is empty"),
        (coco(images=coco()["images"] * 2), "2 image entries have the id 5"),
        (coco(annotations=[ANNOTATION] * 3), "3 annotation entries have the id 1"),
        (coco(categories=coco()["categories"] * 2), "2 category entries have the id 9"),
        (coco(annotations=[ANNOTATION | {"image_id": 6}]), "annotation 1 .* image 6"),
        (coco(annotations=[ANNOTATION | {"category_id": 4}]), "annotation 1 .* category 4"),
        (coco(annotations=[ANNOTATION | {"category_id": "9"}]), r"annotation .* \(number 1\)"),
        (coco(annotations=[{"id": 1}]), 'annotation {"id": 1} .* no image_id of type int'),
        (coco(annotations=[ANNOTATION, 7]), r"annotation 7 \(number 2\) has no id"),
        (coco(categories=[{"id": 9}]), 'category {"id": 9} .* no name of type str'),
        (coco(images=[{"id": 5, "file_name": "a.jpg", "height": 4}]), "no width of type int"),
        (coco(images=[coco()["images"][0] | {"height": 0}]), "image 5 has height"),
    ],
)
def test_broken_files_are_named(tmp_path, data, message):
    with pytest.raises(InputError, match=rf"data\.json: .*{message}"):
        load(tmp_path, data)


def test_no_annotations_are_fine(tmp_path):
    assert load(tmp_path, coco([])).images[0].annotations == ()


def test_missing_and_unreadable_json(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read as JSON: .*No such file"):
        load_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON"):
        load_coco(tmp_path / "a.json", tmp_path)


def test_missing_images_are_counted_and_five_named(tmp_path):
    image = coco()["images"][0]
    names = ["a.jpg", *(f"sub/{i}.jpg" for i in range(7))]
    images = [image | {"id": i, "file_name": name} for i, name in enumerate(names)]
    with pytest.raises(InputError, match=r"7 of its 8 images are not in .*0\.jpg.*4\.jpg, \.\.\."):
        load(tmp_path, coco([], images=images))


def test_images_may_share_a_file_and_lie_in_subfolders(tmp_path):
    save_image(tmp_path / "sub" / "b.jpg")
    image = coco()["images"][0]
    names = ["a.jpg", "a.jpg", "sub/b.jpg"]
    images = [image | {"id": i, "file_name": name} for i, name in enumerate(names)]
    assert len(load(tmp_path, coco([], images=images))) == 3


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=9)
            | st.fixed_dictionaries(
                {"size": st.just([HEIGHT, WIDTH]), "counts": inner | st.text("0?@OPo", min_size=1)}
            )
        ),
        max_leaves=40,
    )
)
def test_any_segmentation_is_skipped_or_has_a_mask(tmp_path, segmentation):
    dataset = load(tmp_path, coco([segmentation]))
    annotations = dataset.images[0].annotations
    assert len(annotations) + len(dataset.skipped) == 1
    for annotation in annotations:
        assert annotation.mask(HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)


coordinates = st.lists(st.floats(-299, 299, width=32), min_size=6, max_size=16)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(coordinates, min_size=1, max_size=4))
def test_kept_polygons_have_the_mask_of_pycocotools(tmp_path, parts):
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for part in parts:
        if len(part) % 2 == 0:
            expected |= mask_utils.decode(mask_utils.frPyObjects([part], HEIGHT, WIDTH))[:, :, 0]
    dataset = load(tmp_path, coco([parts]))
    if dataset.skipped:
        assert not expected.any()
    else:
        mask = dataset.images[0].annotations[0].mask(HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask, expected)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_rle_survives_the_round_trip(tmp_path, seed, density):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < density
    mask[3, 4] = True
    counts = mask_utils.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    dataset = load(tmp_path, coco([rle(counts)]))
    np.testing.assert_array_equal(dataset.images[0].annotations[0].mask(HEIGHT, WIDTH), mask)


def test_annotation_takes_plain_lists():
    assert Annotation(1, 0, SQUARE, False).mask(HEIGHT, WIDTH).sum() == 100


def test_an_annotation_without_polygons_has_an_empty_mask():
    mask = Annotation(1, 0, [], False).mask(HEIGHT, WIDTH)
    assert mask.shape == (HEIGHT, WIDTH) and not mask.any()


def test_areas_are_those_of_the_file(tmp_path):
    data = coco([SQUARE] * 5)
    for annotation, area in zip(data["annotations"], (7, 7.5, "7", True, None), strict=True):
        annotation["area"] = area
    del data["annotations"][4]["area"]
    (record,) = load(tmp_path, data).images
    assert [a.area for a in record.annotations] == [7, 7.5, None, None, None]


def test_only_what_is_well_formed_is_missed_when_it_covers_no_pixel(tmp_path):
    flat = [[1.0, 1.0, 5.0, 5.0, 10.0, 10.0]]
    outside = [[40.0, 1.0, 50.0, 1.0, 50.0, 9.0]]
    segmentations = [flat, outside, rle([600]), [], None, rle([300, 299]), SQUARE]
    data = coco(segmentations)
    data["annotations"][0] |= {"area": 12, "iscrowd": 1}
    dataset = load(tmp_path, data)
    (record,) = dataset.images
    assert [a.id for a in record.invisible] == [1, 2, 3]
    assert (record.invisible[0].area, record.invisible[0].iscrowd) == (12, True)
    assert [a.id for a in record.annotations] == [7] and len(dataset.skipped) == 6
    assert not any(a.mask(HEIGHT, WIDTH).any() for a in record.invisible)
