"""figures.py, from checkpoints and images to one picture."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_cases import edit
from PIL import Image
from predictor_cases import TINY
from small_coco import CATEGORY_IDS, NAMES, program_runner, write_coco, write_yolo

import fastinst
from fastinst.weights import load_model, save_checkpoint

PROGRAM = Path(__file__).parents[1] / "figures.py"
RECTANGLES = [[(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)], [(2, 16, 16, 80, 56)], []]
BASELINE = {"dual_path": False, "activation_guided": False, "num_aux_queries": 0}
GREY = np.full((8, 8, 3), 128, np.uint8)


@pytest.fixture
def figures(monkeypatch, capsys):
    run = program_runner(monkeypatch, capsys, PROGRAM)
    return lambda *arguments, load_model=load_model: run(*arguments, load_model=load_model)


@pytest.fixture
def colour_figures(monkeypatch, capsys):
    """With the model that finds red with 0.9, green with 0.6 and blue with 0.3."""
    return program_runner(monkeypatch, capsys, PROGRAM)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    @functools.cache
    def save(name, **overrides):
        torch.manual_seed(0)
        model = fastinst.create_model(
            "fastinst-d1-r18-192", num_classes=3, **TINY | {"num_queries": 6} | overrides
        )
        save_checkpoint(folder / name, model, NAMES, CATEGORY_IDS)
        return folder / name

    folder = tmp_path_factory.mktemp("my runs")
    return save


@pytest.fixture
def data(tmp_path):
    write_coco(tmp_path / "my data", RECTANGLES)
    return tmp_path / "my data"


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_queries_of_one_checkpoint(figures, checkpoint, data, tmp_path):
    weights, output = checkpoint("a.pt"), tmp_path / "new folder" / "queries.png"
    code, out, err = figures("queries", weights, "--data", data, "--output", output, "--count", 2)
    assert code == 0, err
    width, height = size(output)
    assert str(output) in out and f"{width} x {height}" in out
    assert 3 * 360 < width < 3 * 380 and 2 * 240 < height < 2 * 360
    assert [path.name for path in output.parent.iterdir()] == ["queries.png"]


def test_queries_of_two_checkpoints_are_told_apart_by_their_settings(
    figures, checkpoint, data, tmp_path, monkeypatch
):
    headings = []
    monkeypatch.setattr(
        "fastinst.figures.supplement.sheet",
        lambda cells, titles, _: headings.extend(titles) or GREY,
    )
    weights = [checkpoint("a.pt"), checkpoint("b.pt", location_weight=0.0)]
    images = ("--images", data / "val" / "1.png", "--output", tmp_path / "x.png")
    assert figures("queries", *weights, *images)[0] == 0
    assert headings == ["location_weight=1000", "location_weight=0", "image"]
    headings.clear()
    assert figures("queries", weights[0], weights[0], *images)[0] == 0
    assert headings[0] == f"{weights[0].parent.name}/a.pt"


def test_attention_of_images_without_annotations(figures, checkpoint, data, tmp_path):
    images = ("--images", data / "val", "--output", tmp_path / "attention.JPG", "--size", 100)
    code, _, err = figures("attention", checkpoint("a.pt"), *images)
    assert code == 0, err
    width, height = size(tmp_path / "attention.JPG")
    assert 9 * 100 < width < 9 * 110 and 3 * 67 < height
    options = ("--queries", 2, 5, "--by-head")
    assert figures("attention", checkpoint("a.pt"), *images, *options)[0] == 0
    assert 5 * 100 < size(tmp_path / "attention.JPG")[0] < 5 * 110


def test_the_grid_has_ground_truth_beside_predictions(colour_figures, data, tmp_path):
    output = tmp_path / "grid.png"
    options = ("--data", data, "--output", output, "--size", 96)
    code, _, err = colour_figures("grid", "colour", *options, "--pairs", 1, "--threshold", 0.8)
    assert code == 0, err
    picture = np.array(Image.open(output)).astype(int)
    # Of the first image, red and green objects on black; above 0.8 red alone is found.
    truth, found = (picture[50:116, left : left + 96] for left in (16, 116))
    (green,) = {tuple(found[24, 52])}
    assert green == (0, 255, 0)
    for side in (truth, found):
        assert tuple(side[8, 5]) != (255, 0, 0) and tuple(side[60, 90]) == (0, 0, 0)
    assert tuple(truth[36, 44]) != (0, 255, 0)


def test_the_grid_of_a_yolo_data_set(colour_figures, tmp_path):
    write_yolo(tmp_path / "yolo", RECTANGLES)
    options = ("--data", tmp_path / "yolo", "--output", tmp_path / "grid.png", "--count", 9)
    code, _, err = colour_figures("grid", "colour", *options)
    assert code == 0, err
    assert size(tmp_path / "grid.png")[0] > 4 * 360


def test_failures_are_found(colour_figures, data, tmp_path):
    def failures(threshold):
        options = ("--data", data, "--output", tmp_path / "x.png", "--threshold", threshold)
        code, _, err = colour_figures("failures", "colour", *options)
        assert code == 0, err
        return size(tmp_path / "x.png")[1]

    nothing, some = failures(0.2), failures(0.95)
    assert nothing < 100 and some > 240  # all is found; all is missed
    # A model that is right about red objects is wrong where annotations have none.
    edit(data / "val.json", lambda content: content["annotations"].clear())
    assert failures(0.5) > 240


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["queries", "WEIGHTS"], "--data"),
        (["grid", "WEIGHTS", "--images", "DATA/val"], "--data"),
        (["failures", "WEIGHTS"], "--data"),
        (["queries", "none.pt", "--data", "DATA"], "none.pt: no such file"),
        (["queries", "WEIGHTS", "--data", "nowhere"], "nowhere: no such file"),
        (["queries", "WEIGHTS", "--images", "nowhere"], "nowhere: no such file"),
        (["attention", "WEIGHTS", "--images", "DATA"], "no images"),
        (["grid", "WEIGHTS", "--images", "OTHER", "--data", "DATA"], "is none of the images of"),
        (["attention", "WEIGHTS", "--images", "OTHER", "--queries", "9"], "no query 9: "),
        (["attention", "BASELINE", "--images", "OTHER"], "no auxiliary queries"),
        (["queries", "BASELINE", "--images", "OTHER"], "has learnt queries"),
        (["queries", "WEIGHTS", "--data", "DATA", "--count", "0"], "--count must be at least 1"),
        (["grid", "WEIGHTS", "--data", "DATA", "--threshold", "2"], "--threshold"),
        (["unknown"], "unknown"),
    ],
)
def test_errors_are_one_line(figures, checkpoint, data, tmp_path, arguments, words):
    Image.fromarray(GREY).save(tmp_path / "other.png")
    output = tmp_path / "x.png"
    places = {
        "WEIGHTS": checkpoint("a.pt"),
        "BASELINE": checkpoint("Mask2Former light.pt", **BASELINE),
        "OTHER": tmp_path / "other.png",
        "DATA": data,
        "DATA/val": data / "val",
    }
    code, out, err = figures(*(places.get(a, a) for a in arguments), "--output", output)
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("error: ") and words in line and out == ""
    assert not output.exists()


def test_a_picture_that_cannot_be_written(figures, checkpoint, data, tmp_path):
    for output, words in (("x.gif", ".png or .jpg"), ("val.json/x.png", "val.json")):
        code, _, err = figures(
            "queries", checkpoint("a.pt"), "--data", data, "--output", data / output
        )
        assert code == 2 and words in err
