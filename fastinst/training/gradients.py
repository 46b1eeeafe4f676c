"""The losses and gradients of one global batch, however it is split.

A batch is split over processes and, to save memory, into parts that follow each other. All are
padded to one size and divide by the same totals, and random points follow from the images' seeds:
the losses and gradients are those of the whole batch at once, up to rounding (and up to batch
statistics, if batch norms train on parts).
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastinst.criterion import Totals, count_totals
from fastinst.model import FastInst
from fastinst.targets import padded_size
from fastinst.training.processes import Processes


class _Losses(nn.Module):
    """The losses as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: FastInst):
        super().__init__()
        self.model = model

    def forward(self, batch, targets, totals):
        return self.model.loss(batch, targets, totals=totals)


class BatchGradients:
    """Computes what one step of an optimizer needs.

    parts: how many parts a process computes its share in; gradients add up
    amp: dtype of autocast, or None for none
    """

    def __init__(
        self,
        model: FastInst,
        processes: Processes,
        parts: int = 1,
        amp: torch.dtype | None = None,
    ):
        self.model, self.processes, self.parts = model, processes, parts
        self.device = next(model.parameters()).device
        self.autocast = torch.autocast(self.device.type, amp, enabled=amp is not None)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp is torch.float16)
        self.losses = _Losses(model)
        if processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Buffers are equal on all processes as they are: statistics are shared or frozen.
            self.losses = DistributedDataParallel(
                self.losses, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def compute(self, samples: list[dict]) -> dict[str, Tensor]:
        """Leaves the gradients, times the scaler's scale, in the parameters.

        samples: this process's share of the batch, from `TrainingImages`
        Returns the losses: scalars on the device, whose mean over the processes is the batch's.
        """
        sides = zip(*(sample["image"].shape[1:] for sample in samples), strict=True)
        size = padded_size(*self.processes.largest(tuple(map(max, sides))))
        targets = [sample["target"] for sample in samples]
        totals = count_totals(targets, size, self.model.config).over_processes(self.device)
        parts = [samples[i :: self.parts] for i in range(min(self.parts, len(samples)))]
        sums = {}
        for part in parts:
            together = part is parts[-1] or self.processes.world == 1
            with contextlib.nullcontext() if together else self.losses.no_sync():
                losses = self._add_gradients(part, size, totals)
            sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
        return sums

    def clip(self, optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
        """Takes the scaler's scale from the optimizer's gradients.

        largest: what their norm is reduced to if it is more; 0 for any
        Returns the norm before, a scalar on the device.
        """
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if largest:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), largest, norm)
        return norm

    def _add_gradients(
        self, samples: list[dict], size: tuple[int, int], totals: Totals
    ) -> dict[str, Tensor]:
        batch, _ = self.model.preprocess([sample["image"] for sample in samples], size)
        batch = batch.to(memory_format=torch.channels_last)
        with self.autocast:
            losses = self.losses(batch, [sample["target"] for sample in samples], totals)
        self.scaler.scale(sum(losses.values())).backward()
        return losses
