import json

import numpy as np
import pytest
from coco_cases import PLACES, TWO_REDS, edit, load, pycocotools_evaluation
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle
from small_coco import polygon, write_coco

from fastinst.errors import InputError
from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.predictions import read_predictions


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = write_coco(tmp_path_factory.mktemp("data"), [TWO_REDS, [(1, 8, 8, 40, 48)], []])

    def change(content):
        for annotation in content["annotations"]:
            annotation["id"] += 1
            left, top, _, _, right, bottom, _, _ = annotation["segmentation"][0]
            annotation["bbox"] = [left, top, right - left, bottom - top]

    edit(path, change)
    return path


def code(left, top, right, bottom):
    mask = np.zeros((64, 96), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    result = rle.encode(mask)
    return {"size": [64, 96], "counts": result["counts"].decode()}


def result(segmentation=None, bbox=None, image_id=1, category_id=3, score=0.5):
    entry = {"image_id": image_id, "category_id": category_id, "score": score}
    entry |= {} if segmentation is None else {"segmentation": segmentation}
    return entry | ({} if bbox is None else {"bbox": bbox})


def read(path, tmp_path, results):
    file = tmp_path / "my results.json"
    file.write_text(results if isinstance(results, str) else json.dumps(results))
    return read_predictions(file, load(path))


MASKS = [
    result(code(0, 0, 30, 32), score=0.9),
    result(code(49, 0, 80, 32), score=0.8),
    result(code(0, 0, 32, 32), score=0.7),
    result(code(8, 8, 41, 48), image_id=2, category_id=7, score=1),
    result(code(5, 5, 5, 5), image_id=2, category_id=7, score=0.3),
]
BOXES = [{**entry, "bbox": list(rle.toBbox(entry["segmentation"]))} for entry in MASKS]


@pytest.mark.parametrize("results", [MASKS, BOXES])
@pytest.mark.parametrize("kind, metric", [("segm", "mask"), ("bbox", "box")])
def test_the_numbers_are_those_of_pycocotools_on_the_same_file(
    path, tmp_path, results, kind, metric
):
    dataset = load(path)
    evaluator = CocoEvaluator(dataset, metrics=[metric])
    for image_id, of_image in read(path, tmp_path, results).items():
        evaluator.update_results(image_id, of_image)
    summary, expected = evaluator.summarize(), pycocotools_evaluation(path, results, kind)
    for name, place in PLACES.items():
        if expected.stats[place] >= 0:
            assert summary[name] == 100 * expected.stats[place]
    assert 50 < summary["AP"] < 100


def test_polygons_and_uncompressed_codes_are_the_same_masks(path, tmp_path):
    # 32 columns of 32 set pixels, each above 32 that are not.
    runs = {"size": [64, 96], "counts": [0, *([32] * 63), 64 * 65 - 32]}
    shapes = [polygon(0, 0, 32, 32), runs, code(0, 0, 32, 32)]
    found = read(path, tmp_path, [result(shape) for shape in shapes])[1]
    masks = [rle.decode(entry["segmentation"]) for entry in found]
    assert (masks[0] == masks[2]).all() and (masks[1] == masks[2]).all() and masks[2].any()


def test_no_results_are_fine(path, tmp_path):
    assert read(path, tmp_path, []) == {}


WRONG = {
    "image": (result(code(0, 0, 8, 8), image_id=9), "image 9"),
    "image of a wrong type": (result(code(0, 0, 8, 8), image_id="1"), 'image "1"'),
    "category": (result(code(0, 0, 8, 8), category_id=1), "category 1.*3, 7, 20"),
    "score": (result(code(0, 0, 8, 8), score="high"), "no score"),
    "long score": (result(code(0, 0, 8, 8), score=10**400), "no score"),
    "nan": (result(code(0, 0, 8, 8), score=float("nan")), "no score"),
    "nothing": (result(), "no segmentation"),
    "size": (result({"size": [96, 64], "counts": "0"}), r"RLE has the size \[96, 64\]"),
    "code": (result({"size": [64, 96], "counts": "zzz"}), "RLE is corrupt"),
    "short code": (result({"size": [64, 96], "counts": [5, 5]}), "do not add up"),
    "two points": (result([[1, 1, 5, 5]]), "fewer than 3 points"),
    "number": (result(5), "no segmentation"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_entry_that_is_wrong_is_named(path, tmp_path, name):
    entry, words = WRONG[name]
    with pytest.raises(InputError, match=f"my results.json: result 2 of 3 .*{words}"):
        read(path, tmp_path, [MASKS[0], entry, MASKS[1]])


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, "3", 4], [1, 2, -3, 4], 7, None])
def test_a_box_that_is_wrong_is_named(path, tmp_path, box):
    with pytest.raises(InputError, match="result 2 of 2 .*bbox"):
        read(path, tmp_path, [result(bbox=[0, 0, 8, 8]), result(bbox=box)])


def test_entries_without_mask_and_box(path, tmp_path):
    with pytest.raises(InputError, match="result 1 of 1 .*neither a segmentation nor a bbox"):
        read(path, tmp_path, [result()])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not JSON"),
        ("{}", "holds no list"),
        ('{"images": [], "annotations": []}', "a data set, not results.*evaluate.py --results"),
        ("[1]", "result 1 of 1 is no object"),
        ("\xff", "my results.json"),
    ],
)
def test_files_that_are_no_results(path, tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read(path, tmp_path, text)
    with pytest.raises(InputError, match="none.json"):
        read_predictions(tmp_path / "none.json", load(path))


values = st.recursive(
    st.none() | st.integers(-5, 100) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts"]), inner)
    ),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "image_id": st.integers(0, 4) | values,
        "category_id": st.sampled_from([3, 7, 20]) | values,
        "score": st.floats(0, 1) | values,
        "segmentation": values | st.builds(lambda c: {"size": [64, 96], "counts": c}, values),
        "bbox": st.lists(st.floats(0, 50), min_size=4, max_size=4) | values,
    },
)


@given(results=st.lists(entries | values, max_size=4) | values)
def test_any_json_is_read_or_refused_by_name(path, tmp_path_factory, results):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(results))
    dataset = load(path)
    try:
        found = read_predictions(file, dataset)
    except InputError as error:
        assert "any.json" in str(error)
        return
    evaluator = CocoEvaluator(dataset, metrics=["box"])
    for image_id, of_image in found.items():
        evaluator.update_results(image_id, of_image)
    evaluator.summarize()
