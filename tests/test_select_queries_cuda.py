"""The CUDA kernels of select_queries against the definition: emulated, and on a GPU if there is.

Emulated runs call the launchers of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import functools

import emulated
import pytest
import torch
from emulated import SCALARS, needs_emulator, needs_gpu

from fastinst.ops.select_queries import activation_rank, definition

ELEMENTS = {8: "unsigned long long", 4: "unsigned", 2: "unsigned short"}

SOURCE = """
#include "kernels/select_queries.cuh"

namespace fastinst {

template <typename T>
void find(const T* logits, long b, long c, long y, long x, int batch, int classes, int height,
          int width, Candidate<Accumulate<T>>* candidates) {
  launch_find_candidates<T>({logits, {b, c, y, x}, batch, classes, height, width, candidates},
                            nullptr);
}

template <typename A, typename Element>
void take(const Candidate<A>* candidates, int batch, int height, int width, bool local, int count,
          int channels, const Element* features, long fb, long fc, long fy, long fx,
          const Element* positions, long pb, long pc, long py, long px, Element* taken_features,
          Element* taken_positions, long long* indices, void* ranks) {
  launch_take_queries<A, Element>(
      {candidates, batch, height, width, local, count, channels, features, positions,
       {fb, fc, fy, fx}, {pb, pc, py, px}, taken_features, taken_positions, indices, ranks},
      nullptr);
}

}  // namespace fastinst
"""


@functools.cache
def kernels():
    entries = [f"EMULATED(find_{name}, fastinst::find<{name}>)" for name in SCALARS.values()]
    entries += [
        f"EMULATED(take_{wide}_{size}, fastinst::take<{wide}, {element}>)"
        for wide in ("float", "double")
        for size, element in ELEMENTS.items()
    ]
    return emulated.build(SOURCE + "\n".join(entries))


def emulate(logits, features, positions, count, local=True, ranks_in_shared=True):
    """What the CUDA host does."""
    batch, channels, height, width = features.shape
    exact = torch.promote_types(logits.dtype, torch.float32)
    candidates = torch.empty(batch, height * width, 2, dtype=exact)
    find = getattr(kernels(), f"find_{SCALARS[logits.dtype]}")
    find(logits, *logits.stride(), batch, logits.shape[1], height, width, candidates)

    taken = torch.empty(batch, count, channels, dtype=features.dtype)
    taken_positions = torch.empty_like(taken)
    indices = torch.empty(batch, count, dtype=torch.int64)
    position_strides = positions.expand_as(features).stride()
    ranks = None if ranks_in_shared else torch.empty(batch, height * width, dtype=exact)
    take = getattr(kernels(), f"take_{SCALARS[exact]}_{features.element_size()}")
    take(
        *(candidates, batch, height, width, local, count, channels),
        *(features, *features.stride(), positions, *position_strides),
        *(taken, taken_positions, indices, ranks),
    )
    return taken, taken_positions, indices


def run_on_gpu(logits, features, positions, count, local=True):
    maps = (logits.cuda(), features.cuda(), positions.cuda())
    return tuple(x.cpu() for x in torch.ops.fastinst.select_queries(*maps, count, local))


@pytest.fixture(
    params=[pytest.param(emulate, marks=needs_emulator), pytest.param(run_on_gpu, marks=needs_gpu)],
    ids=["emulated", "gpu"],
)
def select(request):
    return request.param


def expect(select, logits, features, positions, count, local=True):
    found = select(logits, features, positions, count, local)
    expected = definition(logits, features, positions, count, local)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def maps(batch=2, channels=5, height=7, width=11, dtype=torch.float32):
    features = torch.randn(batch, channels, height, width).to(dtype)
    return features, torch.randn(1, channels, height, width).to(dtype)


def separated(batch, classes, height, width, dtype=torch.float32):
    """Logits whose pixels differ in rank by more than rounding, with many equal neighbours."""
    pixels = height * width
    order = torch.rand(batch, pixels).argsort(dim=1).double().view(batch, height, width)
    logits = torch.full((batch, classes, height, width), -9.0, dtype=torch.float64)
    best = torch.randint(classes - 1, (batch, 1, height, width))
    return logits.scatter(1, best, 4 * order[:, None] / pixels - 6).to(dtype)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_selects_as_defined(select, classes, local):
    logits = separated(2, classes, 7, 11)
    for count in (1, 8, 30, 77):
        expect(select, logits, *maps(), count, local)


@pytest.mark.parametrize("dtype", SCALARS)
def test_every_dtype(select, dtype):
    # 16-bit logits of 77 pixels stay apart.
    expect(select, separated(2, 4, 7, 11, dtype), *maps(dtype=dtype), 13)


def test_more_pixels_than_threads(select):
    logits, images = separated(1, 3, 37, 31), maps(1, 3, 37, 31)
    expect(select, logits, *images, 100)


@needs_emulator
def test_more_ranks_than_emulated_shared_memory_holds():
    expect(
        functools.partial(emulate, ranks_in_shared=False),
        separated(2, 3, 37, 31),
        *maps(2, 3, 37, 31),
        100,
    )


@needs_gpu
def test_more_ranks_than_the_gpus_shared_memory_holds():
    expect(run_on_gpu, separated(1, 2, 300, 301), *maps(1, 3, 300, 301), 100)


def test_random_logits_in_double(select):
    logits = torch.randn(3, 21, 9, 8, dtype=torch.float64)
    expect(select, logits, *maps(3, 6, 9, 8, torch.float64), 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_probabilities_are_near_the_definitions(select, dtype):
    """Ranks that differ by rounding may change places: those of the chosen do not."""
    logits = torch.randn(1, 81, 20, 27).to(dtype)
    *_, indices = select(logits, *maps(1, 2, 20, 27), 50)
    rank = activation_rank(logits)[0]
    best = rank.sort(descending=True).values[:50]
    chosen = rank[indices[0]].sort(descending=True).values
    # Three units in the last place of a rank between 1 and 2.
    torch.testing.assert_close(chosen, best, rtol=0, atol=3 * 2**-23)


def test_ties_go_to_the_lower_index(select):
    # exp(-200) is 0 in float32: probabilities of 1, 1/2, 1/3 and 0, whatever the order of sums.
    logits = -200.0 * torch.randint(2, (2, 3, 7, 11))
    for local in (True, False):
        for count in (1, 5, 40):
            expect(select, logits, *maps(), count, local)
    constant = torch.zeros(1, 3, 40, 15)
    *_, indices = select(constant, *maps(1, 2, 40, 15), 9)
    assert indices[0].tolist() == list(range(9))


def test_the_first_of_equal_classes_is_the_best(select):
    """Between pixels that tie in class only if the lower class wins."""
    logits = torch.full((1, 4, 1, 4), -5.0)
    logits[0, 1] = torch.tensor([2.0, 1.0, 1.5, 0.0])
    logits[0, 2] = torch.tensor([2.0, 1.0, -3.0, 0.0])
    expect(select, logits, *maps(1, 2, 1, 4), 2)


def test_the_least_probability_of_a_local_maximum(select):
    """The first pixel would be one, alone in its class, but for its probability of 5e-7."""
    logits = torch.zeros(1, 3, 1, 5)
    logits[0, 2] = torch.tensor([14.5, 2.0, 1.0, 0.0, 1.0])
    logits[0, 0, 0, 1:] = logits[0, 1, 0, 0] = -9.0
    expect(select, logits, *maps(1, 2, 1, 5), 2)
    logits[0, 2, 0, 0] = 13.0
    expect(select, logits, *maps(1, 2, 1, 5), 2)


def test_special_values(select):
    logits = separated(1, 3, 7, 11)
    logits[0, 0, 2, 3] = float("nan")
    logits[0, :, 4, 4] = float("-inf")
    logits[0, 2, 5, 5] = float("inf")
    logits[0, 2, 6] = 100.0  # foreground below the least probability of a local maximum
    for count in (2, 9, 77):
        expect(select, logits, *maps(1), count)


def test_strides(select):
    logits = separated(2, 6, 7, 11)
    features, positions = maps()
    last = {"memory_format": torch.channels_last}
    expect(select, logits.contiguous(**last), features, positions.contiguous(**last), 13)
    expect(select, logits, features.contiguous(**last), torch.cat([positions, -positions]), 13)
    wide = torch.randn(2, 12, 7, 22)
    wide[:, ::2, :, ::2] = logits
    expect(select, wide[:, ::2, :, ::2], features.transpose(2, 3).contiguous().mT, positions, 13)


def test_one_pixel_and_no_image(select):
    expect(select, torch.randn(1, 2, 1, 1), *maps(1, 3, 1, 1), 1)
    expect(select, torch.randn(0, 3, 7, 11), *maps(0), 4)
