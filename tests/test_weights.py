"""Checkpoints of our own: what loads, and what must not."""

import dataclasses
import os
import resource
import signal

import pytest
import torch
from weight_files import (
    RELEASED,
    SMALL,
    assert_same,
    official_state,
    refuses,
    shorten_networks,
    small_model,
    snapshot,
)

import fastinst
from fastinst.weights import (
    CheckpointInfo,
    load_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)


@pytest.fixture(autouse=True)
def _short_networks(monkeypatch):
    shorten_networks(monkeypatch)


def test_checkpoint_round_trip_is_exact(tmp_path):
    model = small_model()
    model.backbone.bn1.num_batches_tracked += 7
    training = {"step": 5, "optimizer": {"exp_avg": torch.rand(3)}, "rng": torch.get_rng_state()}
    path = tmp_path / "last.pt"
    save_checkpoint(path, model, ["a", "b", "c"], [1, 5, 9], training)

    checkpoint = read_checkpoint(path)
    assert checkpoint["format"] == "fastinst/1"
    assert checkpoint["config"] == dataclasses.asdict(model.config)
    assert checkpoint["training"]["step"] == 5
    assert_same(checkpoint["training"]["optimizer"], training["optimizer"])

    other = small_model()
    assert load_weights(other, path) == []
    assert_same(other.state_dict(), model.state_dict())

    restored, meta = load_model(path)
    assert_same(restored.state_dict(), model.state_dict())
    assert restored.config == model.config and not restored.training
    assert meta == CheckpointInfo("fastinst-d1-r18-192", ("a", "b", "c"), (1, 5, 9), None)


def test_bare_state_dicts_load_into_a_model_but_do_not_make_one(tmp_path):
    model, other = small_model(), small_model()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert load_weights(other, tmp_path / "state.pt") == []
    assert_same(other.state_dict(), model.state_dict())
    refuses(lambda: load_model(tmp_path / "state.pt"), "state.pt", "create_model")


def test_values_take_the_models_dtype_and_batch_norms_may_be_frozen_or_not(tmp_path):
    trainable, frozen = small_model().double(), small_model(frozen_batch_norm=True)
    torch.save(trainable.state_dict(), tmp_path / "trainable.pt")
    torch.save(frozen.state_dict(), tmp_path / "frozen.pt")
    load_weights(frozen, tmp_path / "trainable.pt")
    for name, value in frozen.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, trainable.state_dict()[name].float())
    load_weights(trainable, tmp_path / "frozen.pt")


def test_other_number_of_classes_keeps_the_class_layers(tmp_path):
    save_checkpoint(tmp_path / "three.pt", small_model(3), list("abc"), [1, 2, 3])
    model = small_model(5)
    before, saved = snapshot(model), read_checkpoint(tmp_path / "three.pt")["model"]
    kept = load_weights(model, tmp_path / "three.pt")
    layers = ["queries.classifier", *(f"decoder.heads.{i}.class_mlp.layers.2" for i in (0, 1))]
    assert kept == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else saved[name]), name


def test_checkpoints_of_other_models_change_nothing(tmp_path):
    path = tmp_path / "wide.pt"
    save_checkpoint(path, small_model(ffn_dim=64), None, None)
    model = small_model()
    before = snapshot(model)
    name = "fastinst-d1-r18-192 with 3 classes"
    refuses(
        lambda: load_weights(model, path), path, "another model", name, "ffn_dim=64", "[64, 32]"
    )

    save_checkpoint(path, fastinst.create_model(RELEASED, 3, **SMALL), None, None)
    refuses(lambda: load_weights(model, path), path, f"{RELEASED} with 3 classes", "unexpected")

    state = dict(model.state_dict())
    state["extra"], state["positions.weight"] = torch.ones(1), torch.ones(1, 64, 9, 10)
    del state["backbone.conv1.weight"]
    torch.save(state, path)
    refuses(
        lambda: load_weights(model, path),
        "an unknown one",
        "missing (1): backbone.conv1.weight",
        "unexpected (1): extra",
        "wrong shape (1): positions.weight [1, 64, 9, 10], not [1, 64, 10, 10]",
    )
    for exotic in (torch.ones(1).to_sparse(), torch.ones(1, dtype=torch.complex64), "text"):
        torch.save({**model.state_dict(), "positions.weight": exotic}, path)
        refuses(lambda: load_weights(model, path), "positions.weight", "not a plain tensor")
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "fastinst/2"}, ["fastinst/2", "another version"]),
        ({"config": {"name": "x", "warp": 1}}, ["does not know: warp"]),
        ({"config": {"name": "x"}}, ["missing"]),
        ({"config": None}, ["'config'"]),
        ({"class_names": ["a"]}, ["'class_names'", "3 classes"]),
        ({"category_ids": ["1", "2", "3"]}, ["'category_ids'"]),
        ({"model": {}}, ["empty"]),
    ],
)
def test_checkpoints_that_do_not_make_sense(tmp_path, change, words):
    path = tmp_path / "changed.pt"
    save_checkpoint(path, small_model(), None, None)
    torch.save(read_checkpoint(path) | change, path)
    refuses(lambda: load_model(path), path, *words)


def test_read_checkpoint_wants_our_own(tmp_path):
    torch.save({"model": official_state()}, tmp_path / "official.pth")
    refuses(lambda: read_checkpoint(tmp_path / "official.pth"), "official.pth", "not a checkpoint")


def test_failed_saves_leave_the_old_checkpoint(tmp_path):
    model, path = small_model(), tmp_path / "last.pt"
    save_checkpoint(path, model, None, None, {"step": 1})
    refuses(lambda: save_checkpoint(tmp_path / "no" / "a.pt", model, None, None), "no/a.pt")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk
    try:
        refuses(lambda: save_checkpoint(path, model, None, None, {"step": 2}), path, "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(AttributeError):
        save_checkpoint(path, model, None, None, {"step": lambda: 3})
    assert read_checkpoint(path)["training"] == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]
