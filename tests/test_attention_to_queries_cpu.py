"""The CPU kernels of ops.attention_to_queries against the definition, tested next door."""

import importlib

import pytest
import torch
from cpu_kernels import (
    DTYPES,
    assert_as_good,
    assert_gradients_as_good,
    assert_threads_do_not_matter,
    assert_token_major,
    make_heads,
    run_lowered,
    skip_unless_compiled,
)

from fastinst import ops

pytestmark = skip_unless_compiled("attention_to_queries")

module = importlib.import_module("fastinst.ops.attention_to_queries")  # in ops, the function
forward = torch.ops.fastinst.attention_to_queries
backward = torch.ops.fastinst.attention_to_queries_backward

# batch, heads, pixels, queries, dim
SHAPES = {
    "tiny": (2, 3, 7, 5, 4),
    "model": (1, 8, 1153, 108, 32),
    # More than one chunk of pixels, and a rest of everything.
    "prime": (2, 1, 521, 131, 37),
    # More than one chunk of queries as well.
    "many queries": (1, 2, 523, 1031, 8),
    "among themselves": (2, 8, 108, 108, 32),
    "one query": (1, 2, 67, 1, 32),
    "one pixel": (1, 2, 1, 67, 32),
    "one number": (1, 2, 31, 33, 1),
}


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make_case(shape="tiny", dtype=torch.float32):
    """query, key, value; and a gradient of the output."""
    batch, heads, pixels, queries, dim = SHAPES[shape]
    inputs = [make_heads(batch, heads, n, dim, dtype) for n in (pixels, queries, queries)]
    return inputs, make_heads(batch, heads, pixels, dim, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_dtype(shape, dtype):
    inputs, grad = make_case(shape, dtype)
    exact = [x.double() for x in inputs]
    out, plain, exact_out = forward(*inputs), module.definition(*inputs), module.definition(*exact)
    assert_token_major(out)
    assert_as_good(out, plain, exact_out, size=1.0)  # of the values
    assert_gradients_as_good(
        backward(grad, plain, *inputs),
        module.backward_definition(grad, plain, *inputs),
        module.backward_definition(grad.double(), exact_out, *exact),
        grad,
        *inputs,
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_scores(dtype, sign):
    """About 1e4 of either sign, growing and shrinking along the queries."""
    (query, key, value), grad = make_case("prime", dtype)
    key = key * sign * torch.linspace(1, 1e3, key.shape[2], dtype=dtype)[:, None]
    for inputs in ([query, key, value], [query, key.flip(2), value]):
        out = forward(*inputs)
        # float32's rounding of a score is up to 1e4 * eps, which is its weight's relative error.
        tolerance = 1e-10 if dtype == torch.float64 else 1e-2
        exact = module.definition(*[x.double() for x in inputs])
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
        assert all(x.isfinite().all() for x in backward(grad, out, *inputs))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_pixels_spoil_their_own_row_only(bad):
    (query, key, value), _ = make_case("prime")
    expected = forward(query, key, value)
    query = query.clone()
    query[1, 0, 7] = bad
    out = forward(query, key, value)
    assert out[1, 0, 7].isnan().all()
    out[1, 0, 7] = expected[1, 0, 7]
    assert torch.equal(out, expected)


def test_memory_layouts():
    inputs, grad = make_case("prime")
    expected = forward(*inputs)
    expected_grads = backward(grad, expected, *inputs)
    for change in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):
        changed = [change(x) for x in inputs]
        assert torch.equal(forward(*changed), expected)
        actual_grads = backward(change(grad), change(expected), *changed)
        for actual, expected_grad in zip(actual_grads, expected_grads, strict=True):
            assert torch.equal(actual, expected_grad)


@pytest.mark.parametrize("batch, pixels", [(0, 7), (2, 0)])
def test_empty(batch, pixels):
    inputs = [make_heads(batch, 3, n, 4, torch.float32) for n in (pixels, 5, 5)]
    out = forward(*inputs)
    assert out.shape == (batch, 3, pixels, 4)
    for gradient, tensor in zip(backward(out, out, *inputs), inputs, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


@pytest.mark.parametrize("shape", ["tiny", "one query"])
def test_gradients(shape):
    inputs, _ = make_case(shape, torch.float64)
    inputs = [x[:, :, :11].requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(ops.attention_to_queries, inputs)


@pytest.mark.parametrize("shape", ["tiny", "one pixel"])
def test_registration(shape):
    inputs, grad = make_case(shape)
    torch.library.opcheck(backward.default, (grad, grad, *inputs))
    torch.library.opcheck(forward.default, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("shape", ["model", "many queries"])
def test_the_number_of_threads_does_not_matter(shape):
    inputs, grad = make_case(shape)
    out = forward(*inputs)
    assert_threads_do_not_matter(lambda: (forward(*inputs), *backward(grad, out, *inputs)))


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lower_instruction_sets(name):
    run_lowered(name, __file__, "test_every_shape_and_dtype")
