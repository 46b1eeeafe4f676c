"""The parameter groups of AdamW and the learning-rate schedule, as the release trains."""

from typing import Any

from torch import nn

# The schedule multiplies the learning rate by 0.1 at these parts of the whole; in the release at
# 327,778 and 355,092 of 368,750 iterations.
DROPS = (327_778 / 368_750, 355_092 / 368_750)


def parameter_groups(
    model: nn.Module, lr: float, backbone_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """At most four groups for an optimizer: backbone or not, weight decay or none.

    Norm layers and embeddings (positions, auxiliary queries) have no weight decay.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d)
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            is_embedding = name.startswith(("positions.", "queries.aux_"))
            key = (name.startswith("backbone."), is_norm or is_embedding)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": backbone_lr if of_backbone else lr,
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        for (of_backbone, undecayed), parameters in groups.items()
    ]


def lr_factor(step: int, total: int, warmup: int) -> float:
    """What the learning rate is multiplied by at `step`, from 0, of `total`.

    Rises linearly over `warmup` steps and falls to a tenth at each of DROPS.
    """
    return min(1.0, (step + 1) / max(warmup, 1)) * 0.1 ** sum(step >= d * total for d in DROPS)
