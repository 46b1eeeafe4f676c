"""The parameter groups of AdamW, as the release has them, and their learning rates."""

from typing import Any

import torch
from torch import nn

EMBEDDINGS = (
    *("positions.", "queries.aux_", "queries.features", "queries.positions"),
    "decoder.level_embedding",
)


def parameter_groups(
    model: nn.Module, lr: float, backbone_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """At most four groups for an optimizer: backbone or not, weight decay or none.

    Norm layers and embeddings (of positions, levels and queries) have no weight decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d)
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            is_embedding = name.startswith(EMBEDDINGS)
            key = (name.startswith("backbone."), is_norm or is_embedding)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": backbone_lr if of_backbone else lr,
            "initial_lr": backbone_lr if of_backbone else lr,
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        for (of_backbone, undecayed), parameters in groups.items()
    ]


def scale_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Let every group of `parameter_groups` have `factor` times its initial learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
