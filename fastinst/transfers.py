"""Copies between the host and a GPU, beside its computing."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastinst.read_outs import Found


class Upload(NamedTuple):
    """A tensor on its way to a device."""

    tensor: Tensor
    arrived: "torch.cuda.Event | None"

    def wait(self) -> Tensor:
        """The tensor, for what is queued on the current stream from here on; the host goes on."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.arrived)
            # It was allocated on another stream, which may not have its memory back before.
            self.tensor.record_stream(stream)
        return self.tensor


class Download(NamedTuple):
    """What was found in an image, on its way to the host."""

    found: Found
    arrived: "torch.cuda.Event | None"

    def wait(self) -> Found:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.found


class Transfers:
    """Begins the copies. A GPU makes them on two streams of their own, one for each direction;
    on another device uploads are left to whoever uses the tensors, and downloads are done at once.
    """

    def __init__(self, device: torch.device):
        on_gpu = device.type == "cuda"
        self.device = device
        self._up, self._down = (torch.cuda.Stream(device) if on_gpu else None for _ in range(2))

    def upload(self, tensor: Tensor) -> Upload:
        """Of a tensor on the host."""
        if self._up is None:
            return Upload(tensor, None)
        with torch.cuda.stream(self._up):
            # The host may go on once the values are in memory that the GPU reads by itself.
            moved = tensor.pin_memory().to(self.device, non_blocking=True)
            return Upload(moved, self._up.record_event())

    def download(self, found: Found) -> Download:
        """Of what the current stream has made, or will have."""
        if self._down is None:
            return Download(found.to("cpu"), None)
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            moved = found.to("cpu", non_blocking=True)
            for tensor in found.tensors:
                tensor.record_stream(self._down)
            return Download(moved, self._down.record_event())
