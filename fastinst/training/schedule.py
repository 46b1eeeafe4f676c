"""How long a run trains and with which learning rate, from the sizes of its data and batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The batch and the learning rate that the release trains with, and where it multiplies the latter
# by 0.1: at 327,778 and 355,092 of 368,750 iterations.
BATCH_SIZE, LR = 16, 1e-4
DROPS = (327_778 / 368_750, 355_092 / 368_750)
EPOCHS, FEWEST_STEPS = 50, 2000


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run, and the learning rate at each."""

    steps: int
    steps_per_epoch: float
    lr: float
    warmup: int  # steps
    drops_at: tuple[float, ...] = DROPS  # fractions of the steps
    pause_every: int  # steps from one evaluation and checkpoint to the next

    @classmethod
    def plan(
        cls,
        num_images: int,
        batch_size: int,
        *,
        epochs: float | None = None,
        steps: int | None = None,
        lr: float | None = None,
        warmup: int | None = None,
        drops_at: Sequence[float] = DROPS,
        pause_every: int | None = None,
    ) -> "Schedule":
        """What is None follows from the number of training images and the batch size.

        Length: the release's 50 epochs, but at least 2,000 steps. Learning rate: the release's
        1e-4 at 16 images, in proportion to the square root of the batch, which keeps AdamW's
        noise alike (arXiv 2205.10287). Warm-up: a fiftieth of the run, within 10 to 1,000 steps;
        the release has 10. Evaluation: every epoch, but at most 50 times.
        """
        steps_per_epoch = num_images / batch_size
        if steps is None:
            steps = math.ceil((epochs or EPOCHS) * steps_per_epoch)
            steps = steps if epochs else max(steps, FEWEST_STEPS)
        if warmup is None:
            warmup = min(max(10, steps // 50), 1000)
        if pause_every is None:
            pause_every = max(math.ceil(steps_per_epoch), math.ceil(steps / 50))
        return cls(
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            lr=LR * math.sqrt(batch_size / BATCH_SIZE) if lr is None else lr,
            warmup=warmup,
            drops_at=tuple(drops_at),
            pause_every=pause_every,
        )

    @property
    def drops(self) -> list[int]:
        return [math.ceil(drop * self.steps) for drop in self.drops_at]

    def lr_factor(self, step: int) -> float:
        """What `lr` is multiplied by at `step`, from 0: rises linearly, then falls at `drops`."""
        return min(1.0, (step + 1) / max(self.warmup, 1)) * 0.1 ** sum(
            step >= drop for drop in self.drops
        )

    def __str__(self) -> str:
        epochs = self.steps / self.steps_per_epoch
        drops = " and ".join(map(str, self.drops))
        return (
            f"{self.steps} steps ({epochs:.1f} epochs), evaluated and saved every "
            f"{self.pause_every}; lr {self.lr:.3g}, up over {self.warmup} steps, x0.1 at {drops}"
        )
