"""The CPU kernel of ops.encode_masks against pycocotools, byte for byte."""

import numpy as np
import pycocotools.mask
import pytest
import torch
from cpu_kernels import run_lowered, skip_unless_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst import ops
from fastinst.ops.bits import pack_bits

pytestmark = skip_unless_compiled("encode_masks")

# Around 32 and 64, the kernel's words and blocks, and far from both.
SIZES = [(1, 1), (1, 131), (131, 1), (31, 33), (32, 32), (63, 65), (64, 64), (65, 63), (130, 200)]


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def by_pycocotools(masks):
    columns = np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8))
    return [code["counts"] for code in pycocotools.mask.encode(columns)]


def assert_same_bytes(masks):
    expected = by_pycocotools(masks)
    for codes in (ops.encode_masks(masks), ops.encode_masks(pack_bits(masks), masks.shape[2])):
        assert [code["counts"] for code in codes] == expected
        assert all(code["size"] == list(masks.shape[1:]) for code in codes)


def patterns(height, width):
    """[11, height, width]: everything that decides a special case, and noise of every density."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    corner = torch.zeros(height, width, dtype=torch.bool)
    corner[-1, -1] = True
    masks = [
        torch.zeros(height, width, dtype=torch.bool),
        torch.ones(height, width, dtype=torch.bool),
        (rows + columns) % 2 == 0,
        (rows + columns) % 2 == 1,
        (rows + 0 * columns) % 2 == 1,
        (0 * rows + columns) % 2 == 1,
        corner,
        ~corner,
        *(torch.rand(height, width) < density for density in (0.01, 0.5, 0.99)),
    ]
    return torch.stack(masks)


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_are_pycocotools(size):
    assert_same_bytes(patterns(*size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_smooth_masks_of_any_size(height, width, count, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    assert_same_bytes(smooth > 0)


def test_long_runs_take_many_characters():
    masks = torch.zeros(3, 2000, 3000, dtype=torch.bool)
    masks[0, 1999, 2999] = True
    masks[1, :, 1500:] = True
    masks[2, 1000, ::7] = True
    assert_same_bytes(masks)


def test_what_is_encoded_decodes():
    masks = patterns(37, 53)
    for mask, code in zip(masks, ops.encode_masks(masks), strict=True):
        assert torch.equal(torch.from_numpy(pycocotools.mask.decode(code)).bool(), mask)


def test_no_masks():
    assert ops.encode_masks(torch.zeros(0, 5, 7, dtype=torch.bool)) == []
    assert ops.encode_masks(torch.zeros(0, 5, 2, dtype=torch.int32), 40) == []


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_masks_of_no_pixels(size):
    """One run, of no zeros."""
    assert ops.encode_masks(torch.zeros(2, *size, dtype=torch.bool)) == 2 * [
        {"size": list(size), "counts": b"0"}
    ]


def test_memory_layout_does_not_matter():
    masks = patterns(37, 53)
    odd = masks.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert ops.encode_masks(odd) == ops.encode_masks(masks)
    assert ops.encode_masks(masks[::2]) == ops.encode_masks(masks)[::2]


def test_threads_do_not_matter():
    masks, before = patterns(63, 131), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.encode_masks(masks)
        torch.set_num_threads(2)
        assert ops.encode_masks(masks) == one
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("packed", [False, True])
def test_registration(packed):
    masks = patterns(37, 53)
    args = (pack_bits(masks) if packed else masks, 53)
    torch.library.opcheck(torch.ops.fastinst.encode_masks.default, args)


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lower_instruction_sets(name):
    run_lowered(name, __file__, "bytes or layout")
