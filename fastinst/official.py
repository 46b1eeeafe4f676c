"""The parameter names of the authors' release and of Mask2Former's, and loading by them."""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastinst.errors import InputError
from fastinst.model import FastInst

# Only trainable batch norms have these, and nothing uses them.
BATCH_COUNTER = "num_batches_tracked"

_PIXELS = "sem_seg_head.pixel_decoder."
_HEAD = "sem_seg_head.predictor."


def _attentions(*names: tuple[str, str, str]) -> list[tuple[str, str]]:
    """Rules for attentions by our name, the layer's in the release, and the module's in that."""
    return [
        (rf"decoder\.layers\.(\d+)\.{ours}\.{part}", rf"{_HEAD}transformer_{theirs}_layers.\1.{to}")
        for ours, theirs, module in names
        for part, to in ((r"norm\.", "norm."), ("", f"{module}."))
    ]


# Our names to the release's. The release numbers the levels from 1 at res3.
_RULES = [
    (r"pixel_decoder\.laterals\.(\d)\.conv\.", lambda m: f"{_PIXELS}adapter_{int(m[1]) + 1}."),
    (r"pixel_decoder\.laterals\.(\d)\.norm\.", lambda m: f"{_PIXELS}adapter_{int(m[1]) + 1}.norm."),
    (r"pixel_decoder\.outputs\.(\d)\.conv\.", lambda m: f"{_PIXELS}layer_{int(m[1]) + 1}."),
    (r"pixel_decoder\.outputs\.(\d)\.norm\.", lambda m: f"{_PIXELS}layer_{int(m[1]) + 1}.norm."),
    (r"pixel_decoder\.ppm\.stages\.(\d)\.", rf"{_PIXELS}ppm.stages.\1.1."),
    (r"pixel_decoder\.ppm\.bottleneck\.", rf"{_PIXELS}ppm.bottleneck."),
    (r"positions\.weight", rf"{_HEAD}meta_pos_embed"),
    (r"queries\.aux_features", rf"{_HEAD}empty_query_features.weight"),
    (r"queries\.aux_positions", rf"{_HEAD}empty_query_pos_embed.weight"),
    (r"queries\.features", rf"{_HEAD}query_feat.weight"),
    (r"queries\.positions", rf"{_HEAD}query_embed.weight"),
    (r"queries\.conv\.", rf"{_HEAD}query_proposal.conv_proposal_cls_logits.0."),
    (r"queries\.classifier\.", rf"{_HEAD}query_proposal.conv_proposal_cls_logits.2."),
    (r"(backbone\..*\.conv2)\.offset\.", r"\1_offset."),
]
_DUAL_PATH_RULES = [
    *_attentions(
        ("pixel_attention", "mask_cross_attention", "multihead_attn"),
        ("query_attention", "query_cross_attention", "multihead_attn"),
        ("self_attention", "query_self_attention", "self_attn"),
    ),
    (r"decoder\.layers\.(\d+)\.pixel_ffn\.", rf"{_HEAD}transformer_mask_ffn_layers.\1."),
    (r"decoder\.layers\.(\d+)\.query_ffn\.", rf"{_HEAD}transformer_query_ffn_layers.\1."),
    (r"decoder\.heads\.(\d+)\.norm\.", rf"{_HEAD}decoder_query_norm_layers.\1."),
    (r"decoder\.heads\.(\d+)\.class_mlp\.", rf"{_HEAD}class_embed_layers.\1."),
    (r"decoder\.heads\.(\d+)\.mask_mlp\.", rf"{_HEAD}mask_embed_layers.\1."),
    (r"decoder\.heads\.(\d+)\.pixel_map\.", rf"{_HEAD}mask_features_layers.\1."),
]
# Mask2Former's.
_MASKED_ATTENTION_RULES = [
    *_attentions(
        ("query_attention", "cross_attention", "multihead_attn"),
        ("self_attention", "self_attention", "self_attn"),
    ),
    (r"decoder\.layers\.(\d+)\.query_ffn\.", rf"{_HEAD}transformer_ffn_layers.\1."),
    (r"decoder\.level_embedding", rf"{_HEAD}level_embed.weight"),
    (r"decoder\.head\.norm\.", rf"{_HEAD}decoder_norm."),
    (r"decoder\.head\.class_mlp\.layers\.0\.", rf"{_HEAD}class_embed."),
    (r"decoder\.head\.mask_mlp\.", rf"{_HEAD}mask_embed."),
    (r"decoder\.head\.pixel_map\.", rf"{_PIXELS}mask_features."),
]
# R50 and R101 are detectron2's in the release, R50-d is timm's, whose names are ours.
_DETECTRON2_RULES = [
    (r"backbone\.conv1\.", "backbone.stem.conv1."),
    (r"backbone\.bn1\.", "backbone.stem.conv1.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"{_block(m)}.shortcut."),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"{_block(m)}.shortcut.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"{_block(m)}.conv{m[3]}.norm."),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.", lambda m: f"{_block(m)}.conv{m[3]}."),
]


