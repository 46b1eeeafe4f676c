"""predict.py for panoptic and semantic segmentation."""

import json

import numpy as np
import pytest
from PIL import Image
from small_cityscapes import write_cityscapes
from small_coco import CATEGORY_IDS, NAMES, ColourModel, write_coco
from test_predict_program import names, read
from test_video import fake  # noqa: F401, a fixture

from fastinst.data.formats import load_dataset
from fastinst.data.id_maps import ids_of_colours
from fastinst.weights import CheckpointInfo


def load(source):
    """Green is stuff. Blue is less likely than no object, of which semantic results have none."""
    return ColourModel(), CheckpointInfo("colour", NAMES, CATEGORY_IDS, (True, False, True))


@pytest.fixture
def photos(tmp_path):
    """Two images: red and green; green at two places and blue."""
    right, left = (1, 48, 16, 80, 48), (1, 0, 0, 32, 32)
    write_coco(
        tmp_path, [[(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)], [right, left, (2, 0, 40, 32, 64)]]
    )
    return tmp_path / "val"


def ids_in(folder, name):
    with Image.open(folder / "predictions" / name) as image:
        return ids_of_colours(image)


def test_panoptic_results_are_pictures_and_coco_s_format(predict, photos, tmp_path):
    out = tmp_path / "out"
    options = ("--output", out, "--task", "panoptic", "--threshold", 0.2)
    code, text, err = predict("colour", photos, *options, load_model=load)
    assert code == 0, err
    assert names(out) == ["1.jpg", "2.jpg", "predictions", "predictions.json"]
    assert names(out / "predictions") == ["1.png", "2.png"]
    assert "1.png: 2 segments" in text and "3 segments in 2 images" in text
    found = read(out)
    assert found["threshold"] == 0.2
    assert found["categories"][1:] == [
        {"id": 7, "name": "green", "isthing": 0},
        {"id": 20, "name": "blue", "isthing": 1},
    ]
    first, second = found["annotations"]
    assert (first["image_id"], first["file_name"]) == (1, "1.png")
    red, green = first["segments_info"]
    assert (red["category_id"], green["category_id"]) == (3, 7)
    ids = ids_in(out, "1.png")
    assert (ids[2:30, 2:30] == red["id"]).all() and (ids[10:38, 42:62] == green["id"]).all()
    assert (ids[:, 70:] == 0).all() and red["area"] == (ids == red["id"]).sum()
    (green,) = second["segments_info"]
    ids = ids_in(out, "2.png")
    assert (ids[18:46, 50:78] == green["id"]).all() and (ids[2:30, 2:30] == green["id"]).all()
    picture = np.asarray(Image.open(out / "1.jpg")).astype(int)
    image = np.asarray(Image.open(photos / "1.png")).astype(int)
    changed = np.abs(picture - image).sum(2) > 60
    assert changed[14:30, 4:28].mean() > 0.9 and changed[50:, 70:].mean() < 0.2


def test_panoptic_predictions_open_as_a_data_set(predict, photos, tmp_path):
    out = tmp_path / "out"
    options = ("--output", out, "--task", "panoptic", "--threshold", 0.2)
    predict("colour", photos, *options, load_model=load)
    dataset = load_dataset(out / "predictions.json", "val", photos, "panoptic")
    assert dataset.is_thing == (True, False, True) and dataset.skipped == ()
    assert [[a.label for a in r.annotations] for r in dataset.images] == [[0, 1], [1]]


def test_without_stuff_all_are_things(predict, photos, tmp_path):
    out = tmp_path / "out"
    code, _, _ = predict("colour", photos, "--output", out, "--task", "panoptic", "--no-pictures")
    assert code == 0 and names(out) == ["predictions", "predictions.json"]
    found = read(out)
    assert found["threshold"] == 0.8 and {c["isthing"] for c in found["categories"]} == {1}
    assert [len(a["segments_info"]) for a in found["annotations"]] == [1, 0]  # red, at 0.9


