"""ops.attention_mask against its definition in loops."""

import pytest
import torch

from fastinst.ops import attention_mask, unpack_bits


def make_inputs(batch=2, queries=5, pixels=37, channels=6, dtype=torch.float64, bias=True):
    return {
        "embeddings": torch.randn(batch, queries, channels).to(dtype),
        "pixels": torch.randn(batch, pixels, channels).to(dtype),
        "bias": torch.randn(batch, queries).to(dtype) if bias else None,
    }


def definition(embeddings, pixels, bias):
    out = torch.zeros(*embeddings.shape[:2], pixels.shape[1], dtype=torch.bool)
    for b, rows in enumerate(embeddings.tolist()):
        for n, row in enumerate(rows):
            for i, pixel in enumerate(pixels[b].tolist()):
                dot = sum(x * y for x, y in zip(row, pixel, strict=True))
                out[b, n, i] = dot + (0 if bias is None else bias[b, n].item()) >= 0
    return out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pixels", [1, 31, 32, 33, 64, 101])
def test_equals_the_definition(pixels, bias):
    inputs = make_inputs(pixels=pixels, bias=bias)
    bits = attention_mask(**inputs)
    assert torch.equal(unpack_bits(bits, pixels), definition(**inputs))
    assert not unpack_bits(bits, bits.shape[2] * 32)[..., pixels:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_are_not_rounded_to_half(dtype):
    """1 + eps - 1, which a sum in the input's precision would lose."""
    embeddings = torch.ones(1, 1, 3, dtype=dtype)
    small = 2.0**-13
    pixels = torch.tensor([[[1, small, -1], [1, -small, -1]]], dtype=dtype)
    assert attention_mask(embeddings, pixels).tolist() == [[[1]]]


def test_a_zero_is_attended_to_and_nan_is_not():
    embeddings = torch.tensor([[[0.0], [float("nan")], [1.0]]])
    assert attention_mask(embeddings, torch.zeros(1, 3, 1)).tolist() == [[[7], [0], [7]]]


def test_memory_layout_does_not_matter():
    inputs = make_inputs()
    odd = {k: v.transpose(0, 1).contiguous().transpose(0, 1) for k, v in inputs.items()}
    odd["pixels"] = inputs["pixels"].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attention_mask(**odd), attention_mask(**inputs))


@pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}, {"pixels": 0}])
def test_nothing_to_do(shape):
    inputs = make_inputs(**shape)
    words = (inputs["pixels"].shape[1] + 31) // 32
    assert attention_mask(**inputs).shape == (*inputs["embeddings"].shape[:2], words)


def test_it_has_no_gradient():
    inputs = make_inputs()
    inputs["embeddings"].requires_grad_()
    assert not attention_mask(**inputs).requires_grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [{}, {"batch": 0}, {"pixels": 1}])
def test_registration(shape, bias):
    args = tuple(make_inputs(**shape, bias=bias).values())
    torch.library.opcheck(torch.ops.fastinst.attention_mask.default, args)


def test_compiled_equals_eager():
    compiled = torch.compile(attention_mask, fullgraph=True, backend="aot_eager")
    inputs = make_inputs(dtype=torch.float32)
    assert torch.equal(compiled(**inputs), attention_mask(**inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.rand(5, 6)}, r"^embeddings must be \[B, N, C >= 1\]"),
        ({"embeddings": torch.rand(2, 5, 0)}, r"^embeddings must be \[B, N, C >= 1\]"),
        ({"embeddings": torch.ones(2, 5, 6).long()}, "^embeddings must be .* floating-point"),
        ({"pixels": torch.rand(2, 37, 5).double()}, r"^pixels must have shape \(2, L, 6\)"),
        ({"pixels": torch.rand(1, 37, 6).double()}, "^pixels must have shape"),
        ({"pixels": torch.rand(2, 37, 6)}, "^pixels has dtype torch.float32"),
        ({"bias": torch.rand(2, 6).double()}, r"^bias must have shape \(2, 5\)"),
        ({"bias": torch.rand(2, 5)}, "^bias has dtype torch.float32"),
        ({"pixels": torch.rand(2, 37, 6, device="meta").double()}, "^pixels is on meta"),
        ({"bias": torch.rand(2, 5, device="meta").double()}, "^bias is on meta"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        attention_mask(**make_inputs() | change)
