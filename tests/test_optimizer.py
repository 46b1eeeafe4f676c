"""Parameters and how they are updated."""

import fastinst
from fastinst.training.optimizer import parameter_groups


def test_parameter_groups_hold_each_parameter_once_with_the_release_s_decay():
    model = fastinst.create_model("fastinst-d1-r18-192")
    groups = parameter_groups(model, lr=1.0, backbone_lr=0.1, weight_decay=0.05)
    names = {parameter: name for name, parameter in model.named_parameters()}
    grouped = [names[p] for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values()) and len(groups) == 4
    of = {names[p]: group for group in groups for p in group["params"]}
    assert of["backbone.layer1.0.conv1.weight"]["lr"] == 0.1
    assert of["backbone.bn1.weight"]["weight_decay"] == 0
    assert of["decoder.layers.0.query_ffn.norm.bias"]["weight_decay"] == 0
    assert of["positions.weight"]["weight_decay"] == of["queries.aux_features"]["weight_decay"] == 0
    assert of["queries.classifier.bias"]["weight_decay"] == 0.05
    assert of["decoder.layers.0.query_ffn.linear1.weight"]["lr"] == 1.0


def test_what_mask2former_embeds_has_no_decay_either():
    model = fastinst.create_model("mask2former-light-r50-640")
    undecayed = {
        parameter
        for group in parameter_groups(model, 1.0, 1.0, 0.05)
        for parameter in group["params"]
        if group["weight_decay"] == 0
    }
    embedded = {model.queries.features, model.queries.positions, model.decoder.level_embedding}
    assert embedded <= undecayed
    assert model.decoder.head.class_mlp.layers[0].bias not in undecayed
