"""Masked attention of queries to pixels (Mask2Former, arXiv 2112.01527, equation 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_cross_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, over the pixels that each query may attend to.

    Args:
        query: [B, heads, Q, D]
        key, value: [B, heads, L, D]
        attend: [B, N, L] bool with N <= Q, True where query n may attend to pixel l, the same for
            all heads. A query with no True attends to every pixel, and so do the queries past N.
            It has no gradient.

    Returns:
        [B, heads, Q, D] in the dtype of `query`

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, by name.
    """
    _check(query, key, value, attend)
    return _masked_cross_attention(query, key, value, attend)


@torch.library.custom_op("fastinst::masked_cross_attention", mutates_args=())
def _masked_cross_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> Tensor:
    mask = _full_mask(attend, query.shape[2])
    with torch.autocast(query.device.type, enabled=False):  # it would change the dtype
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).contiguous()


@torch.library.custom_op("fastinst::masked_cross_attention_backward", mutates_args=())
def _masked_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, attend: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the weights are computed anew rather than kept."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v, g = (x.to(dtype) for x in (query, key, value, grad))
    scale = query.shape[3] ** -0.5
    scores = (q * scale) @ k.transpose(2, 3)
    scores.masked_fill_(~_full_mask(attend, query.shape[2]), -torch.inf)
    weights = scores.softmax(dim=-1)
    grad_value = weights.transpose(2, 3) @ g
    grad_weights = g @ v.transpose(2, 3)
    inner = (grad_weights * weights).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - inner) * scale
    grad_query = grad_scores @ k
    grad_key = grad_scores.transpose(2, 3) @ q
    return (
        grad_query.to(query.dtype).contiguous(),
        grad_key.to(key.dtype).contiguous(),
        grad_value.to(value.dtype).contiguous(),
    )


def _full_mask(attend: Tensor, num_queries: int) -> Tensor:
    """[B, N, L] to [B, 1, Q, L], with no row that is False everywhere."""
    attend = attend | ~attend.any(dim=-1, keepdim=True)
    return F.pad(attend, (0, 0, 0, num_queries - attend.shape[1]), value=True).unsqueeze(1)


@_masked_cross_attention.register_fake
def _(query, key, value, attend):
    return query.new_empty(query.shape)


@_masked_cross_attention_backward.register_fake
def _(grad, query, key, value, attend):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return *_masked_cross_attention_backward(grad, *ctx.saved_tensors), None


_masked_cross_attention.register_autograd(_backward, setup_context=_setup_context)


def _check(query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> None:
    for name, tensor, dims in (("query", query, 4), ("key", key, 4), ("value", value, 4)):
        if tensor.dim() != dims:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
        if tensor.dtype != query.dtype or not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, query {query.dtype}")
    batch, heads, num_queries, dim = query.shape
    expected = (batch, heads, key.shape[2], dim)
    for name, tensor in (("key", key), ("value", value)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
    if attend.dtype != torch.bool:
        raise ValueError(f"attend must be a bool tensor, got {attend.dtype}")
    fits = attend.dim() == 3 and attend.shape[0] == batch and attend.shape[2] == key.shape[2]
    if not fits or attend.shape[1] > num_queries:
        raise ValueError(
            f"attend must have shape ({batch}, N <= {num_queries}, {key.shape[2]}), "
            f"got {tuple(attend.shape)}"
        )
    for name, tensor in (("key", key), ("value", value), ("attend", attend)):
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}")
