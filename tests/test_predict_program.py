import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from small_coco import ColourModel, write_coco, write_yolo

import fastinst.prediction.instance_files
from fastinst.data.coco import load_coco
from fastinst.data.images import list_images
from fastinst.errors import InputError
from fastinst.weights import CheckpointInfo
from fastinst.weights import load_model as load_weights_file


@pytest.fixture
def photos(tmp_path):
    """A folder "my photos" of two images: red and green; blue."""
    write_coco(tmp_path, [[(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)], [(2, 16, 16, 80, 56)]])
    (tmp_path / "val").rename(tmp_path / "my photos")
    (tmp_path / "my photos" / "notes.txt").write_text("no image")
    return tmp_path / "my photos"


def read(folder):
    return json.loads((folder / "predictions.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_with_a_space(predict, photos, tmp_path):
    before = {path: path.read_bytes() for path in photos.iterdir()}
    out_folder = tmp_path / "new" / "out put"
    code, out, err = predict("colour", photos, "--output", out_folder, "--threshold", 0.2)
    assert code == 0, err
    assert names(out_folder) == ["1.jpg", "2.jpg", "predictions.json"]
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    assert "1.png: 2 instances" in out and "2.png: 1 instances" in out
    assert "3 instances in 2 images" in out and "images/s" in out.splitlines()[-1]

    found = read(out_folder)
    assert [image["file_name"] for image in found["images"]] == [
        str(photos / "1.png"),
        str(photos / "2.png"),
    ]
    assert found["images"][0] | {"file_name": ""} == {
        "id": 1, "file_name": "", "height": 64, "width": 96, "picture": "1.jpg"
    }  # fmt: skip
    assert found["categories"][1] == {"id": 7, "name": "green"}
    first, second, third = found["annotations"]
    assert [a["category_id"] for a in found["annotations"]] == [3, 7, 20]
    assert [a["image_id"] for a in found["annotations"]] == [1, 1, 2]
    assert [round(a["score"], 1) for a in found["annotations"]] == [0.9, 0.6, 0.3]
    assert second["bbox"] == [40, 8, 24, 32] and second["area"] == pytest.approx(24 * 32, rel=0.05)
    mask = rle.decode(third["segmentation"])
    assert mask[18:54, 18:78].all() and mask[16:56, 16:80].sum() == mask.sum()
    picture = np.array(Image.open(out_folder / "1.jpg")).astype(int)
    image = np.array(Image.open(photos / "1.png")).astype(int)
    changed = np.abs(picture - image).sum(2) > 60
    assert picture.shape == image.shape and changed[8:32, 8:32].mean() > 0.9
    assert changed[50:].mean() < 0.2


def test_predictions_open_as_a_data_set(predict, photos, tmp_path):
    predict("colour", photos, "--output", tmp_path / "out", "--threshold", 0.2)
    dataset = load_coco(tmp_path / "out" / "predictions.json", photos)
    assert dataset.skipped == () and dataset.category_ids == (3, 7, 20)
    assert [len(record.annotations) for record in dataset.images] == [2, 1]


@pytest.mark.parametrize("threshold, count", [(0, 9), (0.2, 3), (0.5, 2), (0.8, 1), (1, 0)])
def test_the_threshold_filters(predict, photos, tmp_path, threshold, count):
    code, _, _ = predict("colour", photos, "--output", tmp_path / "out", "--threshold", threshold)
    found = read(tmp_path / "out")["annotations"]
    assert code == 0 and all(a["score"] >= threshold for a in found)
    # At 0 every (query, class) pair with a mask is there: 2 + 1 queries with 3 classes.
    assert len(found) == count


def test_the_default_threshold_is_one_half(predict, photos, tmp_path):
    predict("colour", photos, "--output", tmp_path / "out")
    assert len(read(tmp_path / "out")["annotations"]) == 2


def test_images_of_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", "c.tiff", "notes.txt"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / name for name in ("a.JPG", "b.png", "c.tiff")]
    with pytest.raises(InputError, match="notes.txt: no such folder"):
        list_images(tmp_path / "notes.txt")


def test_inputs_of_one_name_do_not_collide(predict, photos, tmp_path):
    paths = []
    for place in ("a/x.png", "b/x.png", "b/x.bmp", "b/X.jpg", "b/x-2.png"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        Image.open(photos / "1.png").save(path)
        paths.append(path)
    out = tmp_path / "out"
    code, _, _ = predict("colour", *paths, paths[0], tmp_path / "a", "--output", out)
    found = read(out)
    assert code == 0
    assert [image["file_name"] for image in found["images"]] == list(map(str, paths))
    pictures = [image["picture"] for image in found["images"]]
    assert len({picture.lower() for picture in pictures}) == 5
    assert names(out) == sorted([*pictures, "predictions.json"])


def test_inputs_are_never_overwritten(predict, photos, tmp_path):
    Image.open(photos / "1.png").save(photos / "3.jpg")
    before = (photos / "3.jpg").read_bytes()
    link = tmp_path / "link"
    link.symlink_to(photos)
    for inputs in ([photos], [photos / "3.jpg"]):
        for output in (photos, link, photos / "x" / ".."):
            code, _, err = predict("colour", *inputs, "--output", output)
            assert code == 2 and "another --output" in err
    assert (photos / "3.jpg").read_bytes() == before
    assert "predictions.json" not in names(photos)
    assert predict("colour", photos, "--output", photos / "found")[0] == 0


def test_unreadable_images_are_skipped_and_reported(predict, photos, tmp_path):
    (photos / "0.png").write_bytes((photos / "1.png").read_bytes()[:60])
    out = tmp_path / "out"
    code, _, err = predict("colour", photos, "--output", out)
    assert code == 1 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("skipped")]
    assert "0.png" in line
    assert names(out) == ["1.jpg", "2.jpg", "predictions.json"]
    assert [image["id"] for image in read(out)["images"]] == [1, 2]


def test_ctrl_c_keeps_what_is_done(predict, photos, tmp_path, monkeypatch):
    for number in range(3, 40):
        Image.open(photos / "1.png").save(photos / f"{number:02d}.png")

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return overlay(*args, **kwargs)

    drawing = fastinst.prediction.instance_files
    overlay = drawing.overlay
    monkeypatch.setattr(drawing, "overlay", interrupted)
    code, _, err = predict("colour", photos, "--output", tmp_path / "out")
    assert code == 130 and "Traceback" not in err and "kept" in err
    images = read(tmp_path / "out")["images"]
    assert 0 < len(images) < 39
    pictures = [image["picture"] for image in images]
    assert names(tmp_path / "out") == sorted([*pictures, "predictions.json"])


def test_no_pictures(predict, photos, tmp_path):
    options = ("--output", tmp_path / "out", "--no-pictures", "--batch-size", 2)
    assert predict("colour", photos, *options)[0] == 0
    assert names(tmp_path / "out") == ["predictions.json"]
    assert len(read(tmp_path / "out")["annotations"]) == 2


def test_an_image_that_is_unreadable_in_the_middle_of_a_batch(predict, photos, tmp_path):
    (photos / "1a.png").write_bytes(b"no image")
    options = ("--output", tmp_path / "out", "--batch-size", 3, "--max-instances", 1)
    code, _, err = predict("colour", photos, *options, "--threshold", 0)
    assert code == 1 and "1a.png" in err
    found = read(tmp_path / "out")
    assert [Path(image["file_name"]).name for image in found["images"]] == ["1.png", "2.png"]
    assert [a["image_id"] for a in found["annotations"]] == [1, 2]


def test_nothing_is_half_written(predict, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.jpg").write_bytes(b"old")

    def full_disk(self, file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    code, _, err = predict("colour", photos, "--output", out)
    assert code == 2 and "No space left" in err and "1.jpg" in err
    assert names(out) == ["1.jpg"] and (out / "1.jpg").read_bytes() == b"old"


def test_ground_truth_is_drawn_beside(predict, photos, tmp_path):
    other = tmp_path / "other.png"
    Image.open(photos / "1.png").save(other)
    (tmp_path / "images").symlink_to(photos)
    out = tmp_path / "out"
    truth = tmp_path / "val.json"
    code, text, err = predict("colour", photos, other, "--output", out, "--ground-truth", truth)
    assert code == 0, err
    assert "2 of these images are in" in text
    assert Image.open(out / "1.jpg").width > 2 * 96 and Image.open(out / "other.jpg").width == 96


def test_ground_truth_with_its_images_elsewhere(predict, photos, tmp_path):
    truth, out = tmp_path / "labels" / "val.json", tmp_path / "out"
    truth.parent.mkdir()
    (tmp_path / "val.json").rename(truth)
    options = ("--output", out, "--ground-truth", truth, "--images", photos)
    code, text, err = predict("colour", photos, *options)
    assert code == 0, err
    assert "2 of these images are in" in text and Image.open(out / "1.jpg").width > 2 * 96
    code, _, err = predict("colour", photos, "--output", out, "--images", photos)
    assert code == 2 and "--ground-truth" in err


def test_ground_truth_of_a_yolo_data_set(predict, tmp_path):
    data, out = tmp_path / "yolo", tmp_path / "out"
    write_yolo(data, [[(0, 0, 0, 32, 32)], [(2, 16, 16, 80, 56)]])
    options = ("--output", out, "--ground-truth", data)
    code, text, err = predict("colour", data / "images" / "val", *options)
    assert code == 0, err
    assert "2 of these images are in" in text and Image.open(out / "1.jpg").width > 2 * 96


def test_unknown_class_names(predict, photos, tmp_path):
    def load(source):
        return ColourModel(5), CheckpointInfo("plain", None, None)

    out = tmp_path / "out"
    code, _, _ = predict("plain", photos, "--output", out, load_model=load)
    categories = read(out)["categories"]
    assert code == 0 and len(categories) == 5
    assert categories[0] == {"id": 1, "name": "class 1"} and categories[-1]["id"] == 5


def test_unknown_class_names_are_those_of_a_fitting_ground_truth(predict, photos, tmp_path):
    def load(source):
        return ColourModel(), CheckpointInfo("plain", None, None)

    (tmp_path / "images").symlink_to(photos)
    options = ("--output", tmp_path / "out", "--ground-truth", tmp_path / "val.json")
    predict("plain", photos, *options, load_model=load)
    assert read(tmp_path / "out")["categories"][0] == {"id": 3, "name": "red"}


def test_a_missing_checkpoint_is_one_line_and_exit_code_2(predict, photos, tmp_path):
    missing, out = tmp_path / "none.pt", tmp_path / "out"
    code, _, err = predict(missing, photos, "--output", out, load_model=load_weights_file)
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("error: ") and "none.pt" in line


def test_bad_inputs_are_one_line_and_exit_code_2(predict, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    out = tmp_path / "out"
    for arguments, words in (
        ([tmp_path / "nowhere", "--output", out], ("nowhere", "no such")),
        ([tmp_path / "empty", "--output", out], ("empty", "no images")),
        ([photos, "--output", tmp_path / "file"], ("file",)),
        ([photos, "--output", tmp_path / "file" / "below"], ("file",)),
        ([photos, "--output", out, "--ground-truth", tmp_path / "none.json"], ("none.json",)),
    ):
        code, text, err = predict("colour", *arguments)
        (line,) = err.splitlines()
        assert code == 2 and line.startswith("error: ") and "Traceback" not in text
        assert all(word in line for word in words), line
    assert not out.exists() or names(out) == []
    for value in ("-0.1", "1.5", "high"):
        code, _, err = predict("colour", photos, "--output", out, f"--threshold={value}")
        assert code == 2 and "threshold" in err
