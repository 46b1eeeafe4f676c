"""Linear maps made ready ahead of time, with the sum or the ReLU after them in one pass."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the sums in float32 that are made for queries.
QUERY_PARTS = 4


class Linear(nn.Module):
    """x W^T + b + add, or max(x W^T + b, 0) if it was made with `relu`.

    weight [C_out, C_in] and bias [C_out] in the dtype and on the device that it is to run in
    """

    library = "PyTorch"

    def __init__(self, weight: Tensor, bias: Tensor, relu: bool = False):
        super().__init__()
        self.relu = relu
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [B, N, C_in]; add [B or 1, N, C_out], which a map with `relu` does not take."""
        y = F.linear(x, self.weight, self.bias)
        if self.relu:
            return y.relu_()
        return y if add is None else y.add_(add)


class CudaLinear(Linear):
    """With the ReLU in cuBLAS's kernel, where it is the one that PyTorch takes."""

    library = "cuBLAS, fused"

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if not self.relu:
            return super().forward(x, add)
        y = torch._addmm_activation(self.bias, x.flatten(0, 1), self.weight.mT)
        return y.unflatten(0, x.shape[:2])


class OneDnnLinear(Linear):
    """With its weight in oneDNN's own layout, and the sum or the ReLU in oneDNN's kernel."""

    library = "oneDNN, prepacked"

    def __init__(self, weight: Tensor, bias: Tensor, relu: bool = False):
        super().__init__(weight, bias, relu)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if add is not None and len(add) == len(x):
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
        kind = "relu" if self.relu else "none"
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], "")
        return y if add is None else y.add_(add)


class LinearInParts(nn.Module):
    """A `OneDnnLinear` in float32 as the sum of maps of some of the channels each.

    oneDNN adds up the products of one number in one go. In parts a sum errs less, and with few
    rows takes hardly longer.
    """

    def __init__(self, weight: Tensor, bias: Tensor, relu: bool, parts: int):
        super().__init__()
        self.relu = relu
        biases = [bias] + [torch.zeros_like(bias)] * (parts - 1)
        self.parts = nn.ModuleList(map(OneDnnLinear, weight.chunk(parts, dim=1), biases))

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """See `Linear`."""
        for part, channels in zip(self.parts, x.chunk(len(self.parts), dim=2), strict=True):
            add = part(channels, add)
        return add.relu_() if self.relu else add


def linear(
    weight: Tensor, bias: Tensor, relu: bool = False, few_rows: bool = False
) -> Linear | LinearInParts:
    """The fastest of the above that this PyTorch has for the weight's device and dtype.

    few_rows: it is the rows of queries, a hundred, that it is for; not those of pixels
    """
    kind = linear_kind(weight.device.type, weight.dtype)
    if few_rows and kind is OneDnnLinear and weight.dtype == torch.float32:
        return LinearInParts(weight, bias, relu, QUERY_PARTS)
    return kind(weight, bias, relu)


@functools.cache
def linear_kind(device_type: str, dtype: torch.dtype) -> type[Linear]:
    """Found out by small products: what PyTorch offers here is not part of its interface."""
    kinds = {"cpu": OneDnnLinear, "cuda": CudaLinear}
    if device_type not in kinds or dtype == torch.float64:
        return Linear
    kind = kinds[device_type]
    to = {"device": device_type, "dtype": dtype}
    weight, bias, x = (torch.ones(size, **to) for size in ((16, 16), (16,), (1, 8, 16)))
    try:
        y = kind(weight, bias)(kind(weight, bias, relu=True)(x), add=x)
    except (AttributeError, NotImplementedError, RuntimeError):
        return Linear
    return kind if y[0, 0, 0].item() == 274 else Linear
