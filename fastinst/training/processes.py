"""The processes of a distributed run, one for each GPU, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fastinst.errors import InputError

# What gloo, NCCL and the store say when a peer is gone.
_LOST = ("connection", "closed by peer", "socket", "nccl", "gloo", "timed out", "store")


@dataclass(frozen=True)
class Processes:
    """This process and the others; one alone is rank 0 of 1 and communicates with nobody.

    host: the group over which the CPUs agree, for it neither waits for a GPU nor makes it wait
    store: what all of them can write to, even if one is gone
    """

    rank: int = 0
    world: int = 1
    host: dist.ProcessGroup | None = field(default=None, repr=False)
    store: dist.Store | None = field(default=None, repr=False)

    @classmethod
    def find(cls) -> "Processes":
        """Those that torchrun has started, if it has started this one; they share `store` alone."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        store, rank, world = next(rendezvous("env://"))
        return cls(rank, world, None, store)

    def connect(self, device: torch.device) -> "Processes":
        """The same, able to compute together on devices of that kind. To be called by all."""
        if self.world == 1:
            return self
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world)
        host = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD
        return replace(self, host=host)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def largest(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """The largest of each of some numbers of all processes."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, self.host)
        return tuple(shared.tolist())

    def check_same_step(self, step: int, folder: str) -> None:
        """Raises InputError if one has found less of the run in its folder than the others."""
        if self.largest((step,)) != (step,):
            raise InputError(
                f"process {self.rank} is at step {step} and others are further: {folder} must be "
                f"one folder that all of them can read"
            )

    def sum_on_host(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The sum of each of some numbers of all processes."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, group=self.host)
        return tuple(shared.tolist())

    def joined(self, values: list[Any]) -> list[Any]:
        """The lists of all processes as one, in the order of their ranks."""
        if self.world == 1:
            return values
        parts = [[]] * self.world
        dist.all_gather_object(parts, values, self.host)
        return [value for part in parts for value in part]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, computed where `values` are, and in their place."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def meet(self) -> None:
        """Wait for the others as long as gloo does, 30 minutes; NCCL would give up after 10."""
        if self.world > 1:
            dist.barrier(self.host)

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    @contextmanager
    def telling_one_error(
        self, loss: str = "Nothing was saved since the last checkpoint; continue with --resume"
    ) -> Iterator[None]:
        """Of the many errors that one causes, lets through the first alone.

        The others end the block in silence. An error that is no more than the loss of another
        process, which was killed and could not tell, becomes an InputError that says so.

        loss: a sentence on what is lost then, and what to do
        """
        try:
            yield
        except InputError:
            if self._is_first():
                raise
        except RuntimeError as error:
            lost = self.world > 1 and any(word in str(error).lower() for word in _LOST)
            first = self._is_first()
            if not lost:
                raise
            if first:
                raise InputError(
                    f"process {self.rank} of {self.world} has lost another one of this run, which "
                    f"was killed or crashed. {loss}"
                ) from error

    def _is_first(self) -> bool:
        """Whether no other process has asked before."""
        if self.store is None:
            return True
        try:
            return self.store.add("errors", 1) == 1
        except RuntimeError:  # the store is gone as well
            return True
