"""The CUDA kernel of sample_masks against the definition: emulated, and on a GPU if there is one.

Emulated runs call the launcher of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import functools

import emulated
import pytest
import torch
from emulated import SCALARS, needs_emulator, needs_gpu

from fastinst.ops.bits import pack_bits
from fastinst.ops.sample_masks import definition

SOURCE = """
#include "kernels/sample_masks.cuh"

namespace fastinst {

template <typename A>
void sample(const unsigned* masks, const Point<A>* points, const long long* groups, int mask_count,
            int height, int words, int count, A* samples) {
  launch_sample_masks<A>({masks, points, groups, mask_count, height, words, count, samples},
                         nullptr);
}

}  // namespace fastinst

EMULATED(float, fastinst::sample<float>)
EMULATED(double, fastinst::sample<double>)
"""


@functools.cache
def kernels():
    return emulated.build(SOURCE)


def emulate(masks, points, groups):
    """What the CUDA host does."""
    samples = torch.empty(len(masks), points.shape[1], dtype=points.dtype)
    run = getattr(kernels(), SCALARS[points.dtype])
    run(masks, points, groups, *masks.shape, points.shape[1], samples)
    return samples


def run_on_gpu(masks, points, groups):
    return torch.ops.fastinst.sample_masks(masks.cuda(), points.cuda(), groups.cuda()).cpu()


@pytest.fixture(
    params=[pytest.param(emulate, marks=needs_emulator), pytest.param(run_on_gpu, marks=needs_gpu)],
    ids=["emulated", "gpu"],
)
def sample(request):
    return request.param


def expect(sample, masks, points, groups):
    samples = sample(masks, points, groups)
    expected = definition(masks, points, groups)
    assert samples.dtype == points.dtype
    # The definition rounds positions, which are up to the size; then come four products.
    size = max(masks.shape[1], 32 * masks.shape[2])
    tolerance = (size + 4) * torch.finfo(points.dtype).eps
    torch.testing.assert_close(samples, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_dtype(sample, dtype):
    masks = pack_bits(torch.rand(3, 7, 96) > 0.5)
    # More points than a block has threads.
    points = torch.rand(2, 300, 2, dtype=dtype)
    expect(sample, masks, points, torch.tensor([1, 0, 1]))


@pytest.mark.parametrize(("height", "width"), [(1, 32), (1, 64), (32, 32), (5, 320)])
def test_every_pixel_counts(sample, height, width):
    """A set pixel is 1 in its middle, 1/2 on its edge, and 0 in its neighbours' middles."""
    pixels = height * width
    rows, columns = torch.arange(pixels) // width, torch.arange(pixels) % width
    chosen = torch.arange(0, pixels, 1 if pixels <= 64 else 37)
    masks = torch.zeros(len(chosen), height, width, dtype=torch.bool)
    masks[torch.arange(len(chosen)), rows[chosen], columns[chosen]] = True
    middles = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=1)
    edges = torch.stack([columns / width, (rows + 0.5) / height], dim=1)
    points = torch.cat([middles, edges])[None]
    groups = torch.zeros(len(chosen), dtype=torch.int64)
    expect(sample, pack_bits(masks), points, groups)
    samples = sample(pack_bits(masks), points, groups)
    at_middles, at_edges = samples.split(pixels, dim=1)
    torch.testing.assert_close(at_middles, masks.flatten(1).float(), rtol=0, atol=1e-4)
    at_own_edge = at_edges.gather(1, chosen[:, None])
    torch.testing.assert_close(at_own_edge, torch.full_like(at_own_edge, 0.5), rtol=0, atol=1e-4)


def test_outside_is_zero(sample):
    masks = pack_bits(torch.ones(1, 8, 64, dtype=torch.bool))
    coordinates = torch.tensor([0.0, 1.0, -0.001, 1.001, -0.5, 1.5, -1e30, 1e30])
    points = torch.cartesian_prod(coordinates, coordinates)[None]
    expect(sample, masks, points, torch.tensor([0]))
    undefined = torch.tensor([[[float("nan"), 0.5], [0.5, float("nan")], [0.5, float("inf")]]])
    assert sample(masks, undefined, torch.tensor([0])).tolist() == [[0.0, 0.0, 0.0]]


def test_no_mask_and_no_point(sample):
    masks = pack_bits(torch.rand(2, 7, 32) > 0.5)
    groups = torch.tensor([0, 0])
    assert sample(masks[:0], torch.rand(1, 5, 2), groups[:0]).shape == (0, 5)
    assert sample(masks, torch.rand(1, 0, 2), groups).shape == (2, 0)
