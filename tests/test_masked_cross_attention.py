"""ops.masked_cross_attention against its definition in loops."""

import math

import pytest
import torch

from fastinst.ops import masked_cross_attention, pack_bits

BATCH, HEADS, QUERIES, PIXELS, DIM, GUIDED = 2, 3, 5, 7, 4, 3


def make_inputs(batch=BATCH, queries=QUERIES, pixels=PIXELS, guided=GUIDED, dtype=torch.float64):
    """The first query of every image may attend nowhere."""
    inputs = {
        "query": torch.randn(batch, HEADS, queries, DIM, dtype=torch.float64),
        "key": torch.randn(batch, HEADS, pixels, DIM, dtype=torch.float64),
        "value": torch.randn(batch, HEADS, pixels, DIM, dtype=torch.float64),
    }
    inputs = {k: v.to(dtype).requires_grad_() for k, v in inputs.items()}
    attend = torch.rand(batch, guided, pixels) < 0.5
    attend[:, :1] = False
    return inputs | {"attend": attend}


def floats(inputs):
    return [inputs[k] for k in ("query", "key", "value")]


def definition(query, key, value, attend):
    batch, heads, queries, dim = query.shape
    q, k, v, allowed = (x.tolist() for x in (query, key, value, attend))
    out = torch.zeros(query.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                row = allowed[b][i] if i < attend.shape[1] else []
                pixels = [j for j, yes in enumerate(row) if yes] or range(key.shape[2])
                weights = {
                    j: math.exp(
                        sum(map(math.prod, zip(q[b][h][i], k[b][h][j], strict=True))) / dim**0.5
                    )
                    for j in pixels
                }
                for d in range(dim):
                    total = sum(weight * v[b][h][j][d] for j, weight in weights.items())
                    out[b, h, i, d] = total / sum(weights.values())
    return out


def plain(query, key, value, attend):
    """Differentiable, from additive masks."""
    everywhere = torch.ones_like(query[:, 0, attend.shape[1] :, :1], dtype=torch.bool)
    mask = torch.cat([attend, everywhere.expand(-1, -1, key.shape[2])], dim=1)
    mask = mask | (mask.sum(-1, keepdim=True) == 0)
    scores = torch.einsum("bhqd,bhld->bhql", query, key) / query.shape[3] ** 0.5
    scores = scores + torch.where(mask, 0.0, -math.inf)[:, None]
    return torch.einsum("bhql,bhld->bhqd", scores.softmax(-1), value)


SHAPES = [
    {},
    {"batch": 1},
    {"pixels": 1},
    {"queries": 1, "guided": 1},
    {"guided": 0},
    {"guided": QUERIES},
    {"queries": 11, "pixels": 13},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(shape):
    inputs = make_inputs(**shape)
    torch.testing.assert_close(masked_cross_attention(**inputs), definition(**inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_those_of_plain_operations(shape):
    inputs = make_inputs(**shape)
    out, expected = masked_cross_attention(**inputs), plain(**inputs)
    grad = torch.randn_like(out)
    actual_grads = torch.autograd.grad(out, floats(inputs), grad)
    expected_grads = torch.autograd.grad(expected, floats(inputs), grad)
    torch.testing.assert_close(actual_grads, expected_grads)


def test_gradcheck():
    inputs = make_inputs()
    assert torch.autograd.gradcheck(masked_cross_attention, tuple(inputs.values()))


@pytest.mark.parametrize("pixels", [1, 31, 32, 33, 70])
def test_bits_say_the_same_as_booleans(pixels):
    inputs = make_inputs(pixels=pixels)
    packed = inputs | {"attend": pack_bits(inputs["attend"])}
    out, expected = masked_cross_attention(**packed), masked_cross_attention(**inputs)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    actual_grads = torch.autograd.grad(out, floats(inputs), grad)
    expected_grads = torch.autograd.grad(expected, floats(inputs), grad)
    assert all(torch.equal(a, b) for a, b in zip(actual_grads, expected_grads, strict=True))


def test_the_heads_of_a_query_lie_side_by_side():
    out = masked_cross_attention(**make_inputs())
    assert out.transpose(1, 2).is_contiguous()


def test_a_query_masked_everywhere_attends_everywhere():
    inputs = make_inputs()
    nowhere = torch.zeros_like(inputs["attend"])
    expected = masked_cross_attention(**inputs | {"attend": ~nowhere})
    assert torch.equal(masked_cross_attention(**inputs | {"attend": nowhere}), expected)


def test_auxiliary_queries_attend_everywhere():
    inputs = make_inputs()
    free = masked_cross_attention(**inputs | {"attend": inputs["attend"][:, :0]})
    guided = masked_cross_attention(**inputs)
    assert torch.equal(guided[:, :, GUIDED:], free[:, :, GUIDED:])
    assert not torch.isclose(guided[:, :, 1:GUIDED], free[:, :, 1:GUIDED]).all()


def test_masked_pixels_have_no_influence():
    inputs = make_inputs()
    inputs["attend"][:] = True
    inputs["attend"][:, :, 2] = False
    before = masked_cross_attention(**inputs)
    with torch.no_grad():
        inputs["key"][:, :, 2] += 3
        inputs["value"][:, :, 2] += 3
    after = masked_cross_attention(**inputs)
    assert torch.equal(after[:, :, :GUIDED], before[:, :, :GUIDED])
    assert not torch.equal(after[:, :, GUIDED:], before[:, :, GUIDED:])


def test_large_scores_do_not_overflow():
    inputs = make_inputs(dtype=torch.float32)
    with torch.no_grad():
        inputs["query"] *= 1e4
    out = masked_cross_attention(**inputs)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in floats(inputs))


def test_memory_layout_does_not_matter():
    inputs = make_inputs()
    odd = {
        k: inputs[k].transpose(1, 2).contiguous().transpose(1, 2)
        for k in inputs.keys() - {"attend"}
    }
    odd["attend"] = inputs["attend"].transpose(1, 2).contiguous().transpose(1, 2)
    out, expected = masked_cross_attention(**odd), masked_cross_attention(**inputs)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(BATCH, QUERIES, HEADS, DIM, dtype=torch.float64).transpose(1, 2)
    torch.testing.assert_close(
        torch.autograd.grad(out, floats(odd), grad),
        torch.autograd.grad(expected, floats(inputs), grad),
    )


def test_an_empty_batch():
    inputs = make_inputs(batch=0)
    out = masked_cross_attention(**inputs)
    assert out.shape == (0, HEADS, QUERIES, DIM)
    out.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in floats(inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_rounding(dtype):
    """Output and gradients within the rounding of the plain operations in the same dtype."""
    inputs = make_inputs(dtype=dtype)
    exact = {k: inputs[k].detach().double().requires_grad_() for k in ("query", "key", "value")}
    exact["attend"] = inputs["attend"]
    grad = torch.randn(BATCH, HEADS, QUERIES, DIM).to(dtype)
    out, expected = masked_cross_attention(**inputs), plain(**exact)
    actual = (out, *torch.autograd.grad(out, floats(inputs), grad))
    reference = (expected, *torch.autograd.grad(expected, floats(exact), grad.double()))
    for a, r in zip(actual, reference, strict=True):
        assert a.dtype == dtype
        assert (a.double() - r).abs().max() <= 2 * torch.finfo(dtype).eps * r.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_change_the_dtype(dtype):
    inputs = make_inputs(dtype=torch.float32)
    expected = masked_cross_attention(**inputs)
    with torch.autocast("cpu", dtype):
        assert torch.equal(masked_cross_attention(**inputs), expected)


@pytest.mark.parametrize("shape", [{}, {"guided": 0}, {"pixels": 1}])
def test_registration(shape):
    inputs = make_inputs(**shape)
    args = tuple(inputs.values())
    torch.library.opcheck(torch.ops.fastinst.masked_cross_attention.default, args)
    detached = tuple(x.detach() for x in args)
    output = masked_cross_attention(*detached)
    torch.library.opcheck(
        torch.ops.fastinst.masked_cross_attention_backward.default,
        (torch.randn_like(output), output, *detached),
    )


def test_compiled_equals_eager():
    inputs = make_inputs(dtype=torch.float32)
    compiled = torch.compile(masked_cross_attention, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(**inputs), masked_cross_attention(**inputs)
    assert torch.equal(actual, expected)
    grad = torch.randn_like(expected)
    actual_grads = torch.autograd.grad(actual, floats(inputs), grad)
    expected_grads = torch.autograd.grad(expected, floats(inputs), grad)
    assert all(torch.equal(a, b) for a, b in zip(actual_grads, expected_grads, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.rand(2, 5, 4)}, "^query must have 4 dimensions"),
        ({"key": torch.rand(2, 7, 4).double()}, "^key must have 4 dimensions"),
        ({"query": torch.ones(2, 3, 5, 4, dtype=torch.int64)}, "^query has dtype torch.int64"),
        ({"key": torch.rand(2, 3, 7, 4)}, "^key has dtype torch.float32, query torch.float64"),
        ({"value": torch.rand(2, 3, 7, 4)}, "^value has dtype torch.float32"),
        ({"key": torch.rand(2, 3, 7, 5).double()}, r"^key must have shape \(2, 3, 7, 4\)"),
        ({"value": torch.rand(2, 3, 6, 4).double()}, r"^value must have shape \(2, 3, 7, 4\)"),
        ({"attend": torch.ones(2, 3, 7)}, "^attend must be bool, or int32"),
        ({"attend": torch.ones(2, 3, 7, dtype=torch.int32)}, r"^attend must have shape .*, 1\)"),
        ({"attend": torch.ones(2, 6, 7, dtype=torch.bool)}, r"^attend must have shape \(2, N <= 5"),
        ({"attend": torch.ones(2, 3, 8, dtype=torch.bool)}, "^attend must have shape"),
        ({"attend": torch.ones(1, 3, 7, dtype=torch.bool)}, "^attend must have shape"),
        ({"attend": torch.ones(3, 7, dtype=torch.bool)}, "^attend must have shape"),
        ({"key": torch.rand(2, 3, 7, 4, device="meta").double()}, "^key is on meta, query on"),
        ({"value": torch.rand(2, 3, 7, 4, device="meta").double()}, "^value is on meta"),
        ({"attend": torch.ones(2, 3, 7, device="meta").bool()}, "^attend is on meta"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        masked_cross_attention(**make_inputs() | change)
