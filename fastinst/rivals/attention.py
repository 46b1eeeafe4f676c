"""The decoder's attention beside PyTorch's: MultiheadAttention, SDPA and FlexAttention."""

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops
from fastinst.rivals.case import (
    AUXILIARY,
    CHANNELS,
    HEADS,
    PADDED,
    QUERIES,
    Call,
    Case,
    backward,
    definition,
)


def masked_cross_attention_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    height, width = (side // 8 for side in PADDED)
    grid = QUERIES, height, width
    masks = {
        "random half of the pixels": torch.rand(grid) < 0.5,
        "rectangles of a twentieth": _rectangles(*grid),
        "nothing, so everything": torch.zeros(grid, dtype=torch.bool),
    }
    for name, mask in masks.items():
        yield from _masked_cross_attention(name, mask.flatten(1)[None].to(device), dtype)
    yield _from_embeddings(height, width, device, dtype)


def _masked_cross_attention(name: str, attend: Tensor, dtype: torch.dtype) -> Iterator[Case]:
    device, num_pixels = attend.device, attend.shape[2]
    queries = torch.randn(1, QUERIES + AUXILIARY, CHANNELS, device=device, dtype=dtype)
    pixels = torch.randn(1, num_pixels, CHANNELS, device=device, dtype=dtype)
    module = nn.MultiheadAttention(CHANNELS, HEADS, device=device, dtype=dtype)
    module.requires_grad_(False)
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)

    def project() -> tuple[Tensor, ...]:
        inputs = zip((queries, pixels, pixels), weights, biases, strict=True)
        return tuple(_heads(F.linear(x, weight, bias)) for x, weight, bias in inputs)

    # The masks are ready, in each rival's own form.
    inputs, bits, mask = project(), ops.pack_bits(attend), _full_mask(attend)
    additive = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    forbidden = ~mask[0].expand(HEADS, -1, -1).contiguous()
    tokens_first = [x.transpose(0, 1).contiguous() for x in (queries, pixels, pixels)]

    def kernel(query, key, value):
        return ops.masked_cross_attention(query, key, value, bits)

    def sdpa(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, mask)

    def bmm(query, key, value):
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + additive
        return scores.softmax(dim=3) @ value

    def with_projections():
        return module.out_proj(kernel(*project()).transpose(1, 2).flatten(2))

    def multihead_attention():
        # As the release calls it: with the weights' mean over the heads, which nobody reads.
        return module(*tokens_first, attn_mask=forbidden)[0]

    rivals = {
        "kernel": lambda: kernel(*inputs),
        "definition": lambda: definition("masked_cross_attention")(*inputs, bits),
        "SDPA, bool mask": lambda: sdpa(*inputs),
        "bmm, softmax, bmm": lambda: bmm(*inputs),
        "kernel with projections": with_projections,
        "MultiheadAttention (with projections)": multihead_attention,
    }
    absent = {}
    if device.type == "cuda":
        rivals["FlexAttention"] = _flex_attention(inputs, mask)
    else:
        absent["FlexAttention"] = "measured on CUDA only"
    yield Case("masked_cross_attention", name, rivals, absent)

    output = kernel(*inputs)
    backward_definition = definition("masked_cross_attention", "backward_definition")
    backward_rivals = {
        "kernel": backward(kernel, *inputs),
        "definition": lambda: backward_definition(torch.ones_like(output), output, *inputs, bits),
        "SDPA, bool mask": backward(sdpa, *inputs),
        "bmm, softmax, bmm": backward(bmm, *inputs),
    }
    yield Case("masked_cross_attention_backward", name, backward_rivals, {})


