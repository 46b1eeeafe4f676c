"""Ending a run between two steps: Ctrl-C, SIGTERM, and all processes at once."""

import signal

import torch
import torch.distributed as dist


class Interrupts:
    """Catches a first Ctrl-C or SIGTERM, so that the run can save; a second one ends it at once."""

    def __init__(self):
        self.received = False
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: object) -> None:
        self.received = True
        signal.signal(signum, signal.SIG_DFL)

    def requested(self, device: torch.device) -> bool:
        """Whether any process has received a signal; all of them must ask, at the same step."""
        if not dist.is_initialized():
            return self.received
        shared = torch.tensor(float(self.received), device=device)
        dist.all_reduce(shared)
        return bool(shared.item())


def ignore_interrupts(worker: int) -> None:
    """For a DataLoader's workers, whom the signals reach too: the main process ends them."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
