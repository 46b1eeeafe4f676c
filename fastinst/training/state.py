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

    judged_by: str  # the chief number of its measure
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf  # of that number
    evaluations_in_vain: int = 0  # since then
    skipped_steps: int = 0
    replaced_images: int = 0
    unjudged: dict[str, float] | None = None  # the log's row of a step still to be evaluated

    def is_over(self, steps: int, patience: int | None) -> bool:
        """After so many steps or, if there is a limit to patience, evaluations in vain."""
        return self.step >= steps or self.evaluations_in_vain >= (patience or math.inf)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Progress":
        """What `dataclasses.asdict` gave, here or in versions that judged every task by mask AP."""
        saved = {"judged_by": "AP"} | saved
        if "best_ap" in saved:
            saved["best"] = saved.pop("best_ap")
        return cls(**saved)


@dataclasses.dataclass
class TrainingState:
    """progress, and what changes with every step"""

    progress: Progress
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None

    def state_dict(self) -> dict[str, Any]:
        return {
            "progress": dataclasses.asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def resume(
        self, resumed: Resumed, source: Path, data: dict[str, Any] | None, steps: int
    ) -> list[str]:
        """Take up a run. A best model that was chosen by another number does not count.

        Returns lines of text for the user.

        source, data: the training set and its fingerprint; None not to compare it
        steps: of the whole run
        Raises InputError if the data is not what it was, or nothing is left to do.
        """
        path, saved, note = resumed
        if data is not None and (changed := difference(saved["data"], data)):
            raise InputError(f"{source} is not what {path} was trained on: {changed}")
        judged_by = self.progress.judged_by
        self.load_state_dict(saved)
        if self.progress.step >= steps and not self.progress.unjudged:
            raise InputError(
                f"{path} is at step {self.progress.step} of {steps}: nothing is left to do; "
                f"--steps or --epochs would extend the run"
            )
        notes = [f"warning: {note}"] if note else []
        if self.progress.judged_by != judged_by:
            notes.append(
                f"warning: this run was judged by {self.progress.judged_by}; from here on it is "
                f"{judged_by}, by which best.pt is chosen anew"
            )
            fresh = {"judged_by": judged_by, "best": -math.inf, "evaluations_in_vain": 0}
            self.progress = dataclasses.replace(self.progress, **fresh)
        return [*notes, f"resuming {path} after step {self.progress.step}"]

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
        self.progress = Progress.restored(saved["progress"])
