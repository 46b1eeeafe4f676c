"""Linear maps of many rows, in training by oneDNN where PyTorch would take another product.

On x86 processors PyTorch hands float32 products to MKL, which has nothing wider than AVX2 for those
that are not Intel's. oneDNN, which PyTorch takes for convolutions, uses what the processor has: on
a Zen 5 twice as many multiplications a second. `fastinst.engine` does as much for inference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# With fewer rows the product takes no longer than the way to it.
FEW_ROWS = 512


def linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """x weight^T + bias, and ReLU of it.

    Args:
        x: [..., C]
        weight: [D, C]
        bias: [D]

    Returns:
        [..., D]. Autocast holds, as for PyTorch's own.
    """
    if _suits_onednn(x, weight):
        return _OneDNNLinear.apply(x, weight, bias, relu)
    return definition(x, weight, bias, relu)


def definition(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    y = F.linear(x, weight, bias)
    return F.relu(y) if relu else y


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEW_ROWS * x.shape[-1] > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, relu):
        y = _product(x, weight, bias, "relu" if relu else "none")
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, y = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        of_x = _product(grad, weight.T, None, "none") if ctx.needs_input_grad[0] else None
        # A 1 x 1 convolution: with several threads its gradient is oneDNN's, with one MKL's.
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            *(_as_map(grad), _as_map(x), weight[:, :, None, None], [len(weight)]),
            *([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, *ctx.needs_input_grad[1:3]]),
        )
        return of_x, of_weight.flatten(1) if of_weight is not None else None, of_bias, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def _as_map(rows: Tensor) -> Tensor:
    """[..., C] as a channels-last map [1, C, rows, 1]."""
    return rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)
