import dataclasses

import pytest

import fastinst
from fastinst.config import ModelConfig, make_config, parse_overrides
from fastinst.errors import InputError


@pytest.mark.parametrize(
    ("name", "backbone", "layers", "short", "longest"),
    [
        ("fastinst-d1-r50-576", "resnet50", 1, 576, 777),
        ("fastinst-d3-r50-640", "resnet50", 3, 640, 853),
        ("fastinst-d3-r101-640", "resnet101", 3, 640, 853),
        ("fastinst-d1-r50d-dcn-576", "resnet50d-dcn", 1, 576, 777),
        ("fastinst-d3-r50d-dcn-640", "resnet50d-dcn", 3, 640, 853),
    ],
)
def test_the_published_models(name, backbone, layers, short, longest):
    assert name in fastinst.list_models()
    config = make_config(name)
    assert (config.name, config.backbone, config.num_layers) == (name, backbone, layers)
    assert (config.test_short_edge, config.test_max_edge) == (short, longest)
    assert (config.num_classes, config.num_queries, config.num_aux_queries) == (80, 100, 8)
    assert (config.hidden_dim, config.num_heads, config.ffn_dim) == (256, 8, 1024)
    weights = config.class_weight, config.mask_weight, config.dice_weight
    assert weights == (2, 5, 5)
    assert (config.proposal_weight, config.location_weight) == (20, 1000)
    assert (config.num_points, config.no_object_weight) == (12544, 0.1)
    assert (config.oversample_ratio, config.importance_ratio) == (3, 0.75)
    assert config.frozen_batch_norm


def test_every_preset_makes_a_config():
    for name in fastinst.list_models():
        assert make_config(name).name == name


def test_overrides_replace_fields():
    config = make_config("fastinst-d3-r50-640", num_classes=3, num_layers=2, class_weight=4)
    assert (config.num_classes, config.num_layers, config.class_weight) == (3, 2, 4)
    assert config.test_short_edge == 640


def test_a_config_cannot_be_changed():
    config = make_config("fastinst-d3-r50-640")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 1


def test_a_config_survives_the_way_through_a_dict():
    """As checkpoints keep it."""
    config = make_config("fastinst-d1-r18-192", num_classes=5)
    assert ModelConfig(**dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_clases": 3}, "^unknown model option 'num_clases'; did you mean 'num_classes'"),
        ({"zzz": 3}, "^unknown model option 'zzz'; known: backbone, "),
        ({"num_classes": 2.0}, "^num_classes must be an integer, got 2.0"),
        ({"num_classes": "2"}, "^num_classes must be an integer, got '2'"),
        ({"num_classes": True}, "^num_classes must be an integer, got True"),
        ({"num_classes": 0}, "^num_classes must be at least 1, got 0"),
        ({"num_queries": -1}, "^num_queries must be at least 1"),
        ({"num_aux_queries": -1}, "^num_aux_queries must be at least 0"),
        ({"class_weight": "2"}, "^class_weight must be a number"),
        ({"class_weight": -0.1}, "^class_weight must be at least 0"),
        ({"class_weight": float("nan")}, "^class_weight must be at least 0, got nan"),
        ({"class_weight": None}, "^class_weight must be a number, got None"),
        ({"frozen_batch_norm": 1}, "^frozen_batch_norm must be True or False"),
        ({"backbone": 50}, "^backbone must be a string"),
        ({"pixel_mean": (1.0, 2.0)}, "^pixel_mean must be three numbers"),
        ({"pixel_std": 58.0}, "^pixel_std must be three numbers, got 58.0"),
        ({"pixel_std": None}, "^pixel_std must be three numbers, got None"),
        ({"importance_ratio": 1.5}, "^importance_ratio must be at most 1"),
        ({"oversample_ratio": 0.5}, "^importance_ratio must be .* got 0.75 and 0.5"),
        ({"hidden_dim": 96}, "^hidden_dim must be a multiple of 64"),
        ({"hidden_dim": 64, "num_heads": 7}, "^hidden_dim must be .* of num_heads, got 64 and 7"),
    ],
)
def test_bad_overrides_are_named(overrides, message):
    with pytest.raises(InputError, match=message):
        make_config("fastinst-d1-r18-192", **overrides)


def test_an_unknown_model_lists_the_known():
    with pytest.raises(
        InputError, match="^unknown model 'fastinst'; the models are fastinst-d1-r50"
    ):
        make_config("fastinst")


def test_overrides_of_the_command_line():
    texts = ["num_layers=2", "class_weight=1.5", "frozen_batch_norm=false", "backbone=resnet50"]
    overrides = parse_overrides(texts)
    assert overrides == {
        "num_layers": 2,
        "class_weight": 1.5,
        "frozen_batch_norm": False,
        "backbone": "resnet50",
    }
    for text in ("num_layers", "num_classes=3", "name=x"):
        with pytest.raises(InputError, match=f"got '{text}'"):
            parse_overrides([text])