def _block(match: re.Match) -> str:
    return f"backbone.res{int(match[1]) + 1}.{match[2]}"


def official_names(model: FastInst) -> dict[str, str]:
    """Our state-dict name of each tensor to the release's; a bijection.

    Batch counters of trainable batch norms, which the release does not have, are left out.
    """
    variant_d = "backbone.conv1.0.weight" in model.state_dict()
    rules = _RULES + (_DUAL_PATH_RULES if model.config.dual_path else _MASKED_ATTENTION_RULES)
    rules += [] if variant_d else _DETECTRON2_RULES
    names = {}
    for ours in model.state_dict():
        if ours.endswith(BATCH_COUNTER):
            continue
        names[ours] = ours
        for pattern, replacement in rules:
            renamed, count = re.subn(rf"^{pattern}", replacement, ours)
            if count:
                names[ours] = renamed
                break
    return names


def load_official(model: FastInst, state_dict: Mapping[str, Tensor | np.ndarray]) -> None:
    """Copies a state dict with the release's names into `model`, all of it or nothing.

    Values are converted to the model's dtype and device. `criterion.empty_weight`, a constant of
    the release's losses, is passed over.

    Raises:
        InputError: lists what is missing, unexpected or of the wrong shape.
    """
    given = {
        name: torch.as_tensor(value)
        for name, value in state_dict.items()
        if not name.endswith("criterion.empty_weight")
    }
    own = model.state_dict()
    fitted, problems = fit(own, official_names(model), given)
    if problems:
        raise InputError(
            f"these weights are not of {model.config.name} with {model.config.num_classes} "
            f"classes; {problems}"
        )
    model.load_state_dict(own | fitted)


def fit(
    own: Mapping[str, Tensor],
    names: Mapping[str, str],
    given: Mapping[str, Tensor],
    optional: tuple[str, ...] = (),
    most: int = 20,
) -> tuple[dict[str, Tensor], str]:
    """What of `given` goes to which of our names, and what does not fit, in words.

    Args:
        own: the module's state dict
        names: our names to those in `given`
        optional: ends of our names that `given` need not have
        most: how many names of each kind of misfit are told
    """
    rest, fitted, missing, wrong = dict(given), {}, [], []
    for ours, theirs in names.items():
        value = rest.pop(theirs, None)
        if value is not None and value.shape == (*own[ours].shape, 1, 1):
            value = value.flatten(1)  # Mask2Former maps pixels by a 1x1 convolution
        if value is None:
            missing += [theirs] if not ours.endswith(optional) else []
        elif value.shape != own[ours].shape:
            wrong.append(f"{theirs} {list(value.shape)}, not {list(own[ours].shape)}")
        else:
            fitted[ours] = value
    unexpected = [name for name in rest if not name.endswith(BATCH_COUNTER)]
    titles = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    return fitted, "; ".join(
        f"{title} ({len(found)}): {', '.join(found[:most])}{', ...' if len(found) > most else ''}"
        for title, found in titles.items()
        if found
    )
