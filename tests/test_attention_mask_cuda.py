"""The CUDA kernel of attention_mask against the definition: emulated, and on a GPU.

Emulated runs call the launcher of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import emulated
import pytest
import torch
from emulated import needs_emulator, needs_gpu
from emulated_attention import unwritten

from fastinst.ops import unpack_bits

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RUNS = [
    pytest.param("emulator", marks=needs_emulator),
    pytest.param("cuda", marks=needs_gpu),
]
SOURCE = """
#include "kernels/attention_mask.cuh"

using namespace fastinst;

template <typename T>
void mask(const T* embeddings, int64_t embeddings_batch, int64_t embeddings_token, const T* pixels,
          int64_t pixels_batch, int64_t pixels_token, const T* bias, unsigned* bits, int batch,
          int queries, int length, int channels) {
  launch_attention_mask<T>({batch, channels,
                            {embeddings, embeddings_batch, 0, (int)embeddings_token, queries},
                            {pixels, pixels_batch, 0, (int)pixels_token, length}, bias, bits},
                           nullptr);
}

EMULATED(float64, mask<double>)
EMULATED(float32, mask<float>)
EMULATED(float16, mask<__half>)
EMULATED(bfloat16, mask<__nv_bfloat16>)
"""


def attention_mask(run, embeddings, pixels, bias):
    if run == "cuda":
        inputs = [None if x is None else x.cuda() for x in (embeddings, pixels, bias)]
        return torch.ops.fastinst.attention_mask(*inputs).cpu()
    batch, queries, channels = embeddings.shape
    length = pixels.shape[1]
    bits = unwritten(batch, queries, -(-length // 32), dtype=torch.int32)
    kernel = getattr(emulated.build(SOURCE), str(embeddings.dtype).removeprefix("torch."))
    kernel(
        *(embeddings, *embeddings.stride()[:2], pixels, *pixels.stride()[:2], bias, bits),
        *(batch, queries, length, channels),
    )
    return bits


def logits(embeddings, pixels, bias):
    out = embeddings.double() @ pixels.double().transpose(1, 2)
    return out if bias is None else out + bias.double().unsqueeze(-1)


def inputs_of(batch, queries, length, channels, dtype):
    embeddings = torch.randn(batch, queries, channels).to(dtype)
    pixels = torch.randn(batch, length, channels).to(dtype)
    return embeddings, pixels, torch.randn(batch, queries).to(dtype)


SHAPES = [
    (1, 19, 97, 64),
    (2, 117, 32, 32),  # more rows than a block has, no ragged word
    (1, 5, 67, 256),
    (1, 3, 31, 40),  # the second slice is not full
    (1, 1, 1, 8),
]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_bits_are_the_signs(run, dtype, shape, with_bias):
    embeddings, pixels, bias = inputs_of(*shape, dtype)
    if not with_bias:
        bias = None
    bits = attention_mask(run, embeddings, pixels, bias)
    expected = logits(embeddings, pixels, bias)
    # So near 0, the order of a float32 sum decides.
    certain = expected.abs() > 1e-5
    assert certain.sum() > 0.99 * certain.numel() - 1
    actual = unpack_bits(bits, shape[2])
    assert torch.equal(actual[certain], (expected >= 0)[certain])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_sums(run, dtype):
    # Of small integers, which no order rounds: zero counts as attended, and NaN does not.
    embeddings = torch.randint(-2, 3, (1, 9, 64)).to(dtype)
    pixels = torch.randint(-2, 3, (1, 45, 64)).to(dtype)
    bias = torch.randint(-2, 3, (1, 9)).to(dtype)
    embeddings[0, 3], bias[0, 3] = 0, 0
    embeddings[0, 4, 7] = float("nan")
    bits = attention_mask(run, embeddings, pixels, bias)
    assert torch.equal(unpack_bits(bits, 45), logits(embeddings, pixels, bias) >= 0)
    assert unpack_bits(bits, 45)[0, 3].all()
    assert not unpack_bits(bits, 64)[..., 45:].any()


@pytest.mark.parametrize("run", RUNS)
def test_memory_layouts(run):
    embeddings, pixels, bias = inputs_of(2, 7, 50, 64, torch.float16)
    wide = torch.cat([embeddings, embeddings], dim=2)[:, :, :64]
    turned = pixels.transpose(0, 1).contiguous().transpose(0, 1)
    expected = attention_mask(run, embeddings, pixels, bias)
    assert torch.equal(attention_mask(run, wide, turned, bias), expected)


@pytest.mark.parametrize("run", RUNS)
def test_an_empty_batch(run):
    embeddings, pixels, bias = inputs_of(0, 7, 50, 64, torch.float32)
    assert attention_mask(run, embeddings, pixels, bias).shape == (0, 7, 2)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 5, 33])
def test_any_number_of_channels(dtype, channels):
    embeddings, pixels, bias = inputs_of(2, 7, 50, channels, dtype)
    bits = attention_mask("cuda", embeddings, pixels.mT.contiguous().mT, bias)
    expected = logits(embeddings, pixels, bias)
    certain = expected.abs() > 1e-5
    assert torch.equal(unpack_bits(bits, 50)[certain], (expected >= 0)[certain])
