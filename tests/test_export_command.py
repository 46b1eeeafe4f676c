import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_coco import program_runner
from small_models import small_model

import fastinst.export.program
from fastinst.predictor import Predictor
from fastinst.weights import load_model, save_checkpoint

PROGRAM = Path(__file__).parents[1] / "export.py"
NAMES, IDS = ("disc", "square", "ring"), (1, 2, 7)


@pytest.fixture
def export(monkeypatch, capsys):
    run = program_runner(monkeypatch, capsys, PROGRAM)
    return lambda *arguments: run(*arguments, load_model=load_model)


@pytest.fixture
def model(monkeypatch):
    return small_model(monkeypatch)


@pytest.fixture
def checkpoint(model, tmp_path):
    save_checkpoint(tmp_path / "best.pt", model, NAMES, IDS)
    return tmp_path / "best.pt"


@pytest.fixture
def photos(tmp_path):
    """Two images in a folder with a space, in landscape and upright."""
    (tmp_path / "my photos").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 90, 3)), ("b.png", (90, 60, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(
            tmp_path / "my photos" / name
        )
    return tmp_path / "my photos"


def test_a_file_that_predictors_take(export, model, checkpoint, photos, tmp_path):
    output = tmp_path / "a folder" / "model.pt2"
    arguments = ("--output", output, "--images", photos, "--size", 128, 128)
    code, out, err = export(checkpoint, *arguments)
    assert code == 0, err
    assert f"{output}: " in out and "float32, for 1 x 3 x 128 x 128" in out
    assert f"80 pairs of the model's best 20 and the file's, 2 images in {photos}" in out
    assert "1.00000" in out and "limit: mean >= 0.999" in out
    # Alone, each of the two has less padding.
    assert "the model itself pads 2 of the 2 images to another size" in out
    assert "--size 96 128 is right for 1 of them, --dynamic for all" in out

    predictor = Predictor(output, "cpu")
    assert (predictor.name, predictor.class_names) == (model.config.name, NAMES)
    assert predictor.category_ids == IDS
    for path in photos.iterdir():
        found = predictor(path)
        assert found.class_names == NAMES and len(found) == 60
        assert found.size == Image.open(path).size[::-1]
    # It has the model's own size for both, and pads to a square.
    image = np.array(Image.open(photos / "a.png"))
    batch, sizes = model.preprocess([predictor.resize(image)], at_least=(128, 128))
    assert sizes == [(85, 128)]
    with torch.no_grad():
        expected = model(batch)["pred_logits"]
    torch.testing.assert_close(predictor.network(batch)["pred_logits"], expected)


def test_a_file_that_drifts_is_not_written(export, checkpoint, tmp_path, monkeypatch):
    exact = fastinst.export.program.adaptive_avg_pool2d
    monkeypatch.setattr(
        fastinst.export.program, "adaptive_avg_pool2d", lambda x, size: 20 * exact(x, size)
    )
    output = tmp_path / "model.pt2"
    output.write_bytes(b"the former")
    before = sorted(tmp_path.iterdir())
    code, out, err = export(checkpoint, "--output", output, "--max-images", 2)
    assert code == 1
    assert "2 images generated; name yours with --images FOLDER" in out
    assert err == f"error: it drifts too far from the model; {output} is not written\n"
    assert output.read_bytes() == b"the former" and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--output", "model.engine"), "--output must end in .onnx or .pt2, got model.engine"),
        (("--output", "m.onnx", "--dtype", "bfloat16"), "--dtype for .onnx is one of float32, fl"),
        (("--output", "m.pt2", "--dtype", "int8"), "--dtype for .pt2 is one of float32, float16"),
        (("--output", "m.pt2", "--size", "100", "128"), "--size must be multiples of 32"),
        (("--output", "m.pt2", "--size", "0", "128"), "--size must be multiples of 32"),
        (("--output", "m.pt2", "--batch-size", "0"), "--batch-size and --max-images must be at"),
        (("--output", "m.onnx", "--opset", "18"), "--opset must be 19 or later"),
        (("--output", "m.pt2", "--images", "nowhere"), "nowhere: no such folder"),
        (("--output", "m.pt2", "--size", "64", "64", "--dynamic"), "not allowed with argument"),
    ],
)
def test_what_cannot_be(export, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = export("best.pt", *arguments)
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_says_so(export, tmp_path, monkeypatch, package):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == package else object())
    code, _, err = export("best.pt", "--output", tmp_path / "model.onnx")
    assert code == 2
    assert err.startswith(f"error: ONNX needs the package {package}: pip install onnx")
    assert len(err.splitlines()) == 1
