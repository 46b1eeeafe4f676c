"""Masked attention of queries to pixels (Mask2Former, arXiv 2112.01527, equation 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinst.ops.attention_to_queries import attention_gradients, check_heads, token_major
from fastinst.ops.bits import packed_length, unpack_bits


def masked_cross_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, over the pixels that each query may attend to.

    Args:
        query: [B, heads, Q, D]
        key, value: [B, heads, L, D]
        attend: [B, N, L] bool with N <= Q, True where query n may attend to pixel l, the same for
            all heads; or the same as bits, [B, N, ceil(L / 32)] int32 (`attention_mask`,
            `pack_bits`). A query with no True attends to every pixel, and so do the queries past
            N. It has no gradient.

    Returns:
        [B, heads, Q, D] in the dtype of `query`; in memory [B, Q, heads, D]

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, by name.
    """
    check_heads(query, key, value)
    _check_attend(query, key, attend)
    return _masked_cross_attention(query, key, value, attend)


def definition(query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> Tensor:
    mask = _full_mask(attend, query.shape[2], key.shape[2])
    with torch.autocast(query.device.type, enabled=False):  # it would change the dtype
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return token_major(out)


def backward_definition(
    grad: Tensor, output: Tensor, query: Tensor, key: Tensor, value: Tensor, attend: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mask = _full_mask(attend, query.shape[2], key.shape[2])
    return attention_gradients(grad, output, query, key, value, mask)


_masked_cross_attention = torch.library.custom_op(
    "fastinst::masked_cross_attention", mutates_args=()
)(definition)
_masked_cross_attention_backward = torch.library.custom_op(
    "fastinst::masked_cross_attention_backward", mutates_args=()
)(backward_definition)


def _full_mask(attend: Tensor, num_queries: int, num_pixels: int) -> Tensor:
    """[B, N, L] bool or its bits to [B, 1, Q, L], with no row that is False everywhere."""
    if attend.dtype == torch.int32:
        attend = unpack_bits(attend, num_pixels)
    attend = attend | ~attend.any(dim=-1, keepdim=True)
    return F.pad(attend, (0, 0, 0, num_queries - attend.shape[1]), value=True).unsqueeze(1)


@_masked_cross_attention.register_fake
def _(query, key, value, attend):
    return token_major(torch.empty_like(query))


@_masked_cross_attention_backward.register_fake
def _(grad, output, query, key, value, attend):
    return tuple(token_major(torch.empty_like(x)) for x in (query, key, value))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output, *inputs)


def _backward(ctx, grad):
    return *_masked_cross_attention_backward(grad, *ctx.saved_tensors), None


_masked_cross_attention.register_autograd(_backward, setup_context=_setup_context)


def _check_attend(query: Tensor, key: Tensor, attend: Tensor) -> None:
    batch, _, num_queries, _ = query.shape
    lengths = {torch.bool: key.shape[2], torch.int32: packed_length(key.shape[2])}
    if attend.dtype not in lengths:
        raise ValueError(f"attend must be bool, or int32 of packed bits, got {attend.dtype}")
    length = lengths[attend.dtype]
    fits = attend.dim() == 3 and attend.shape[0] == batch and attend.shape[2] == length
    if not fits or attend.shape[1] > num_queries:
        raise ValueError(
            f"attend must have shape ({batch}, N <= {num_queries}, {length}) as {attend.dtype}, "
            f"got {tuple(attend.shape)}"
        )
    if attend.device != query.device:
        raise ValueError(f"attend is on {attend.device}, query on {query.device}")
