"""Deformable convolution, v1 (arXiv 1703.06211) and v2 (arXiv 1811.11168).

    out[y] = bias + sum over taps k of weight[:, :, k] @ mask[k, y] * input(y s - p + k d + offset)

where input(.) is bilinear with zeros outside: sampling (`deform_sampling`), then a matrix product.
"""

import math

import torch
from torch import Tensor

from fastinst.ops.deform_sampling import gather_columns, pixel_rows, sampling_taps


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """Deformable convolution, with the signature of torchvision's and an optional ReLU after it.

    Samples and sums are float32 or wider, but for 16-bit inputs on a GPU: there samples and weights
    are rounded to the dtype of `input`, as tensor cores take them.

    A batch norm with fixed statistics is a scale of `weight` and a shift in `bias`: with `relu` it
    costs nothing.

    Args:
        input: [B, C, H, W]
        offset: [B, 2 * G * kh * kw, h, w], in pixels, (dy, dx) for each tap of each of the G
            offset groups
        weight: [C_out, C / groups, kh, kw]; its shape tells the number of weight groups
        bias: [C_out]
        stride, padding, dilation: one integer, or one for each of height and width
        mask: [B, G * kh * kw, h, w], the modulation of v2
        relu: return max(., 0)

    Returns:
        [B, C_out, h, w] in the dtype of `input`; channels-last if `input` is

    Raises:
        ValueError: shapes or arguments that do not fit, by name.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    _check(input, offset, weight, bias, stride, padding, dilation, mask)
    return _deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation, relu)


def definition(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    taps = sampling_taps(input, offset, mask, weight, stride, padding, dilation)
    columns = gather_columns(input, weight, taps)
    with torch.autocast(input.device.type, enabled=False):  # it would round the columns
        grouped = _grouped_weight(input, weight, columns.dtype)
        out = torch.einsum("blkgi,goik->blgo", columns, grouped).flatten(2)  # [B, h w, C_out]
    if bias is not None:
        out = out + bias
    if relu:
        out = out.relu()
    shape = (offset.shape[0], weight.shape[0], *offset.shape[2:])
    out = out.to(input.dtype).transpose(1, 2).reshape(shape)
    return out.contiguous(memory_format=_memory_format(input))


def backward_definition(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, offset, weight, bias and mask (of no elements without a mask)."""
    taps = sampling_taps(input, offset, mask, weight, stride, padding, dilation)
    columns = gather_columns(input, weight, taps)
    dtype = columns.dtype
    grad = grad.flatten(2).transpose(1, 2).to(dtype)  # [B, h w, C_out]
    grad_out = grad.unflatten(2, (columns.shape[3], -1))
    grad_weight = torch.einsum("blgo,blkgi->goik", grad_out, columns)
    grad_columns = torch.einsum("blgo,goik->blkgi", grad_out, _grouped_weight(input, weight, dtype))
    rows = pixel_rows(input, taps).to(dtype)
    # [B, l, K, G, C / G]
    grad_columns = grad_columns.reshape(*taps.modulation.shape, rows.shape[1])
    grad_rows = torch.zeros_like(rows)
    grad_y, grad_x, grad_mask = (torch.zeros_like(taps.modulation) for _ in range(3))
    for index, weight_, weight_dy, weight_dx in zip(*taps[:4], strict=True):
        scaled = grad_columns * (weight_ * taps.modulation).unsqueeze(-1)
        grad_rows.index_add_(0, index.flatten(), scaled.flatten(0, 3))
        inner = (rows[index] * grad_columns).sum(-1)  # d loss / d (this corner's weight)
        grad_mask += weight_ * inner
        grad_y += weight_dy * taps.modulation * inner
        grad_x += weight_dx * taps.modulation * inner

    batch, channels, height, width = input.shape
    grad_input = grad_rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    grad_offset = torch.stack([grad_y, grad_x], dim=-1).permute(0, 3, 2, 4, 1)  # [B, G, K, 2, l]
    return (
        grad_input.to(input.dtype).contiguous(memory_format=_memory_format(input)),
        grad_offset.to(offset.dtype).reshape(offset.shape).contiguous(),
        grad_weight.reshape(weight.shape).to(weight.dtype),
        grad.sum((0, 1)),
        grad.new_empty(0)
        if mask is None
        else grad_mask.permute(0, 3, 2, 1).reshape(mask.shape).to(mask.dtype),
    )


