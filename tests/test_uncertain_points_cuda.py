"""The CUDA kernel of uncertain_points against the definition: emulated, and on a GPU if there is.

Emulated runs call the launcher of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import functools

import emulated
import pytest
import torch
from emulated import SCALARS, needs_emulator, needs_gpu

from fastinst.ops.bilinear import sample_maps
from fastinst.ops.random_points import random_points
from fastinst.ops.uncertain_points import definition

SOURCE = """
#include "kernels/uncertain_points.cuh"

namespace fastinst {

template <typename T>
void choose(const T* logits, const long long* seeds, int maps, int height, int width, int points,
            int candidates, int important, bool copy_map,
            typename UncertainPointsParams<T>::Key* keys, Point<float>* chosen) {
  launch_uncertain_points<T>({logits, seeds, maps, height, width, points, candidates, important,
                              copy_map, keys, chosen}, nullptr);
}

}  // namespace fastinst
"""


@functools.cache
def kernels():
    entries = [f"EMULATED({name}, fastinst::choose<{name}>)" for name in SCALARS.values()]
    return emulated.build(SOURCE + "\n".join(entries))


def emulate(logits, seeds, points, candidates, important, *, copy_map=True, keys=None):
    """What the CUDA host does."""
    chosen = torch.empty(len(logits), points, 2)
    getattr(kernels(), SCALARS[logits.dtype])(
        *(logits.contiguous(), seeds, *logits.shape, points, candidates, important),
        *(copy_map, keys, chosen),
    )
    return chosen


def run_on_gpu(logits, seeds, *numbers):
    return torch.ops.fastinst.uncertain_points(logits.cuda(), seeds.cuda(), *numbers).cpu()


@pytest.fixture(
    params=[pytest.param(emulate, marks=needs_emulator), pytest.param(run_on_gpu, marks=needs_gpu)],
    ids=["emulated", "gpu"],
)
def choose(request):
    return request.param


def expect(choose, logits, *numbers):
    seeds = torch.randint(-(2**63), 2**63 - 1, logits.shape[:1])
    chosen = choose(logits, seeds, *numbers)
    assert torch.equal(chosen, definition(logits, seeds, *numbers))


@pytest.mark.parametrize("dtype", SCALARS)
def test_every_dtype(choose, dtype):
    expect(choose, torch.randn(3, 9, 13).to(dtype), 120, 300, 90)


# Below a warp, parts of warps, more than a thread each.
@pytest.mark.parametrize("candidates", [1, 31, 33, 1023, 1025, 3000])
def test_numbers_of_candidates(choose, candidates):
    logits = torch.randn(2, 8, 8)
    for important in sorted({1, candidates // 3, candidates}):
        expect(choose, logits, important + 5, candidates, important)


def test_only_random_points(choose):
    expect(choose, torch.randn(2, 4, 5), 40, 100, 0)
    expect(choose, torch.randn(2, 4, 5), 40, 0, 0)


def test_no_random_points(choose):
    expect(choose, torch.randn(2, 4, 5), 40, 100, 40)


def test_a_map_wider_than_positions_are_exact(choose):
    """Above 128 pixels, the 17 bits of a coordinate times the width may be rounded."""
    expect(choose, torch.randn(1, 151, 301), 500, 1500, 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_magnitudes_go_to_the_lower_number(choose, dtype):
    expect(choose, torch.zeros(2, 5, 7, dtype=dtype), 100, 2000, 100)
    logits = torch.zeros(2, 8, 8, dtype=dtype)
    logits[:, 2:] = torch.randn(6, 8, dtype=dtype)
    # 1 in 8 candidates is 0 at least, of 2000.
    for important in (100, 250, 700):
        expect(choose, logits, important, 2000, important)


def test_magnitudes_that_differ_in_their_last_bits(choose):
    """A map of one pixel: samples are products of two shares, in any order of the operations."""
    for scale in (1.0, -1.0, 1e-38, 3e38):
        expect(choose, torch.full((1, 1, 1), scale), 700, 2500, 611)
    close = 1 + 1e-13 * torch.rand(1, 6, 6, dtype=torch.float64)
    expect(choose, close, 700, 2500, 611)


def test_special_values(choose):
    logits = torch.randn(3, 6, 8)
    logits[0, 2, 3] = float("nan")
    logits[1, 1] = float("inf")
    logits[1, 4] = float("-inf")
    logits[2] = float("nan")
    logits[2, :, 4:] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)
    for important in (50, 180, 200):
        expect(choose, logits, important, 200, important)


def test_seeds_count_with_all_their_bits(choose):
    seeds = torch.tensor([5, 5 + 2**32, -5, 5 - 2**63])
    logits = torch.randn(1, 6, 8).expand(4, -1, -1)
    chosen = choose(logits, seeds, 20, 30, 0)
    assert torch.equal(chosen, random_points(seeds, 20, start=30))
    assert len(chosen.flatten(1).unique(dim=0)) == 4


def test_no_map(choose):
    empty = torch.empty(0, dtype=torch.int64)
    assert choose(torch.empty(0, 4, 5), empty, 8, 20, 6).shape == (0, 8, 2)


@needs_emulator
@pytest.mark.parametrize("copy_map", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_keys_in_global_memory(copy_map, dtype):
    keys = torch.empty(2, 1500, dtype=torch.promote_types(dtype, torch.float32))
    choose = functools.partial(emulate, copy_map=copy_map, keys=keys)
    expect(choose, torch.randn(2, 9, 13).to(dtype), 120, 1500, 90)


@needs_emulator
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="grid_sample has no FMA here"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(9, 13), (201, 301)])
def test_samples_are_rounded_as_those_of_grid_sample(size, dtype):
    """Else devices would choose different points where magnitudes are close."""
    logits, seeds = torch.randn(1, *size, dtype=dtype), torch.tensor([7])
    keys = torch.empty(1, 2000, dtype=dtype)
    emulate(logits, seeds, 5, 2000, 5, copy_map=False, keys=keys)
    points = random_points(seeds, 2000).to(dtype)
    assert torch.equal(keys, sample_maps(logits[None], points)[0].abs())


@needs_gpu
def test_more_than_shared_memory_holds():
    expect(run_on_gpu, torch.randn(3, 80, 108), 12544, 37632, 9408)
    expect(run_on_gpu, torch.randn(3, 300, 400), 12544, 37632, 9408)
    expect(run_on_gpu, torch.randn(2, 80, 108, dtype=torch.float64), 12544, 37632, 9408)
    expect(run_on_gpu, torch.randn(2, 20, 30), 100_000, 200_000, 70_000)
