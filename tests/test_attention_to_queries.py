"""ops.attention_to_queries against its definition in loops."""

import math

import pytest
import torch

from fastinst.ops import attention_to_queries

BATCH, HEADS, PIXELS, QUERIES, DIM = 2, 3, 7, 5, 4


def make_inputs(batch=BATCH, pixels=PIXELS, queries=QUERIES, dim=DIM, dtype=torch.float64):
    inputs = {
        "query": torch.randn(batch, HEADS, pixels, dim, dtype=torch.float64),
        "key": torch.randn(batch, HEADS, queries, dim, dtype=torch.float64),
        "value": torch.randn(batch, HEADS, queries, dim, dtype=torch.float64),
    }
    return {k: v.to(dtype).requires_grad_() for k, v in inputs.items()}


def definition(query, key, value):
    batch, heads, pixels, dim = query.shape
    q, k, v = (x.tolist() for x in (query, key, value))
    out = torch.zeros(query.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(pixels):
                weights = [
                    math.exp(sum(map(math.prod, zip(q[b][h][i], row, strict=True))) / dim**0.5)
                    for row in k[b][h]
                ]
                for d in range(dim):
                    terms = (w * row[d] for w, row in zip(weights, v[b][h], strict=True))
                    out[b, h, i, d] = sum(terms) / sum(weights)
    return out


def plain(query, key, value):
    scores = torch.einsum("bhld,bhmd->bhlm", query, key) / query.shape[3] ** 0.5
    return torch.einsum("bhlm,bhmd->bhld", scores.softmax(-1), value)


SHAPES = [{}, {"batch": 1}, {"pixels": 1}, {"queries": 1}, {"queries": 131}, {"dim": 5}]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(shape):
    inputs = make_inputs(**shape)
    torch.testing.assert_close(attention_to_queries(**inputs), definition(**inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_those_of_plain_operations(shape):
    inputs = make_inputs(**shape)
    out, expected = attention_to_queries(**inputs), plain(**inputs)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(out, list(inputs.values()), grad),
        torch.autograd.grad(expected, list(inputs.values()), grad),
    )


def test_gradcheck():
    assert torch.autograd.gradcheck(attention_to_queries, tuple(make_inputs().values()))


def test_large_scores_do_not_overflow():
    inputs = make_inputs(dtype=torch.float32)
    with torch.no_grad():
        inputs["query"] *= 1e4
    out = attention_to_queries(**inputs)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs.values())


def test_memory_layout_does_not_matter():
    inputs = make_inputs()
    odd = {k: v.transpose(1, 2).contiguous().transpose(1, 2) for k, v in inputs.items()}
    odd["value"] = inputs["value"].transpose(2, 3).contiguous().transpose(2, 3)
    out, expected = attention_to_queries(**odd), attention_to_queries(**inputs)
    torch.testing.assert_close(out, expected)
    assert out.transpose(1, 2).is_contiguous() and expected.transpose(1, 2).is_contiguous()


def test_an_empty_batch():
    inputs = make_inputs(batch=0)
    out = attention_to_queries(**inputs)
    assert out.shape == inputs["query"].shape
    out.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in inputs.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_rounding(dtype):
    """Output and gradients within the rounding of the plain operations in the same dtype."""
    inputs = make_inputs(dtype=dtype)
    exact = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    out, expected = attention_to_queries(**inputs), plain(**exact)
    grad = torch.randn_like(expected).to(dtype)
    actual = (out, *torch.autograd.grad(out, list(inputs.values()), grad))
    grads = torch.autograd.grad(expected, list(exact.values()), grad.double())
    for a, r in zip(actual, (expected, *grads), strict=True):
        assert a.dtype == dtype
        assert (a.double() - r).abs().max() <= 2 * torch.finfo(dtype).eps * r.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_change_the_dtype(dtype):
    inputs = make_inputs(dtype=torch.float32)
    expected = attention_to_queries(**inputs)
    with torch.autocast("cpu", dtype):
        assert torch.equal(attention_to_queries(**inputs), expected)


@pytest.mark.parametrize("shape", [{}, {"batch": 0}, {"queries": 1}])
def test_registration(shape):
    args = tuple(make_inputs(**shape).values())
    torch.library.opcheck(torch.ops.fastinst.attention_to_queries.default, args)
    detached = tuple(x.detach() for x in args)
    output = attention_to_queries(*detached)
    torch.library.opcheck(
        torch.ops.fastinst.attention_to_queries_backward.default,
        (torch.randn_like(output), output, *detached),
    )


def test_compiled_equals_eager():
    inputs = make_inputs(dtype=torch.float32)
    compiled = torch.compile(attention_to_queries, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(**inputs), attention_to_queries(**inputs)
    assert torch.equal(actual, expected)
    grad = torch.randn_like(expected)
    actual_grads = torch.autograd.grad(actual, list(inputs.values()), grad)
    expected_grads = torch.autograd.grad(expected, list(inputs.values()), grad)
    assert all(torch.equal(a, b) for a, b in zip(actual_grads, expected_grads, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.rand(2, 5, 4)}, "^query must have 4 dimensions"),
        ({"query": torch.ones(2, 3, 7, 4, dtype=torch.int64)}, "^query has dtype torch.int64"),
        ({"key": torch.rand(2, 3, 5, 4)}, "^key has dtype torch.float32, query torch.float64"),
        ({"key": torch.rand(2, 3, 5, 5).double()}, r"^key must have shape \(2, 3, 5, 4\)"),
        ({"key": torch.rand(2, 3, 0, 4).double()}, "^key must have something to attend to"),
        ({"value": torch.rand(2, 3, 6, 4).double()}, r"^value must have shape \(2, 3, 5, 4\)"),
        ({"key": torch.rand(2, 3, 5, 4, device="meta").double()}, "^key is on meta, query on"),
        ({"value": torch.rand(2, 3, 5, 4, device="meta").double()}, "^value is on meta"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        attention_to_queries(**make_inputs() | change)
