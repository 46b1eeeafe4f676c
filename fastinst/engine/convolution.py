"""Convolutions made ready ahead of time: norms folded in, sum and ReLU in the same pass."""

import ctypes
import functools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops
from fastinst.engine.kept import kept

# Of inputs, for each of which a convolution remembers which of its weight's layouts it wants.
KNOWN_SIZES = 256
# Products that a sum in float32 adds up in one go.
MOST_PRODUCTS = 1024


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

    Which layout that is depends on the input's size and the threads, and a weight in another is
    turned at every call, which may take longer than the convolution. So it is laid out for each
    size when that first comes. What differs is kept, two or three layouts beside the plain weight.
    """

    library = "oneDNN, prepacked"

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int):
        super().__init__(weight, bias, stride, padding)
        self._layouts: list[Tensor] = []
        self._fitting: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        weight, geometry = self._laid_out(x.shape), (self.padding, self.stride, (1, 1), 1)
        if add is None or len(add) == 0:  # an empty batch is refused in bfloat16
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, self.bias, *geometry, "relu" if relu else "none", [], ""
            )
        # In place: new memory for the large maps costs more than half of their convolution.
        return torch.ops.mkldnn._convolution_pointwise_(
            add, x, weight, self.bias, *geometry, "add", 1.0, "relu" if relu else None, [], ""
        )

    def _laid_out(self, size: torch.Size) -> Tensor:
        """The weight as an input of that size wants it."""
        return kept(self._fitting, (torch.get_num_threads(), *size), self._lay_out, KNOWN_SIZES)

    def _lay_out(self, key: tuple[int, ...]) -> Tensor:
        _, *size = key
        new = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, self.padding, self.stride, (1, 1), 1, size
        )
        for layout in self._layouts:
            if torch.equal(_content(layout), _content(new)):
                return layout
        self._layouts.append(new)
        return new


class ConvolutionInParts(nn.Module):
    """A `OneDnnConvolution` in float32 as the sum of two, of half of the input's channels each.

    oneDNN adds up the products of one number in one go. A long sum errs less in parts.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int):
        super().__init__()
        first, second = weight.chunk(2, dim=1)
        self.first = OneDnnConvolution(first, bias, stride, padding)
        self.second = OneDnnConvolution(second, torch.zeros_like(bias), stride, padding)

    @property
    def bias(self) -> Tensor:
        return self.first.bias

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """See `Convolution`."""
        first, second = x.chunk(2, dim=1)
        return self.second(second, self.first(first, add), relu)


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


def _content(laid_out: Tensor) -> Tensor:
    """The bytes of a tensor in a layout of oneDNN's, by which alone layouts can be told apart."""
    at = torch.ops.mkldnn.data_ptr(laid_out)
    size = torch.ops.mkldnn._nbytes(laid_out)
    return torch.frombuffer((ctypes.c_char * size).from_address(at), dtype=torch.uint8)


def convolution(
    weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Convolution | ConvolutionInParts:
    """The fastest of the above that this PyTorch has for the weight's device and dtype."""
    kind = convolution_kind(weight.device.type, weight.dtype)
    long = weight.dtype == torch.float32 and weight[0].numel() > MOST_PRODUCTS
    if kind is OneDnnConvolution and long:
        kind = ConvolutionInParts
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
    try:
        module = kind(torch.ones(8, 8, 3, 3, **to), torch.zeros(8, **to), 1, 1)
        y = module(x, add=module(x, relu=True), relu=True)
        module(x[:, :, :2].contiguous(memory_format=torch.channels_last))  # another layout
    except (AttributeError, NotImplementedError, RuntimeError):
        return Convolution
    return kind if y[0, 0, 1, 1].item() == 144 else Convolution
