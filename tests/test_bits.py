"""ops.pack_bits and unpack_bits."""

import numpy as np
import pytest
import torch

from fastinst.ops import pack_bits, unpack_bits


@pytest.mark.parametrize("shape", [(70,), (3, 32), (2, 3, 33), (1, 1), (0, 5), (4, 0)])
def test_there_and_back(shape):
    values = torch.rand(shape) < 0.5
    words = pack_bits(values)
    assert words.dtype == torch.int32
    assert words.shape == (*shape[:-1], (shape[-1] + 31) // 32)
    assert torch.equal(unpack_bits(words, shape[-1]), values)


def test_the_first_is_the_lowest_bit():
    values = torch.rand(5, 64) < 0.5
    expected = np.packbits(values.numpy(), axis=1, bitorder="little").view("<i4")
    assert np.array_equal(pack_bits(values).numpy(), expected)


def test_bits_past_the_end_are_zero():
    assert pack_bits(torch.ones(33, dtype=torch.bool)).tolist() == [-1, 1]


class Traced(torch.Tensor):
    """As any subclass, unpacked without NumPy."""


@pytest.mark.parametrize("shape", [(70,), (2, 3, 33), (0, 5), (4, 0)])
def test_tensors_that_are_traced_unpack_to_the_same(shape):
    values = torch.rand(shape) < 0.5
    words = pack_bits(values).as_subclass(Traced)
    assert torch.equal(unpack_bits(words, shape[-1]).as_subclass(torch.Tensor), values)
