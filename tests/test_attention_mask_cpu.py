"""The CPU kernel of ops.attention_mask against the definition, tested next door."""

import importlib

import pytest
import torch
from cpu_kernels import DTYPES, assert_threads_do_not_matter, run_lowered, skip_unless_compiled

from fastinst import ops

pytestmark = skip_unless_compiled("attention_mask")

module = importlib.import_module("fastinst.ops.attention_mask")  # the name in ops is the function
kernel = torch.ops.fastinst.attention_mask

# batch, queries, pixels, channels
SHAPES = {
    "tiny": (2, 3, 7, 5),
    # More than one task, tile and slice, and a rest of each.
    "prime": (2, 101, 521, 67),
    "model": (1, 100, 1153, 256),
    "one of each": (1, 1, 1, 1),
    "whole words": (3, 17, 64, 32),
}


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make_case(shape="prime", dtype=torch.float32, with_bias=True):
    batch, queries, pixels, channels = SHAPES[shape]
    embeddings = torch.randn(batch, queries, channels, dtype=torch.float64).to(dtype)
    features = torch.randn(batch, pixels, channels, dtype=torch.float64).to(dtype)
    bias = 3 * torch.randn(batch, queries, dtype=torch.float64).to(dtype)
    return embeddings, features, bias if with_bias else None


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_signs(shape, dtype, with_bias):
    embeddings, pixels, bias = make_case(shape, dtype, with_bias)
    logits = embeddings.double() @ pixels.double().mT
    terms = embeddings.double().abs() @ pixels.double().abs().mT
    if with_bias:
        logits, terms = logits + bias.double()[..., None], terms + bias.double().abs()[..., None]
    actual = ops.unpack_bits(kernel(embeddings, pixels, bias), pixels.shape[1])
    # No sum in the accumulation type can be further off than the roundings of all its terms.
    precision = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    certain = logits.abs() > (embeddings.shape[2] + 1) * precision * terms
    assert certain.double().mean() > 0.99
    assert torch.equal(actual[certain], (logits >= 0)[certain])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_counts_and_nan_does_not(dtype):
    """Sums of small integers, which every order of summation gives exactly."""
    embeddings = torch.randint(-2, 3, (2, 13, 5)).to(dtype)
    pixels = torch.randint(-2, 3, (2, 77, 5)).to(dtype)
    bias = torch.randint(-2, 3, (2, 13)).to(dtype)
    bias[1, 3] = torch.nan
    expected = module.definition(embeddings, pixels, bias)
    assert (embeddings @ pixels.mT + bias[..., None] == 0).sum() > 100
    actual = kernel(embeddings, pixels, bias)
    assert torch.equal(actual, expected)
    assert not actual[1, 3].any()


def test_bits_past_the_last_pixel_are_0():
    embeddings, pixels, _ = make_case("prime")
    everything = kernel(embeddings.abs(), pixels.abs(), None)
    assert torch.equal(everything, ops.pack_bits(torch.ones(2, 101, 521, dtype=torch.bool)))


def test_memory_layouts():
    embeddings, pixels, bias = make_case("prime")
    expected = kernel(embeddings, pixels, bias)
    wide = torch.cat([pixels, pixels], dim=2)[:, :, : pixels.shape[2]]
    assert torch.equal(kernel(embeddings, wide, bias), expected)
    strided = embeddings.transpose(0, 1).contiguous().transpose(0, 1)
    turned = pixels.mT.contiguous().mT
    assert torch.equal(kernel(strided, turned, bias.mT.contiguous().mT), expected)


@pytest.mark.parametrize("batch, queries, pixels", [(0, 3, 7), (2, 0, 7), (2, 3, 0)])
def test_empty(batch, queries, pixels):
    bits = kernel(torch.ones(batch, queries, 5), torch.ones(batch, pixels, 5), None)
    assert bits.shape == (batch, queries, min(pixels, 1)) and bits.dtype == torch.int32


@pytest.mark.parametrize("with_bias", [True, False])
def test_registration(with_bias):
    embeddings, pixels, bias = make_case("tiny", with_bias=with_bias)
    torch.library.opcheck(kernel.default, (embeddings, pixels, bias))


def test_the_number_of_threads_does_not_matter():
    inputs = make_case("model")
    assert_threads_do_not_matter(lambda: (kernel(*inputs),))


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lower_instruction_sets(name):
    run_lowered(name, __file__, "test_signs or test_zero")
