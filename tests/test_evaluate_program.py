import json
from pathlib import Path

import pytest
from PIL import Image
from small_coco import (
    CATEGORY_IDS,
    NAMES,
    ColourModel,
    program_runner,
    write_coco,
    write_yolo,
)

from fastinst.weights import CheckpointInfo
from fastinst.weights import load_model as load_weights_file

PROGRAM = Path(__file__).parents[1] / "evaluate.py"


@pytest.fixture
def evaluate(monkeypatch, capsys):
    return program_runner(monkeypatch, capsys, PROGRAM)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "my data"
    rectangles = [
        [(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)],
        [(2, 16, 16, 80, 56)],
        [(0, 0, 0, 32, 64)],
    ]
    write_coco(folder, rectangles)
    return folder


def test_table_and_files(evaluate, data, tmp_path):
    numbers, masks = tmp_path / "new folder" / "ap.json", tmp_path / "masks.json"
    options = ("--workers", 0, "--device", "cpu", "--output", numbers, "--results", masks)
    code, out, _ = evaluate("colour", "--data", data, *options)
    assert code == 0
    assert "AP 100.0" in out and "blue" in out and "images/s" in out
    report = json.loads(numbers.read_text())
    assert report["model"] == report["weights"] == "colour"
    assert report["data"] == str(data / "val.json") and report["images"] == 3
    assert report["AP"] == pytest.approx(100) and report["per_class"]["red"]["AP"] == pytest.approx(
        100
    )
    assert report["APl"] is report["per_class"]["red"]["APl"] is None  # nan is no JSON
    assert report["seconds"] > 0 and report["images_per_second"] > 0
    results = json.loads(masks.read_text())
    assert {r["image_id"] for r in results} == {1, 2, 3}
    assert {r["category_id"] for r in results} == set(CATEGORY_IDS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks.json", "my data", "new folder"]


def test_images_elsewhere(evaluate, data, tmp_path):
    (data / "val").rename(tmp_path / "my pictures")
    options = ("--data", data / "val.json", "--workers", 0)
    code, _, err = evaluate("colour", *options)
    assert code == 2 and "its images (1.png, 2.png, 3.png, ...) are in none of" in err
    code, out, _ = evaluate("colour", *options, "--images", tmp_path / "my pictures")
    assert code == 0 and "AP 100.0" in out


def test_yolo_data(evaluate, tmp_path):
    data, results = tmp_path / "my yolo", tmp_path / "results.json"
    write_yolo(data, [[(0, 0, 0, 32, 32), (1, 40, 8, 64, 40)], [(2, 16, 16, 80, 56)]])
    with open(data / "labels" / "val" / "1.txt", "a") as file:
        file.write("\n0 0.5 0.5 0.1 0.1")
    for path in (data, data / "data.yaml"):
        code, out, err = evaluate("colour", "--data", path, "--workers", 0, "--results", results)
        assert code == 0 and "AP 100.0" in out and "(3 instances in 2 images)" in out
        assert "left out: 1, as\n" in err and "1.txt, line 3 (1.png): it is a box" in err
    assert {r["category_id"] for r in json.loads(results.read_text())} == {0, 1, 2}


def test_no_objects_at_all(evaluate, data, tmp_path):
    write_coco(tmp_path / "empty", [[], []])
    numbers = tmp_path / "ap.json"
    options = ("--data", tmp_path / "empty", "--workers", 0, "--output", numbers)
    code, out, _ = evaluate("colour", *options)
    assert code == 0 and "no ground truth" in out and json.loads(numbers.read_text())["AP"] is None


def test_json_as_data_and_max_images_and_workers(evaluate, data):
    code, out, _ = evaluate("colour", "--data", data / "val.json", "--max-images", 2)
    assert code == 0 and "in 2 images" in out


def test_classes_are_matched_by_name(evaluate, data, tmp_path):
    def load(source):
        return ColourModel(4), CheckpointInfo("other", (*NAMES[::-1], "x"), (1, 2, 3, 4))

    results = tmp_path / "results.json"
    options = ("--workers", 0, "--results", results)
    code, out, _ = evaluate("w.pt", "--data", data, *options, load_model=load)
    assert code == 0 and "green 100.0" in out and "AP 100.0" not in out
    # This model calls blue what the data set calls red, and knows a class more.
    found = json.loads(results.read_text())
    assert [r["category_id"] for r in found if r["score"] > 0.5] == [20, 7, 20]
    assert {r["category_id"] for r in found} == set(CATEGORY_IDS)


def test_predictions_of_a_file_get_the_numbers_of_the_model(evaluate, data, tmp_path):
    results, both = tmp_path / "results.json", [tmp_path / "1.json", tmp_path / "2.json"]
    options = ("--data", data, "--metrics", "mask", "box", "boundary", "--output")
    code, out, _ = evaluate("colour", *options, both[0], "--results", results)
    assert code == 0 and "boundary  AP" in out
    code, out, _ = evaluate("--predictions", results, *options, both[1])
    assert code == 0 and "results.json on" in out
    model, file = (json.loads(path.read_text()) for path in both)
    for name in ("AP", "AP50", "APm", "AR100", "per_class", "box", "boundary", "instances"):
        assert model[name] == file[name]


def test_boxes_alone_have_box_ap_alone(evaluate, data, tmp_path):
    results = tmp_path / "boxes.json"
    box = {"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [0, 0, 32, 32]}
    results.write_text(json.dumps([box]))
    code, out, _ = evaluate("--predictions", results, "--data", data, "--max-images", 1)
    assert code == 0 and "box       AP 50.0" in out and "mask" not in out
    only = ("--predictions", results, "--data", data)
    fails(evaluate(*only, "--metrics", "mask"), "boxes and no masks", "--metrics box")
    fails(evaluate(*only, "--report", tmp_path / "report"), "no report")


def test_a_report_has_its_pictures(evaluate, data, tmp_path):
    report = tmp_path / "my report"
    code, out, _ = evaluate("colour", "--data", data, "--report", report)
    assert code == 0 and str(report / "mistakes.jpg") in out
    assert sorted(p.name for p in report.iterdir()) == ["mistakes.jpg", "precision_recall.png"]
    for path in report.iterdir():
        with Image.open(path) as picture:
            assert picture.width > 1000


def test_ctrl_c_says_what_is_lost(evaluate, data, tmp_path):
    class Interrupted(ColourModel):
        def forward(self, batch):
            raise KeyboardInterrupt

    def load(source):
        return Interrupted(), CheckpointInfo("colour", NAMES, CATEGORY_IDS)

    output = tmp_path / "out" / "ap.json"
    code, _, err = evaluate("w.pt", "--data", data, "--output", output, load_model=load)
    assert code == 130 and "interrupted after 0 of 3 images; nothing was written" in err
    assert list(output.parent.iterdir()) == []


def fails(result, *words):
    code, out, err = result
    lines = [line for line in err.splitlines() if line]
    assert code == 2 and "Traceback" not in out + err
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    for word in words:
        assert word in lines[-1], lines[-1]


def test_a_missing_checkpoint_is_one_line_and_exit_code_2(evaluate, data, tmp_path):
    missing = tmp_path / "none.pt"
    fails(evaluate(missing, "--data", data, load_model=load_weights_file), "none.pt", "no such")


def test_bad_inputs_are_one_line_and_exit_code_2(evaluate, data, tmp_path):
    fails(evaluate("colour", "--data", tmp_path / "none"), "none", "no such")
    fails(evaluate("colour", "--data", data, "--device", "gpu9"), "gpu9")
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "ap.json"
    fails(evaluate("colour", "--data", data, "--output", output), "file")

    def unknown(source):
        return ColourModel(), CheckpointInfo("m", ("red", "green", "x"), (1, 2, 3))

    fails(evaluate("m.pt", "--data", data, load_model=unknown), "does not know 1", "blue")

    def official(source):
        return ColourModel(80), CheckpointInfo("coco", None, None)

    fails(evaluate("coco", "--data", data, load_model=official), "80 classes")


def test_bad_options_exit_with_code_2(evaluate, data):
    for options in (
        ["--max-images", 0],
        ["--workers", -1],
        ["--batch-size", 0],
        ["--split", "test"],
        ["--predictions", "results.json"],
    ):
        code, _, err = evaluate("colour", "--data", data, *options)
        assert code == 2 and options[0] in err


def test_a_broken_image_is_named_and_nothing_is_written(evaluate, data, tmp_path):
    bad = data / "val" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    output = tmp_path / "ap.json"
    result = evaluate("colour", "--data", data, "--workers", 0, "--output", output)
    fails(result, "2.png")
    assert not output.exists()


def test_an_image_of_another_size_is_named(evaluate, data):
    Image.new("RGB", (50, 50)).save(data / "val" / "1.png")
    fails(evaluate("colour", "--data", data, "--workers", 0), "1.png", "50 x 50")
