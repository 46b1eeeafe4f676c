"""Where queries may attend: the signs of their mask logits (Mask2Former, arXiv 2112.01527)."""

import torch
from torch import Tensor

from fastinst.ops.bits import pack_bits, packed_length


def attention_mask(embeddings: Tensor, pixels: Tensor, bias: Tensor | None = None) -> Tensor:
    """The bits of embeddings pixels^T + bias >= 0, without the logits ever being stored.

    Args:
        embeddings: [B, N, C], a mask embedding for each query
        pixels: [B, L, C]
        bias: [B, N], added to a query's logits

    Returns:
        [B, N, ceil(L / 32)] int32, as `pack_bits` makes them of [B, N, L]; nothing has a gradient

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, by name.
    """
    _check(embeddings, pixels, bias)
    return _attention_mask(embeddings, pixels, bias)


def definition(embeddings: Tensor, pixels: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):  # it would round the logits
        logits = embeddings.to(dtype) @ pixels.to(dtype).transpose(1, 2)
    if bias is not None:
        logits = logits + bias.to(dtype).unsqueeze(-1)
    return pack_bits(logits >= 0)


_attention_mask = torch.library.custom_op("fastinst::attention_mask", mutates_args=())(definition)


@_attention_mask.register_fake
def _(embeddings, pixels, bias):
    batch, queries, _ = embeddings.shape
    return embeddings.new_empty(batch, queries, packed_length(pixels.shape[1]), dtype=torch.int32)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output)


def _backward(ctx, grad):
    return None, None, None


_attention_mask.register_autograd(_backward, setup_context=_setup_context)


def _check(embeddings: Tensor, pixels: Tensor, bias: Tensor | None) -> None:
    fits = embeddings.dim() == 3 and embeddings.shape[2] > 0
    if not fits or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be [B, N, C >= 1] floating-point numbers, got {embeddings.dtype} of "
            f"shape {tuple(embeddings.shape)}"
        )
    batch, queries, channels = embeddings.shape
    fits = pixels.dim() == 3 and (pixels.shape[0], pixels.shape[2]) == (batch, channels)
    if not fits:
        raise ValueError(
            f"pixels must have shape ({batch}, L, {channels}), got {tuple(pixels.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (batch, queries):
        raise ValueError(f"bias must have shape ({batch}, {queries}), got {tuple(bias.shape)}")
    for name, tensor in (("pixels", pixels), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != embeddings.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}, embeddings {embeddings.dtype}")
        if tensor.device != embeddings.device:
            raise ValueError(f"{name} is on {tensor.device}, embeddings on {embeddings.device}")