def test_semantic_results_are_category_ids(predict, photos, tmp_path):
    out = tmp_path / "out"
    options = ("--output", out, "--task", "semantic", "--batch-size", 2)
    code, text, err = predict("colour", photos, *options, load_model=load)
    assert code == 0, err
    assert names(out) == ["1.jpg", "2.jpg", "predictions", "predictions.json"]
    found = read(out)
    assert [c["name"] for c in found["categories"]] == list(NAMES)
    assert found["annotations"][0] == {"id": 1, "file_name": "1.png", "image_id": 1}
    with Image.open(out / "predictions" / "1.png") as image:
        pixels = np.asarray(image)
    assert image.mode == "L" and pixels.shape == (64, 96)
    assert (pixels[2:30, 2:30] == 3).all() and (pixels[10:38, 42:62] == 7).all()
    with Image.open(out / "predictions" / "2.png") as image:
        assert (np.asarray(image)[18:46, 50:78] == 7).all()
        assert (np.asarray(image)[42:64, 2:30] == 20).all()


@pytest.mark.parametrize("ids, mode", [((1, 2, 65535), "I;16"), ((0, 7, 255), "L")])
def test_large_category_ids(predict, photos, tmp_path, ids, mode):
    def load(source):
        return ColourModel(), CheckpointInfo("colour", NAMES, ids)

    out = tmp_path / "out"
    predict("colour", photos, "--output", out, "--task", "semantic", load_model=load)
    with Image.open(out / "predictions" / "2.png") as image:
        assert image.mode == mode and np.asarray(image)[50, 10] == ids[2]


@pytest.mark.parametrize("id_", [-1, 65536])
def test_category_ids_that_no_pixel_can_have(predict, photos, tmp_path, id_):
    def load(source):
        return ColourModel(), CheckpointInfo("colour", NAMES, (1, 2, id_))

    options = ("--output", tmp_path / "out", "--task", "semantic")
    code, _, err = predict("colour", photos, *options, load_model=load)
    assert code == 2 and f"category id {id_}" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_ground_truth_is_drawn_beside(predict, tmp_path, task):
    root, out = write_cityscapes(tmp_path / "city"), tmp_path / "out"
    options = ("--output", out, "--task", task, "--ground-truth", root)
    code, text, err = predict("colour", root / "leftImg8bit/val/aachen", *options, load_model=load)
    assert code == 0, err
    assert "2 of these images are in" in text
    for path in out.glob("*.jpg"):
        assert Image.open(path).width > 2 * 128


def test_ground_truth_without_stuff_is_refused(predict, photos, tmp_path):
    truth = ("--ground-truth", tmp_path / "val.json", "--images", photos)
    options = ("--output", tmp_path / "out", "--task", "panoptic")
    code, _, err = predict("colour", photos, *options, *truth, load_model=load)
    assert code == 2 and "val.json: no panoptic annotations" in err


def test_frames_of_a_video(predict, fake, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    clip = fake(frames=26)
    options = ("--output", out, "--task", "panoptic")
    code, text, err = predict("colour", clip, *options, load_model=load)
    assert code == 0, err
    assert "clip.mp4: 13 segments in 26 frames" in text
    assert len((out / "clip.mp4").read_text().split()) == 26
    found = read(out)
    assert [a["file_name"] for a in found["annotations"]][:2] == [
        "clip.mp4/000000.png",
        "clip.mp4/000001.png",
    ]
    assert (ids_in(out, "clip.mp4/000025.png") == 1).all()
    assert found["images"][25]["frame_id"] == 25


def test_what_does_not_go_together(predict, photos, tmp_path):
    out = ("--output", tmp_path / "out")
    for arguments, words in (
        (("--task", "semantic", "--threshold", 0.5), "--task semantic has none"),
        (("--task", "panoptic", "--max-instances", 5), "--max-instances is for --task instance"),
        (("--task", "boxes"), "invalid choice: 'boxes'"),
        (("--task", "panoptic", "--threshold", 2), "--threshold must be from 0 to 1"),
    ):
        code, _, err = predict("colour", photos, *out, *arguments, load_model=load)
        assert code == 2 and words in err
    assert not (tmp_path / "out").exists()


def test_its_own_results_are_never_its_inputs(predict, photos, tmp_path):
    out = tmp_path / "out"
    options = ("--output", out, "--task", "semantic")
    predict("colour", photos, *options, load_model=load)
    before = (out / "predictions" / "1.png").read_bytes()
    code, _, err = predict("colour", out / "predictions", *options, load_model=load)
    assert code == 2 and "another --output" in err
    assert (out / "predictions" / "1.png").read_bytes() == before
    assert json.loads((out / "predictions.json").read_text())["images"]
