"""The CPU kernels of ops.masked_cross_attention against the definition, tested next door."""

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

pytestmark = skip_unless_compiled("masked_cross_attention")

module = importlib.import_module("fastinst.ops.masked_cross_attention")  # in ops, the function
forward = torch.ops.fastinst.masked_cross_attention
backward = torch.ops.fastinst.masked_cross_attention_backward

# batch, heads, queries, pixels, dim, guided queries
SHAPES = {
    "tiny": (2, 3, 5, 7, 4, 3),
    # Several chunks of pixels, groups of queries and slices of numbers, and a rest of each.
    "prime": (2, 1, 131, 1031, 37, 113),
    "model": (1, 8, 108, 1153, 32, 100),
    # Several chunks of queries as well.
    "many queries": (1, 2, 521, 1063, 8, 519),
    "none guided": (1, 2, 7, 33, 32, 0),
    "all guided": (1, 2, 61, 64, 32, 61),
    "one pixel": (1, 2, 3, 1, 32, 2),
    "one number": (1, 2, 3, 31, 1, 2),
}


def blobs(batch, guided, pixels):
    """One run of a tenth of the pixels for each query."""
    start = torch.randint(pixels, (batch, guided, 1))
    return (torch.arange(pixels) - start) % pixels < max(1, pixels // 10)


def one_block(batch, guided, pixels):
    attend = torch.zeros(batch, guided, pixels, dtype=torch.bool)
    attend[:, :, pixels // 2 // 32 * 32 :][:, :, :32] = True
    return attend


def last_pixel(batch, guided, pixels):
    return (torch.arange(pixels) == pixels - 1).expand(batch, guided, pixels).clone()


PATTERNS = {
    "none": lambda *shape: torch.zeros(shape, dtype=torch.bool),
    "all": lambda *shape: torch.ones(shape, dtype=torch.bool),
    "last pixel": last_pixel,
    "one block": one_block,
    "random": lambda *shape: torch.rand(shape) < 0.5,
    "sparse": lambda *shape: torch.rand(shape) < 0.01,  # some queries have none
    "checkerboard": lambda *shape: torch.ones(shape).cumsum(-1).cumsum(1).remainder(2) == 0,
    "blobs": blobs,
}


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make_case(shape="tiny", pattern="random", dtype=torch.float32):
    """query, key, value, attend; and a gradient of the output."""
    batch, heads, queries, pixels, dim, guided = SHAPES[shape]
    floats = [make_heads(batch, heads, n, dim, dtype) for n in (queries, pixels, pixels)]
    attend = PATTERNS[pattern](batch, guided, pixels)
    return [*floats, attend], make_heads(batch, heads, queries, dim, dtype)


def assert_all_as_good(inputs, grad):
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    out, plain = forward(*inputs), module.definition(*inputs)
    exact_out = module.definition(*exact)
    assert_token_major(out)
    assert_as_good(out, plain, exact_out, size=1.0)  # of the values
    assert_gradients_as_good(
        backward(grad, plain, *inputs),
        module.backward_definition(grad, plain, *inputs),
        module.backward_definition(grad.double(), exact_out, *exact),
        grad,
        *inputs[:3],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_dtype(shape, dtype):
    assert_all_as_good(*make_case(shape, "blobs", dtype))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", ["tiny", "prime"])
def test_every_pattern(shape, pattern):
    assert_all_as_good(*make_case(shape, pattern))


@pytest.mark.parametrize("pixels", [31, 32, 33, 63, 65, 1023, 1024, 1025])
def test_ends_of_blocks_and_chunks(pixels):
    attend = PATTERNS["random"](1, 4, pixels)
    attend[:, 0] = False
    attend[:, 1] = last_pixel(1, 1, pixels)
    inputs = [make_heads(1, 2, n, 8, torch.float32) for n in (5, pixels, pixels)]
    assert_all_as_good([*inputs, attend], make_heads(1, 2, 5, 8, torch.float32))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bits_and_booleans_give_the_same(pattern):
    (*floats, attend), grad = make_case("prime", pattern)
    out = forward(*floats, attend)
    bits = ops.pack_bits(attend)
    strided = attend.repeat_interleave(2, dim=-1)[..., ::2]
    for mask in (bits, strided, bits.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(forward(*floats, mask), out)
        for actual, expected in zip(
            backward(grad, out, *floats, mask), backward(grad, out, *floats, attend), strict=True
        ):
            assert torch.equal(actual, expected)


def test_bits_past_the_last_pixel_are_ignored():
    (*floats, attend), _ = make_case("prime", "random")
    bits = ops.pack_bits(attend)
    bits[:, :, -1] |= -1 << attend.shape[2] % 32
    assert torch.equal(forward(*floats, bits), forward(*floats, attend))


def test_masked_pixels_have_no_influence():
    (query, key, value, _), _ = make_case("prime")
    attend = PATTERNS["random"](2, 131, 1031)
    attend[:, :, ::3] = False
    expected = forward(query, key, value, attend)
    key, value = key.clone(), value.clone()
    key[:, :, ::3] *= 1e4
    value[:, :, ::3] += 1e4
    assert torch.equal(forward(query, key, value, attend), expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_scores(dtype, sign):
    """About 1e4 of either sign, growing and shrinking along the pixels."""
    (query, key, value, attend), grad = make_case("prime", "blobs", dtype)
    key = key * sign * torch.linspace(1, 1e3, key.shape[2], dtype=dtype)[:, None]
    for inputs in ([query, key, value, attend], [query, key.flip(2), value, attend]):
        out = forward(*inputs)
        # float32's rounding of a score is up to 1e4 * eps, which is its weight's relative error.
        tolerance = 1e-10 if dtype == torch.float64 else 1e-2
        exact = module.definition(*[x.double() for x in inputs[:3]], attend)
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
        assert all(x.isfinite().all() for x in backward(grad, out, *inputs))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_queries_spoil_their_own_row_only(bad):
    (query, key, value, attend), _ = make_case("prime", "random")
    expected = forward(query, key, value, attend)
    query = query.clone()
    query[1, 0, 7] = bad
    out = forward(query, key, value, attend)
    assert out[1, 0, 7].isnan().all()
    out[1, 0, 7] = expected[1, 0, 7]
    assert torch.equal(out, expected)


def test_non_finite_keys_spoil_those_that_attend():
    (query, key, value, attend), _ = make_case("prime", "random")
    expected = forward(query, key, value, attend)
    key = key.clone()
    key[:, :, 3] = torch.nan
    out = forward(query, key, value, attend)
    touched = torch.cat([attend[:, :, 3], torch.ones(2, 131 - 113, dtype=torch.bool)], dim=1)
    assert out.isnan().any(-1).squeeze(1).equal(touched)
    assert torch.equal(out.squeeze(1)[~touched], expected.squeeze(1)[~touched])


@pytest.mark.parametrize("pixels", [40, 1031])
def test_scores_of_minus_infinity(pixels):
    """Of some pixels they are weights of 0; of all, the result is 0."""
    query, value = torch.rand(1, 2, 3, 4) + 0.1, torch.rand(1, 2, pixels, 4)
    key = torch.rand(1, 2, pixels, 4) + 0.1
    key[:, :, ::2] = -torch.inf
    attend = torch.ones(1, 2, pixels, dtype=torch.bool)
    attend[:, 1, 1::2] = False
    out = forward(query, key, value, attend)
    assert torch.equal(out[:, :, 1], torch.zeros(1, 2, 4))
    torch.testing.assert_close(out, module.definition(query, key, value, attend))


def test_memory_layouts():
    (*floats, attend), grad = make_case("prime")
    expected = forward(*floats, attend)
    expected_grads = backward(grad, expected, *floats, attend)
    for change in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):
        changed = [change(x) for x in floats]
        assert torch.equal(forward(*changed, attend), expected)
        actual_grads = backward(change(grad), change(expected), *changed, attend)
        for actual, expected_grad in zip(actual_grads, expected_grads, strict=True):
            assert torch.equal(actual, expected_grad)


@pytest.mark.parametrize("batch, queries", [(0, 5), (2, 0)])
def test_empty(batch, queries):
    floats = [make_heads(batch, 3, n, 4, torch.float32) for n in (queries, 7, 7)]
    attend = torch.ones(batch, queries, 7, dtype=torch.bool)
    out = forward(*floats, attend)
    assert out.shape == (batch, 3, queries, 4)
    for gradient, tensor in zip(backward(out, out, *floats, attend), floats, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


@pytest.mark.parametrize("shape", ["tiny", "none guided"])
def test_gradients(shape):
    (*floats, attend), _ = make_case(shape, dtype=torch.float64)
    floats = [x.requires_grad_() for x in floats]
    assert torch.autograd.gradcheck(ops.masked_cross_attention, (*floats, attend))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", ["tiny", "one pixel"])
def test_registration(shape, packed):
    (*floats, attend), grad = make_case(shape)
    attend = ops.pack_bits(attend) if packed else attend
    torch.library.opcheck(backward.default, (grad, grad, *floats, attend))
    floats = [x.requires_grad_() for x in floats]
    torch.library.opcheck(forward.default, (*floats, attend))


def test_compiled_equals_eager():
    (*floats, attend), grad = make_case("prime", "blobs")
    floats = [x.requires_grad_() for x in floats]
    compiled = torch.compile(ops.masked_cross_attention, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*floats, attend), ops.masked_cross_attention(*floats, attend)
    assert torch.equal(actual, expected)
    for a, e in zip(
        torch.autograd.grad(actual, floats, grad),
        torch.autograd.grad(expected, floats, grad),
        strict=True,
    ):
        assert torch.equal(a, e)


@pytest.mark.parametrize("shape", ["model", "many queries"])
def test_the_number_of_threads_does_not_matter(shape):
    inputs, grad = make_case(shape, "blobs")
    out = forward(*inputs)
    assert_threads_do_not_matter(lambda: (forward(*inputs), *backward(grad, out, *inputs)))


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lower_instruction_sets(name):
    run_lowered(name, __file__, "test_every_shape_and_dtype or test_bits_and_booleans")
