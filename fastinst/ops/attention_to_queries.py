"""Attention to the queries, which are few: of the many pixels, and of the queries themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_to_queries(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value.

    Args:
        query: [B, heads, L, D]; what attends, often every pixel
        key, value: [B, heads, M, D]; M >= 1, made for the hundred or so of the queries

    Returns:
        [B, heads, L, D] in the dtype of `query`; in memory [B, L, heads, D]

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, by name.
    """
    check_heads(query, key, value)
    return _attention_to_queries(query, key, value)


def definition(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):  # it would change the dtype
        return token_major(F.scaled_dot_product_attention(query, key, value))


def backward_definition(
    grad: Tensor, output: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_gradients(grad, output, query, key, value, None)


_attention_to_queries = torch.library.custom_op("fastinst::attention_to_queries", mutates_args=())(
    definition
)
_attention_to_queries_backward = torch.library.custom_op(
    "fastinst::attention_to_queries_backward", mutates_args=()
)(backward_definition)


def attention_gradients(
    grad: Tensor, output: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the weights are computed anew rather than kept.

    mask: broadcastable to [B, heads, Q, L] bool, True where a query attends; None for everywhere
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    g, o, q, k, v = (x.to(dtype) for x in (grad, output, query, key, value))
    scale = query.shape[3] ** -0.5
    scores = (q * scale) @ k.transpose(2, 3)
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    grad_weights = g @ v.transpose(2, 3)
    # Row sums of weights * grad_weights are those of grad * output: the products commute.
    grad_scores = weights * (grad_weights - (g * o).sum(-1, keepdim=True)) * scale
    return (
        token_major((grad_scores @ k).to(query.dtype)),
        token_major((grad_scores.transpose(2, 3) @ q).to(key.dtype)),
        token_major((weights.transpose(2, 3) @ g).to(value.dtype)),
    )


def token_major(x: Tensor) -> Tensor:
    """[B, heads, N, D] laid out as [B, N, heads, D], for the projection that comes next."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@_attention_to_queries.register_fake
def _(query, key, value):
    return token_major(torch.empty_like(query))


@_attention_to_queries_backward.register_fake
def _(grad, output, query, key, value):
    return tuple(token_major(torch.empty_like(x)) for x in (query, key, value))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output, *inputs)


def _backward(ctx, grad):
    return _attention_to_queries_backward(grad, *ctx.saved_tensors)


_attention_to_queries.register_autograd(_backward, setup_context=_setup_context)


def check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raises ValueError unless query is [B, heads, N, D], and key and value [B, heads, M, D]."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
        if tensor.dtype != query.dtype or not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, query {query.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}")
    batch, heads, _, dim = query.shape
    if key.shape[2] == 0:
        raise ValueError(f"key must have something to attend to, got shape {tuple(key.shape)}")
    expected = (batch, heads, key.shape[2], dim)
    for name, tensor in (("key", key), ("value", value)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
