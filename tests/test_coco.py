"""Reading and checking COCO files."""

import pytest
from coco_files import HEIGHT, SQUARE, WIDTH, coco, load, save_image

from fastinst.data.coco import load_coco
from fastinst.errors import InputError


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


def test_areas_are_those_of_the_file(tmp_path):
    data = coco([SQUARE] * 5)
    for annotation, area in zip(data["annotations"], (7, 7.5, "7", True, None), strict=True):
        annotation["area"] = area
    del data["annotations"][4]["area"]
    (record,) = load(tmp_path, data).images
    assert [a.area for a in record.annotations] == [7, 7.5, None, None, None]


def test_boxes_are_those_of_the_file(tmp_path):
    boxes = ([1, 2.5, 3, 4], [1, 2, 3], [1, 2, "3", 4], [1, 2, float("nan"), 4], 7, [], None)
    data = coco([SQUARE] * len(boxes))
    for annotation, box in zip(data["annotations"], boxes, strict=True):
        annotation["bbox"] = box
    del data["annotations"][-1]["bbox"]
    (record,) = load(tmp_path, data).images
    assert [a.box for a in record.annotations] == [(1, 2.5, 3, 4)] + 6 * [None]
