"""The model's configuration: one frozen dataclass and its named presets."""

import ast
import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from fastinst.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything that decides what a model computes and how it is supervised."""

    name: str
    backbone: str  # a key of fastinst.backbone.ARCHITECTURES
    test_short_edge: int  # pixels; the image is resized to it before inference ...
    test_max_edge: int  # ... unless its longer edge would pass this
    num_layers: int  # of the decoder
    dual_path: bool = True  # False: Mask2Former's decoder. The supplement's Table I, A
    activation_guided: bool = True  # False: queries are learnt, the same for every image. B
    mask_guided: bool = True  # training looks where ground-truth masks say as well. C
    learnable_positions: bool = True  # False: sines. E, with the auxiliary queries
    train_short_edge: int = 640  # the largest of training's random sizes
    train_max_edge: int = 853
    num_classes: int = 80
    num_queries: int = 100  # instance activation-guided, the paper's N_a
    num_aux_queries: int = 8  # learnable, the paper's N_b
    hidden_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 1024
    frozen_batch_norm: bool = True  # False: trained, which wants batches of 4 or more
    local_maximum_first: bool = True  # the supplement's Table III

    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    class_weight: float = 2.0  # of the loss and of the matching cost
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    proposal_weight: float = 20.0
    location_weight: float = 1000.0  # of the matching cost alone
    no_object_weight: float = 0.1
    num_points: int = 12544  # per mask, in the losses and in the matching
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _has_type(value, field.type):
                raise InputError(f"{field.name} must be {_type_name(field.type)}, got {value!r}")
            minimum = 1 if field.type is int and field.name != "num_aux_queries" else 0
            if field.type in (int, float) and not value >= minimum:
                raise InputError(f"{field.name} must be at least {minimum}, got {value}")
        if self.num_aux_queries and not self.activation_guided:
            raise InputError(
                f"num_aux_queries must be 0 where queries are learnt, got {self.num_aux_queries}"
            )
        if self.hidden_dim % 64 or self.hidden_dim % self.num_heads:
            # 32 groups of more than one channel, or a map of one pixel cannot be normalised.
            raise InputError(
                f"hidden_dim must be a multiple of 64 and of num_heads, "
                f"got {self.hidden_dim} and {self.num_heads}"
            )
        if not self.importance_ratio <= min(1, self.oversample_ratio):
            raise InputError(
                f"importance_ratio must be at most 1 and oversample_ratio, "
                f"got {self.importance_ratio} and {self.oversample_ratio}"
            )

    @property
    def is_fastinst(self) -> bool:
        """Whether it is a model of the release: with all of Table I's switches on."""
        paths = self.dual_path and self.mask_guided
        return paths and self.activation_guided and self.learnable_positions


_R50 = {"backbone": "resnet50"}
_R101 = {"backbone": "resnet101"}
_R50D_DCN = {"backbone": "resnet50d-dcn"}
_D1_576 = {"num_layers": 1, "test_short_edge": 576, "test_max_edge": 777}
_D3_640 = {"num_layers": 3, "test_short_edge": 640, "test_max_edge": 853}
_MASK2FORMER = {
    "num_layers": 9,
    "dual_path": False,
    "activation_guided": False,
    "mask_guided": False,
    "learnable_positions": False,
    "num_aux_queries": 0,
    "ffn_dim": 2048,
}
# For images of 1024 x 2048, as Cityscapes' (the supplement's appendix B).
_STREETS = {
    "test_short_edge": 1024,
    "test_max_edge": 2048,
    "train_short_edge": 1024,
    "train_max_edge": 2048,
}

PRESETS: dict[str, dict[str, Any]] = {
    "fastinst-d1-r50-576": _R50 | _D1_576,
    "fastinst-d3-r50-640": _R50 | _D3_640,
    "fastinst-d3-r101-640": _R101 | _D3_640,
    "fastinst-d1-r50d-dcn-576": _R50D_DCN | _D1_576,
    "fastinst-d3-r50d-dcn-640": _R50D_DCN | _D3_640,
    # The baseline of the supplement, with the same backbone and pixel decoder.
    "mask2former-light-r50-640": _R50 | _D3_640 | _MASK2FORMER,
    "mask2former-light-r50-1024": _R50 | _STREETS | _MASK2FORMER,
    "fastinst-d3-r50-1024": _R50 | _STREETS | {"num_layers": 3},
    # For demos and small machines; not the authors'. Trains from scratch in minutes on a CPU.
    "fastinst-d1-r18-192": {
        "backbone": "resnet18",
        "num_layers": 1,
        "test_short_edge": 192,
        "test_max_edge": 256,
        "train_short_edge": 192,
        "train_max_edge": 256,
        "hidden_dim": 128,
        "num_heads": 4,
        "ffn_dim": 512,
        "frozen_batch_norm": False,
        "num_points": 2048,
    },
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(PRESETS)


def longest_edge(shortest: int) -> int:
    """The limit of the longer edge that goes with a shorter one: 4:3, as photos are."""
    return round(shortest * 4 / 3)


def image_size(shortest: int) -> dict[str, int]:
    """Overrides for `make_config`: the image's shorter edge in pixels, in training and testing."""
    longest = longest_edge(shortest)
    return {
        "train_short_edge": shortest,
        "train_max_edge": longest,
        "test_short_edge": shortest,
        "test_max_edge": longest,
    }


def make_config(name: str, **overrides: Any) -> ModelConfig:
    """The preset `name` with some fields changed.

    Raises InputError for an unknown name or field and for a value of the wrong type or range.
    """
    if name not in PRESETS:
        raise InputError(f"unknown model {name!r}; the models are {', '.join(PRESETS)}")
    known = [field.name for field in dataclasses.fields(ModelConfig) if field.name != "name"]
    for key in overrides:
        if key not in known:
            guess = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {guess[0]!r}?" if guess else f"; known: {', '.join(known)}"
            raise InputError(f"unknown model option {key!r}{hint}")
    return ModelConfig(**{"name": name} | PRESETS[name] | overrides)


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """Command-line texts "field=value" to overrides for `make_config`.

    Raises InputError for another form, and for the name and the number of classes, which
    programs take from elsewhere.
    """
    overrides = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or key in ("name", "num_classes"):
            raise InputError(
                f"expected KEY=VALUE with a field of ModelConfig other than name and num_classes, "
                f"got {item!r}"
            )
        try:
            overrides[key] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            overrides[key] = value
    return overrides


def _has_type(value: Any, expected: Any) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected in (bool, str):
        return isinstance(value, expected)
    is_triple = isinstance(value, tuple) and len(value) == 3  # of the pixels' statistics
    return is_triple and all(_has_type(v, float) for v in value)


def _type_name(expected: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    return names.get(expected, "three numbers")
