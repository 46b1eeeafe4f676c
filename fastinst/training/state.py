"""What a training run is at a step, beside its model: all that a checkpoint must hold to go on."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from fastinst.errors import InputError
from fastinst.training.arguments import Resumed
from fastinst.training.ema import ExponentialMovingAverage
from fastinst.training.fingerprint import difference


@dataclasses.dataclass
class Progress:
    """How far a run is, in plain values."""

    step: int = 0
    seconds: float = 0.0
    best_ap: float = -math.inf
    evaluations_in_vain: int = 0  # since then
    skipped_steps: int = 0
    replaced_images: int = 0
    unjudged: dict[str, float] | None = None  # the log's row of a step still to be evaluated

    def is_over(self, steps: int, patience: int | None) -> bool:
        """After so many steps or, if there is a limit to patience, evaluations in vain."""
        return self.step >= steps or self.evaluations_in_vain >= (patience or math.inf)


@dataclasses.dataclass
class TrainingState:
    """progress, and what changes with every step"""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None
    progress: Progress = dataclasses.field(default_factory=Progress)

    def state_dict(self) -> dict[str, Any]:
        return {
            "progress": dataclasses.asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def resume(
        self, resumed: Resumed, source: Path, data: dict[str, Any] | None, steps: int
    ) -> None:
        """Take up a run.

        source, data: the training set and its fingerprint; None not to compare it
        steps: of the whole run
        Raises InputError if the data is not what it was, or nothing is left to do.
        """
        path, saved, _ = resumed
        if data is not None and (changed := difference(saved["data"], data)):
            raise InputError(f"{source} is not what {path} was trained on: {changed}")
        self.load_state_dict(saved)
        if self.progress.step >= steps and not self.progress.unjudged:
            raise InputError(
                f"{path} is at step {self.progress.step} of {steps}: nothing is left to do; "
                f"--steps or --epochs would extend the run"
            )

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; the optimizer's options stay as they are.

        A moving average that is new to the run starts with the model's weights.
        """
        options = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group |= own  # those of the command line and of this device
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema and saved["ema"]:
            self.ema.load_state_dict(saved["ema"])
        self.progress = Progress(**saved["progress"])
