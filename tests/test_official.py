"""Names of the release, and loading by them. The names themselves are in test_parity.py."""

import numpy as np
import pytest
import torch

import fastinst
from fastinst.errors import InputError
from fastinst.official import load_official, official_names


@pytest.fixture(scope="module")
def model():
    return fastinst.create_model(
        "fastinst-d1-r18-192", num_classes=3, hidden_dim=64, num_heads=2, ffn_dim=32
    )


def official_state(model):
    """Random values under the release's names."""
    own = model.state_dict()
    return {
        official: torch.rand(own[ours].shape) for ours, official in official_names(model).items()
    }


def test_names_are_a_bijection_without_batch_counters(model):
    names = official_names(model)
    assert len(set(names.values())) == len(names)
    left_out = set(model.state_dict()) - set(names)
    assert left_out and all(name.endswith("num_batches_tracked") for name in left_out)


def test_some_names_of_each_kind(model):
    names = official_names(model)
    predictor = "sem_seg_head.predictor"
    assert names["backbone.conv1.weight"] == "backbone.stem.conv1.weight"
    assert names["backbone.layer1.0.bn2.weight"] == "backbone.res2.0.conv2.norm.weight"
    assert names["backbone.layer4.0.downsample.0.weight"] == "backbone.res5.0.shortcut.weight"
    assert names["pixel_decoder.laterals.0.conv.weight"].endswith("pixel_decoder.adapter_1.weight")
    assert names["positions.weight"] == f"{predictor}.meta_pos_embed"
    assert names["queries.aux_features"] == f"{predictor}.empty_query_features.weight"
    assert names["decoder.heads.1.pixel_map.bias"] == f"{predictor}.mask_features_layers.1.bias"


@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.double(), np.asarray])
def test_loads_tensors_and_arrays_of_any_float_type(model, convert):
    state = official_state(model)
    extra = {"criterion.empty_weight": torch.ones(4), "sem_seg_head.criterion.empty_weight": 1.0}
    load_official(model, {name: convert(value) for name, value in state.items()} | extra)
    own = model.state_dict()
    for ours, official in official_names(model).items():
        assert own[ours].dtype == torch.float32
        assert torch.equal(own[ours], state[official])


def test_lists_all_that_does_not_fit_and_loads_nothing(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = official_state(model)
    del state["backbone.stem.conv1.weight"], state["sem_seg_head.predictor.meta_pos_embed"]
    state["surplus.one"] = state["surplus.two"] = torch.ones(1)
    state["backbone.stem.conv1.norm.bias"] = torch.ones(65)
    with pytest.raises(InputError) as caught:
        load_official(model, state)
    message = str(caught.value)
    assert message.startswith("these weights are not of fastinst-d1-r18-192 with 3 classes; ")
    missing = "backbone.stem.conv1.weight, sem_seg_head.predictor.meta_pos_embed"
    assert f"missing (2): {missing}" in message
    assert "unexpected (2): surplus.one, surplus.two" in message
    assert "wrong shape (1): backbone.stem.conv1.norm.bias [65], not [64]" in message
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
