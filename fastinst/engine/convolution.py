"""Convolutions made ready ahead of time: norms folded in, sum and ReLU in the same pass."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops


class Convolution(nn.Module):
    """max(conv(x) + bias + add, 0), the sum and the ReLU where they are asked for.

    weight: [C_out, C_in, kh, kw], in the dtype and on the device that it is to run in
    bias: [C_out], the same
    stride, padding: of both axes
    """

    library = "PyTorch"

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int):
        super().__init__()
        self.stride, self.padding = (stride, stride), (padding, padding)
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """x [B, C_in, H, W]; `add`, of the result's shape, may be overwritten."""
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if add is not None:
            y += add
        return y.relu_() if relu else y


class CudnnConvolution(Convolution):
    """With the bias, the sum and the ReLU in cuDNN's kernel."""

    library = "cuDNN, fused"

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        geometry = (self.stride, self.padding, (1, 1), 1)
        if not relu:
            return super().forward(x, add)
        if add is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *geometry)
        return torch.cudnn_convolution_add_relu(x, self.weight, add, 1.0, self.bias, *geometry)


class OneDnnConvolution(Convolution):
    """With its weight in oneDNN's own layout, and the sum and the ReLU in oneDNN's kernel.

    input_size: [B, C_in, H, W] that the layout is chosen for; others of about this size run as
        fast, much smaller ones are laid out anew at every call
    """

    library = "oneDNN, prepacked"

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: int, padding: int, input_size: list[int]
    ):
        super().__init__(weight, bias, stride, padding)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, self.padding, self.stride, (1, 1), 1, input_size
        )

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        geometry = (self.padding, self.stride, (1, 1), 1)
        if add is None or len(add) == 0:  # an empty batch is refused in bfloat16
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *geometry, "relu" if relu else "none", [], ""
            )
        # In place: new memory for the large maps costs more than half of their convolution.
        return torch.ops.mkldnn._convolution_pointwise_(
            add, x, self.weight, self.bias, *geometry, "add", 1.0, "relu" if relu else None, [], ""
        )


class DeformableConvolution(nn.Module):
    """`backbone.DeformableConv2d` with its norm folded in; `offset` may be of a wider dtype."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, offset: Convolution):
        super().__init__()
        self.stride, self.offset = stride, offset
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        y = ops.deform_conv2d(
            x,
            self.offset(x.to(self.offset.bias.dtype)),
            self.weight,
            self.bias,
            self.stride,
            padding=1,
            relu=relu and add is None,
        )
        if add is None:
            return y
        y += add
        return y.relu_() if relu else y


def convolution(
    weight: Tensor, bias: Tensor, stride: int, padding: int, input_size: list[int]
) -> Convolution:
    """The fastest of the above that this PyTorch has for the weight's device and dtype."""
    kind = convolution_kind(weight.device.type, weight.dtype)
    if kind is OneDnnConvolution:
        return kind(weight, bias, stride, padding, input_size)
    return kind(weight, bias, stride, padding)


@functools.cache
def convolution_kind(device_type: str, dtype: torch.dtype) -> type[Convolution]:
    """Found out by a small convolution: what PyTorch offers here is not part of its interface."""
    kinds = {"cpu": OneDnnConvolution, "cuda": CudnnConvolution}
    if device_type not in kinds or dtype == torch.float64:
        return Convolution
    kind = kinds[device_type]
    to = {"device": device_type, "dtype": dtype}
    x = torch.ones(1, 8, 4, 4, **to).contiguous(memory_format=torch.channels_last)
    hint = [list(x.shape)] if kind is OneDnnConvolution else []
    try:
        module = kind(torch.ones(8, 8, 3, 3, **to), torch.zeros(8, **to), 1, 1, *hint)
        y = module(x, add=module(x, relu=True), relu=True)
    except (AttributeError, NotImplementedError, RuntimeError):
        return Convolution
    return kind if y[0, 0, 1, 1].item() == 144 else Convolution
