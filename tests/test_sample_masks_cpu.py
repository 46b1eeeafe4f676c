"""The CPU kernel of ops.sample_masks against the definition, as precise as that."""

import importlib

import pytest
import torch
from cpu_kernels import (
    assert_as_good,
    assert_threads_do_not_matter,
    run_lowered,
    skip_unless_compiled,
)

pytestmark = skip_unless_compiled("sample_masks")

definition = importlib.import_module("fastinst.ops.sample_masks").definition
kernel = torch.ops.fastinst.sample_masks

DTYPES = [torch.float64, torch.float32]
SIZES = {"photograph": (640, 27), "small": (40, 2), "one word": (1, 1), "flat": (2, 5)}


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make(masks, size, points, dtype=torch.float32):
    """Noise at points of three groups, some outside of the masks, and in their corners."""
    places = torch.rand(3, points, 2) * 1.1 - 0.05
    places[:, 0], places[:, -1] = 0, 1
    bits = torch.randint(-(2**31), 2**31, (masks, *size)).to(torch.int32)
    return bits, places.to(dtype), torch.randint(3, (masks,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", [1, 5, 33, 1000])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_definition(size, points, dtype):
    masks, places, groups = make(5, size, points, dtype)
    exact = definition(masks, places.double(), groups)
    assert_as_good(kernel(masks, places, groups), definition(masks, places, groups), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_pixels(dtype):
    """At their centres the samples are the bits, in a full mask 1 all over, far outside 0."""
    masks, _, _ = make(2, (8, 3), 1)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(96), indexing="ij")
    centres = torch.stack([(column + 0.5) / 96, (row + 0.5) / 8], dim=-1).view(1, -1, 2).to(dtype)
    bits = masks.unsqueeze(-1) >> torch.arange(32) & 1
    samples = kernel(masks, centres, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(samples, bits.flatten(1).to(dtype), rtol=0, atol=1e-5)
    full, first = torch.full((1, 8, 3), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    inside = torch.rand(1, 99, 2, dtype=dtype) * 0.8 + 0.1
    torch.testing.assert_close(kernel(full, inside, first), torch.ones(1, 99, dtype=dtype))
    outside = torch.tensor([-1.0, 2.0, -1e30, 1e30, float("inf"), float("-inf")], dtype=dtype)
    for places in (torch.stack([outside, inside[0, :6, 0]], 1), outside[:, None].expand(6, 2)):
        assert not kernel(full, places[None], first).any()


def test_none():
    assert kernel(*make(0, (4, 1), 6)).shape == (0, 6)
    masks, places, groups = make(2, (4, 1), 6)
    assert kernel(masks, places[:, :0], groups).shape == (2, 0)


def test_memory_layout_does_not_matter():
    masks, places, groups = make(6, (40, 3), 70)
    expected = kernel(masks, places, groups)
    odd = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (masks, places)]
    assert torch.equal(kernel(*odd, groups.repeat_interleave(2)[::2]), expected)


def test_threads_do_not_change_a_bit():
    args = make(7, (40, 3), 70)
    assert_threads_do_not_matter(lambda: [kernel(*args)])


@pytest.mark.parametrize("masks", [0, 3])
def test_registration(masks):
    torch.library.opcheck(kernel.default, make(masks, (8, 2), 9))


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lesser_instruction_sets(name):
    run_lowered(name, __file__, "equals or pixels")
