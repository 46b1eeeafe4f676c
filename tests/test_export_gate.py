import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import small_model

from fastinst.config import make_config
from fastinst.errors import InputError
from fastinst.export.artefact import Artefact, load_artefact
from fastinst.export.gate import Drift, Limits, compare, measure_drift
from fastinst.export.metadata import Metadata
from fastinst.results import Instances


def instances(*found):
    """Of (score, label, columns of a 4 x 40 mask), best first."""
    masks = torch.zeros(len(found), 4, 40, dtype=torch.bool)
    for mask, (_, _, columns) in zip(masks, found, strict=True):
        mask[:, slice(*columns)] = True
    scores, labels, _ = zip(*found, strict=True) if found else ((), (), ())
    return Instances.from_masks(
        torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks
    )


def test_each_is_compared_with_the_most_alike_of_its_class():
    one = instances((0.9, 0, (0, 10)), (0.8, 1, (0, 10)), (0.5, 0, (20, 30)))
    other = instances((0.82, 1, (0, 10)), (0.8, 0, (0, 8)), (0.5, 0, (20, 30)))
    drift = compare(one, other)
    np.testing.assert_allclose(drift.ious, [0.8, 1, 1])
    np.testing.assert_allclose(drift.scores, [0.1, 0.02, 0], atol=1e-7)


def test_none_is_taken_twice_and_what_is_missing_counts():
    one = instances((0.9, 0, (0, 10)), (0.7, 0, (0, 10)), (0.6, 2, (0, 10)))
    drift = compare(one, instances((0.7, 0, (0, 10)), (0.6, 1, (0, 10))))
    assert sorted(drift.ious) == [0, 0, 1]
    np.testing.assert_allclose(drift.scores, [0.9, 0, 0.6], atol=1e-7)
    nothing = compare(one, instances())
    np.testing.assert_allclose(nothing.scores, [0.9, 0.7, 0.6])
    assert not nothing.ious.any()
    assert len(compare(instances(), one).ious) == 0


def test_empty_masks_are_alike():
    drift = compare(instances((0.0, 0, (0, 0))), instances((0.0, 0, (0, 0))))
    assert (drift.ious, drift.scores) == (1, 0)
    drift = compare(instances((0.0, 0, (0, 0))), instances((0.0, 0, (0, 4))))
    assert (drift.ious, drift.scores) == (0, 0)


def test_only_the_best_must_be_there_but_among_all():
    one = instances((0.9, 0, (0, 10)), (0.8, 1, (0, 10)))
    other = instances((0.9, 2, (0, 10)), (0.9, 0, (0, 10)))
    assert compare(one, other, best=1).ious == [1]


@pytest.mark.parametrize(
    "ious, scores, passes",
    [
        ([1.0] * 200, [0.0] * 200, True),
        ([1.0] * 198 + [0.9] * 2, [0.0] * 200, True),
        ([1.0] * 199 + [0.7], [0.0] * 200, False),
        ([1.0] * 200, [0.0] * 199 + [0.5], True),
        ([1.0] * 200, [0.0] * 196 + [0.5] * 4, False),
        ([float("nan")] + [1.0] * 199, [0.0] * 200, False),
        ([1.0] * 200, [float("nan")] + [0.0] * 199, False),
        ([], [], False),
    ],
)
def test_limits(ious, scores, passes):
    drift = Drift(np.array(ious), np.array(scores))
    assert drift.within(Limits(iou=0.999, score=1e-3)) is passes


def artefact_of(model, shape, change=lambda logits, masks: (logits, masks)):
    """A file that computes what the model does, or something else."""
    mean, std = torch.tensor([model.config.pixel_mean, model.config.pixel_std]).view(2, 3, 1, 1)

    def run(images):
        assert shape[0] is None or tuple(images.shape) == (shape[0], 3, *shape[1:])
        outputs = model((images - mean) / std)
        return *change(outputs["pred_logits"], outputs["pred_masks"]), outputs["query_indices"]

    metadata = Metadata(model.config, None, None, shape, "float32")
    return Artefact(run, metadata, torch.device("cpu"))


def photographs(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("shape", [(None, 96, 96), (1, 96, 128), (2, 64, 64)])
def test_what_computes_the_same_does_not_drift(monkeypatch, shape):
    model = small_model(monkeypatch)
    drift = measure_drift(model, artefact_of(model, shape), photographs((90, 120), (150, 60)))
    assert len(drift.ious) == 2 * 2 * 20
    assert drift.within(Limits(0.999, 1e-3))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, masks: (logits, masks.roll(1, 3)),
        lambda logits, masks: (logits, masks + 0.5 * masks.std()),
        lambda logits, masks: (3 * logits, masks),
        lambda logits, masks: (logits.flip(2), masks),
        lambda logits, masks: (logits, torch.full_like(masks, float("nan"))),
        lambda logits, masks: (torch.full_like(logits, float("nan")), masks),
    ],
    ids=["shifted", "larger", "surer", "other classes", "no masks", "no scores"],
)
def test_what_computes_something_else_does(monkeypatch, change):
    model = small_model(monkeypatch)
    artefact = artefact_of(model, (None, 96, 96), change)
    assert not measure_drift(model, artefact, photographs((90, 120))).within(Limits(0.98, 0.02))


def test_any_batch_goes_through_a_file_for_another(monkeypatch):
    model = small_model(monkeypatch)
    artefact = artefact_of(model, (2, 96, 128))
    batch = torch.randn(3, 3, 64, 96)
    padded = torch.nn.functional.pad(batch, (0, 32, 0, 32))
    with torch.no_grad():
        expected = model(padded)
    for name, actual in artefact(batch).items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"up to 128 x 96 .* got 96 x 128"):
        artefact(torch.zeros(1, 3, 128, 96))


def metadata():
    config = make_config("fastinst-d1-r18-192", num_classes=2, num_queries=50)
    return Metadata(config, ("a", 'say "ä"'), (7, 1), (None, 128, 128), "float16")


def test_metadata_survives():
    assert Metadata.from_json(metadata().to_json(), "x") == metadata()
    unknown = Metadata(metadata().config, None, None, (1, 64, 96), "float32")
    assert Metadata.from_json(unknown.to_json(), "x") == unknown
    stuff = replace(metadata(), is_thing=(True, False))
    assert Metadata.from_json(stuff.to_json(), "x") == stuff
    before = json.loads(unknown.to_json())
    del before["is_thing"]
    assert Metadata.from_json(json.dumps(before), "x") == unknown


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[:-5],
        lambda text: text.replace("fastinst-artefact/1", "fastinst-artefact/2"),
        lambda text: json.dumps({**json.loads(text), "colour": "BGR"}),
        lambda text: json.dumps({**json.loads(text), "config": {"name": "x"}}),
    ],
)
def test_foreign_metadata_is_refused(change):
    with pytest.raises(InputError, match="^a file.onnx: .*export it anew"):
        Metadata.from_json(change(metadata().to_json()), "a file.onnx")


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="gone.pt2: cannot be read"):
        load_artefact(tmp_path / "gone.pt2")
    (tmp_path / "no program.pt2").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no program.pt2: no program of torch.export"):
        load_artefact(tmp_path / "no program.pt2")


def test_without_onnxruntime_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="onnxruntime: pip install onnx onnx"):
        load_artefact(tmp_path / "model.onnx")


def test_onnx_on_a_gpu_wants_a_runtime_for_it(tmp_path, monkeypatch):
    runtime = types.SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr("fastinst.export.artefact.choose_device", torch.device)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="model.onnx: .* does not run on cuda"):
        load_artefact(tmp_path / "model.onnx", "cuda")