_deform_conv2d = torch.library.custom_op("fastinst::deform_conv2d", mutates_args=())(definition)
_deform_conv2d_backward = torch.library.custom_op(
    "fastinst::deform_conv2d_backward", mutates_args=()
)(backward_definition)


def _grouped_weight(input: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[C_out, C / groups, kh, kw] to [groups, C_out / groups, C / groups, kh kw]."""
    groups = input.shape[1] // weight.shape[1]
    return weight.to(dtype).flatten(2).unflatten(0, (groups, -1))


def _memory_format(input: Tensor) -> torch.memory_format:
    if input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


@_deform_conv2d.register_fake
def _(input, offset, weight, bias, mask, stride, padding, dilation, relu):
    shape = (offset.shape[0], weight.shape[0], *offset.shape[2:])
    return torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=_memory_format(input)
    )


@_deform_conv2d_backward.register_fake
def _(grad, input, offset, weight, mask, stride, padding, dilation):
    dtype = torch.promote_types(torch.promote_types(input.dtype, weight.dtype), torch.float32)
    return (
        torch.empty_like(input, memory_format=_memory_format(input)),
        offset.new_empty(offset.shape),
        weight.new_empty(weight.shape),
        grad.new_empty(weight.shape[0], dtype=dtype),
        grad.new_empty(0) if mask is None else mask.new_empty(mask.shape),
    )


def _setup_context(ctx, inputs, output):
    input, offset, weight, bias, mask, *ctx.geometry, relu = inputs
    ctx.save_for_backward(input, offset, weight, bias, mask, output if relu else None)


def _backward(ctx, grad):
    input, offset, weight, bias, mask, output = ctx.saved_tensors
    if output is not None:
        grad = grad.masked_fill(output <= 0, 0)  # a product would make NaN of infinity
    grad_input, grad_offset, grad_weight, grad_bias, grad_mask = _deform_conv2d_backward(
        grad, input, offset, weight, mask, *ctx.geometry
    )
    return (
        grad_input,
        grad_offset,
        grad_weight,
        None if bias is None else grad_bias.to(bias.dtype),
        None if mask is None else grad_mask,
        *(None, None, None, None),
    )


_deform_conv2d.register_autograd(_backward, setup_context=_setup_context)


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _check(input, offset, weight, bias, stride, padding, dilation, mask) -> None:
    named = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if name != "bias" and tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
        if tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device}, input on {input.device}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    for name, value, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(value) != 2 or min(value) < least:
            raise ValueError(f"{name} must be two integers of at least {least}, got {value}")
    if 0 in input.shape[1:]:
        raise ValueError(f"input must have channels and pixels, got shape {tuple(input.shape)}")
    out_channels, group_channels, *kernel = weight.shape
    channels = input.shape[1]
    if 0 in kernel:
        raise ValueError(f"weight must have taps, got shape {tuple(weight.shape)}")
    if (
        group_channels == 0
        or channels % group_channels
        or out_channels % (channels // group_channels)
    ):
        raise ValueError(
            f"weight {tuple(weight.shape)} does not fit an input of {channels} channels: "
            f"its second size must divide them, and their quotient its first"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"bias must have shape ({out_channels},), got {tuple(bias.shape)}")
    taps = math.prod(kernel)
    if (
        offset.shape[1] == 0
        or offset.shape[1] % (2 * taps)
        or channels % (offset.shape[1] // (2 * taps))
    ):
        raise ValueError(
            f"offset must have 2 * groups * {taps} channels, with groups dividing the input's "
            f"{channels}, got {offset.shape[1]}"
        )
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(input.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    expected = (input.shape[0], offset.shape[1], *size)
    if tuple(offset.shape) != expected:
        raise ValueError(f"offset must have shape {expected}, got {tuple(offset.shape)}")
    expected = (input.shape[0], offset.shape[1] // 2, *size)
    if mask is not None and tuple(mask.shape) != expected:
        raise ValueError(f"mask must have shape {expected}, got {tuple(mask.shape)}")