def _from_embeddings(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Case:
    """The mask made from mask embeddings and smooth pixels, a twentieth of it True, and used."""
    randn = functools.partial(torch.randn, device=device)
    smooth = F.interpolate(randn(1, CHANNELS, 5, 7), (height, width), mode="bicubic")
    pixels = smooth.flatten(2).transpose(1, 2).to(dtype)
    embeddings = randn(1, QUERIES, CHANNELS).to(dtype)
    logits = embeddings @ pixels.transpose(1, 2)
    bias = -logits.float().quantile(0.95, dim=2).to(dtype)
    query, pixel = randn(1, QUERIES + AUXILIARY, CHANNELS), randn(1, height * width, CHANNELS)
    inputs = [_heads(x.to(dtype)) for x in (query, pixel, pixel)]

    def kernel():
        bits = ops.attention_mask(embeddings, pixels, bias)
        return ops.masked_cross_attention(*inputs, bits)

    def matmul_and_sdpa():
        logits = embeddings @ pixels.transpose(1, 2) + bias.unsqueeze(2)
        return F.scaled_dot_product_attention(*inputs, _full_mask(logits >= 0))

    rivals = {"kernel": kernel, "matmul and SDPA": matmul_and_sdpa}
    return Case("masked_cross_attention", "with attention_mask", rivals, {})


def _rectangles(count: int, height: int, width: int) -> Tensor:
    """[count, height, width] bool, in each a rectangle of about a twentieth of the pixels."""
    area = height * width / 20
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        aspect = 4 ** (2 * torch.rand(()) - 1)
        h = min(round(math.sqrt(area * aspect)), height)
        w = min(round(area / h), width)
        top, left = (int(torch.randint(most + 1, ())) for most in (height - h, width - w))
        mask[top : top + h, left : left + w] = True
    return masks


def _full_mask(attend: Tensor) -> Tensor:
    """[1, N, L] to [1, 1, Q, L]: with a query that may look nowhere, and the auxiliary ones."""
    attend = attend | ~attend.any(dim=2, keepdim=True)
    return F.pad(attend, (0, 0, 0, AUXILIARY), value=True).unsqueeze(1)


def _flex_attention(inputs: tuple[Tensor, ...], mask: Tensor) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    sides = mask.shape[2:]
    block_mask = create_block_mask(
        lambda batch, head, query, pixel: mask[0, 0, query, pixel],
        *(None, None, *sides),
        device=mask.device,
    )
    compiled = torch.compile(flex_attention)
    return lambda: compiled(*inputs, block_mask=block_mask)


def _heads(x: Tensor) -> Tensor:
    """[1, N, heads * D] to [1, heads, N, D]."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def attention_to_queries_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    num_pixels, num_queries = math.prod(PADDED) // 64, QUERIES + AUXILIARY
    for name, length in (("of the pixels", num_pixels), ("of the queries", num_queries)):
        yield from _attention_to_queries(name, length, num_queries, device, dtype)


def _attention_to_queries(name, length, num_queries, device, dtype) -> Iterator[Case]:
    inputs = [
        _heads(torch.randn(1, n, CHANNELS, device=device, dtype=dtype))
        for n in (length, num_queries, num_queries)
    ]
    kernel, sdpa = ops.attention_to_queries, F.scaled_dot_product_attention
    rivals = {"kernel": lambda: kernel(*inputs), "SDPA": lambda: sdpa(*inputs)}
    yield Case("attention_to_queries", name, rivals, {})
    rivals = {"kernel": backward(kernel, *inputs), "SDPA": backward(sdpa, *inputs)}
    yield Case("attention_to_queries_backward", name, rivals, {})


def attention_mask_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    randn = functools.partial(torch.randn, device=device, dtype=dtype)
    inputs = (
        randn(1, QUERIES, CHANNELS),
        randn(1, math.prod(PADDED) // 64, CHANNELS),
        randn(1, QUERIES),
    )

    def matmul():
        embeddings, pixels, bias = inputs
        return embeddings @ pixels.transpose(1, 2) + bias.unsqueeze(2) >= 0

    rivals = {
        "kernel": lambda: ops.attention_mask(*inputs),
        "definition": lambda: definition("attention_mask")(*inputs),
        "matmul, bool": matmul,
    }
    yield Case("attention_mask", "of the queries", rivals, {})
