"""The network that `prepare` makes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastinst.engine.convolution import Convolution
from fastinst.engine.linear import Linear
from fastinst.model import FastInst
from fastinst.ops import active_kernels
from fastinst.preprocess import preprocess


class PreparedNetwork(nn.Module):
    """Takes batches and returns predictions as `FastInst` does, and can do nothing else.

    Threads may call it at the same time.
    """

    def __init__(self, model: FastInst):
        super().__init__()
        self.model = model
        self.config = model.config
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def preprocess(
        self, images: list[Tensor], at_least: tuple[int, int] = (1, 1)
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """`fastinst.preprocess.preprocess` in the network's dtype, on its device."""
        return preprocess(images, self.config, self.device, self.dtype, at_least)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """See `FastInst.forward`."""
        return self.model(batch.contiguous(memory_format=torch.channels_last))

    def stages(self, batch: Tensor) -> Iterator[tuple[str, Any]]:
        """See `FastInst.stages`."""
        return self.model.stages(batch.contiguous(memory_format=torch.channels_last))

    def constants(self, height: int, width: int) -> list[Tensor]:
        """What an input of that size makes it keep, and frees again after some other sizes.

        A captured CUDA graph reads them where they lie: hold them for as long as the graph.
        """
        positions = self.model.positions
        tokens = [positions.tokens((height // s, width // s)) for s in self.model.decoder.strides]
        return [positions((height // 16, width // 16)), *tokens]

    def describe(self) -> str:
        """What does the work here, in one line."""
        kinds = [
            ", ".join(sorted({type(m).library for m in self.modules() if isinstance(m, kind)}))
            for kind in (Convolution, Linear)
        ]
        operators = active_kernels(self.device.type).values()
        compiled = sum(kernel == "compiled" for kernel in operators)
        return (
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}; convolutions: {kinds[0]}; "
            f"linear maps: {kinds[1]}; operators: {compiled} of {len(operators)} compiled"
        )

    def train(self, mode: bool = True) -> "PreparedNetwork":
        """Raises RuntimeError for training: there are no gradients here."""
        if mode:
            raise RuntimeError("a prepared network is for inference alone; train its model")
        return super().train(False)

    def to(self, *args: Any, **kwargs: Any) -> "PreparedNetwork":
        """Raises RuntimeError: weights lie as this device and dtype want them."""
        raise RuntimeError("a prepared network cannot move: prepare its model for the other device")
