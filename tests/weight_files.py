"""Small models, and files of weights in the release's and others' layouts."""

import pytest
import torch

import fastinst
from fastinst import backbone
from fastinst.backbone import Architecture, BasicBlock, Bottleneck
from fastinst.errors import InputError
from fastinst.official import official_names

SMALL = {"hidden_dim": 64, "ffn_dim": 32, "num_queries": 10, "num_points": 16}
RELEASED = "fastinst-d1-r50-576"
OFFICIAL_BIAS = "sem_seg_head.predictor.query_proposal.conv_proposal_cls_logits.2.bias"


def small_model(num_classes=3, **options):
    return fastinst.create_model("fastinst-d1-r18-192", num_classes, **SMALL | options)


def shorten_networks(monkeypatch):
    """One block a stage, so that the files of these tests are small."""
    deformable = (False, False, True, True)
    for name, architecture in {
        "resnet18": Architecture(BasicBlock, (1, 1, 1, 1)),
        "resnet50": Architecture(Bottleneck, (1, 1, 1, 1)),
        "resnet50d-dcn": Architecture(Bottleneck, (1, 1, 1, 1), True, deformable),
    }.items():
        monkeypatch.setitem(backbone.ARCHITECTURES, name, architecture)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


def refuses(action, *words):
    """The action raises one InputError, on one line, that has all the words."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


def official_state(name=RELEASED, num_classes=80):
    """The release's names; each tensor has a number of its own and takes no room."""
    with torch.device("meta"):
        model = fastinst.create_model(name, num_classes)
    shapes = model.state_dict()
    return {
        official: torch.tensor(i + 0.5).expand(shapes[ours].shape)
        for i, (ours, official) in enumerate(official_names(model).items())
    }


def assert_official(model, kept=()):
    for i, ours in enumerate(official_names(model)):
        assert (model.state_dict()[ours] == i + 0.5).all() == (ours not in kept), ours
