"""Weights of backbones that others have trained on ImageNet."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm2d
from weight_files import assert_same, refuses, shorten_networks, small_model, snapshot

from fastinst.weights import load_weights


@pytest.fixture(autouse=True)
def _short_networks(monkeypatch):
    shorten_networks(monkeypatch)


def with_backbone(architecture, frozen=True):
    model = small_model(backbone=architecture, frozen_batch_norm=frozen)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def imagenet(architecture):
    """A state dict with torchvision's and timm's names, out of our own."""
    state = {}
    for name, value in with_backbone(architecture, frozen=False).backbone.state_dict().items():
        if ".offset." not in name:
            state[name] = value
    return state | {"fc.weight": torch.ones(1000, 8), "fc.bias": torch.ones(1000)}


def to_detectron2(state):
    """What detectron2's convert-torchvision-to-d2.py makes of torchvision's names."""
    converted = {}
    for name, value in state.items():
        name = name if "layer" in name else f"stem.{name}"
        for i in (1, 2, 3, 4):
            name = name.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        converted[name] = value.numpy()
    return {"model": converted, "__author__": "torchvision", "matching_heuristics": True}


def assert_backbone(model, expected):
    for name, value in model.backbone.state_dict().items():
        if ".offset." in name:
            assert not value.any(), name
        elif name in expected and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[name]), name
        else:
            assert name.endswith("num_batches_tracked"), name


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnet50d-dcn"])
def test_torchvision_and_timm_backbones(tmp_path, architecture, frozen):
    path, state = tmp_path / "weights", imagenet(architecture)
    if architecture == "resnet50":  # torchvision's first files are that old
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, path, _use_new_zipfile_serialization=architecture != "resnet50")
    model = with_backbone(architecture, frozen)
    others = {k: v for k, v in snapshot(model).items() if not k.startswith("backbone.")}
    kept = load_weights(model, path)
    assert_backbone(model, state)
    offsets = {k for k in model.state_dict() if "conv2.offset" in k}
    assert set(kept) == {k for k in others if "num_batches" not in k} | offsets
    assert others.items() and all(torch.equal(model.state_dict()[k], v) for k, v in others.items())
    assert isinstance(model.backbone.bn1, BatchNorm2d) != frozen


@pytest.mark.parametrize(("frozen", "protocol"), [(True, 2), (False, 4), (True, 5)])
def test_detectron2_backbone(tmp_path, frozen, protocol):
    path, state = tmp_path / "R-50.pkl", imagenet("resnet50")
    path.write_bytes(pickle.dumps(to_detectron2(state), protocol))
    model = with_backbone("resnet50", frozen)
    load_weights(model, path)
    assert_backbone(model, state)


def test_backbones_of_another_network_change_nothing(tmp_path):
    path, model = tmp_path / "weights", with_backbone("resnet50")
    before = snapshot(model)
    torch.save(imagenet("resnet18"), path)
    refuses(lambda: load_weights(model, path), path, "no resnet50", "missing", "wrong shape")
    torch.save({**imagenet("resnet50"), "layer5.weight": torch.ones(1)}, path)
    refuses(lambda: load_weights(model, path), "unexpected (1): layer5.weight")
    path.write_bytes(pickle.dumps(to_detectron2(imagenet("resnet50"))))
    refuses(lambda: load_weights(with_backbone("resnet50d-dcn"), path), "resnet50d-dcn")
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x}, lambda x: {"blobs": x}])
def test_caffe_backbones_are_explained(tmp_path, wrap):
    names = ["conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res2_0_branch2a_bn_b", "fc1000_w"]
    content = wrap({name: np.ones(4, np.float32) for name in names})
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    message = refuses(lambda: load_weights(with_backbone("resnet50"), path), path, "MSRA", "BGR")
    assert "torchvision/R-50.pkl" in message
