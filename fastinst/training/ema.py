"""The exponential moving average of a model's weights, which is evaluated and kept as best."""

import copy
from typing import Any

import torch
from torch import nn


class ExponentialMovingAverage:
    """A model, in evaluation mode, whose parameters follow those of the trained one.

    The n-th update moves them by 1 - min(decay, (1 + n) / (10 + n)) of the way, so that the
    random initial weights are soon forgotten. Buffers are copied.

    model: at first a copy of the given one, on its device
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model` after a step of its optimizer; a few launches, and no synchronisation."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, others = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(own, others, 1 - decay)
        if own := list(self.model.buffers()):
            torch._foreach_copy_(own, list(model.buffers()))

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and weights; the same tensors that later updates change."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
