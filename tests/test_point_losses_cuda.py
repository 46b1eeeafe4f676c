"""The CUDA kernels of point_losses against the definition: emulated, and on a GPU if there is one.

Emulated runs call the launchers of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import functools

import emulated
import pytest
import torch
from cpu_kernels import assert_as_good
from emulated import SCALARS, needs_emulator, needs_gpu

from fastinst.ops.bits import pack_bits
from fastinst.ops.point_losses import backward_definition, definition

SOURCE = """
#include "kernels/point_losses.cuh"

namespace fastinst {

template <typename T>
void forward(const T* logits, int pairs, int height, int width, const unsigned* masks,
             int mask_height, int mask_words, const long long* mask_index,
             const Point<Accumulate<T>>* points, bool shares_points, int count, bool copy_map,
             bool copy_mask, Accumulate<T>* bce, Accumulate<T>* dice) {
  launch_point_losses<T>({{logits, masks, mask_index, points, pairs, height, width, mask_height,
                           mask_words, count, shares_points, copy_map, copy_mask}, bce, dice},
                         nullptr);
}

template <typename T>
void backward(const T* logits, int pairs, int height, int width, const unsigned* masks,
              int mask_height, int mask_words, const long long* mask_index,
              const Point<Accumulate<T>>* points, bool shares_points, int count, bool copy_map,
              bool copy_mask, const Accumulate<T>* grad_bce, const Accumulate<T>* grad_dice,
              Accumulate<T>* sums, T* grad_logits) {
  launch_point_losses_backward<T>(
      {{logits, masks, mask_index, points, pairs, height, width, mask_height, mask_words, count,
        shares_points, copy_map, copy_mask}, grad_bce, grad_dice, sums, grad_logits}, nullptr);
}

template <typename A>
void backward_in_place(const A* logits, int pairs, int height, int width, const unsigned* masks,
                       int mask_height, int mask_words, const long long* mask_index,
                       const Point<A>* points, bool shares_points, int count, bool copy_map,
                       bool copy_mask, const A* grad_bce, const A* grad_dice, A* grad_logits) {
  backward<A>(logits, pairs, height, width, masks, mask_height, mask_words, mask_index, points,
              shares_points, count, copy_map, copy_mask, grad_bce, grad_dice, grad_logits,
              grad_logits);
}

void plan(int element_size, long pixels, long words, bool has_gradient, long limit, int* result) {
  const auto plan = (element_size == 2   ? plan_point_losses<__half>
                     : element_size == 4 ? plan_point_losses<float>
                                         : plan_point_losses<double>)(pixels, words, has_gradient,
                                                                      limit);
  result[0] = plan.sums_in_shared;
  result[1] = plan.copy_map;
  result[2] = plan.copy_mask;
}

}  // namespace fastinst

EMULATED(plan, fastinst::plan)
EMULATED(float_backward_in_place, fastinst::backward_in_place<float>)
EMULATED(double_backward_in_place, fastinst::backward_in_place<double>)
"""

# Of the largest gradient: sums of hundreds of terms in another order.
ROUNDING = {dtype: torch.finfo(dtype).eps * (2 if dtype.itemsize == 2 else 32) for dtype in SCALARS}


@functools.cache
def kernels():
    entries = [
        f"EMULATED({name}_{kind}, fastinst::{kind}<{name}>)"
        for name in SCALARS.values()
        for kind in ("forward", "backward")
    ]
    return emulated.build(SOURCE + "\n".join(entries))


def arguments(logits, masks, mask_index, points, copies):
    exact = torch.promote_types(logits.dtype, torch.float32)
    return (
        *(logits.contiguous(), *logits.shape, masks, *masks.shape[1:], mask_index),
        *(points.to(exact), len(points) == 1, points.shape[1], *copies),
    )


class Emulated:
    """What the CUDA host does. `copies`: map and mask are copied into shared memory."""

    def __init__(self, copies=(True, True), sums_in_shared=True):
        self.copies, self.sums_in_shared = copies, sums_in_shared

    def forward(self, logits, masks, mask_index, points):
        exact = torch.promote_types(logits.dtype, torch.float32)
        bce, dice = (torch.empty(len(logits), dtype=exact) for _ in range(2))
        run = getattr(kernels(), f"{SCALARS[logits.dtype]}_forward")
        run(*arguments(logits, masks, mask_index, points, self.copies), bce, dice)
        return bce, dice

    def backward(self, grad_bce, grad_dice, logits, masks, mask_index, points):
        exact = torch.promote_types(logits.dtype, torch.float32)
        grad_logits = torch.empty(logits.shape, dtype=logits.dtype)
        in_place = not self.sums_in_shared and logits.dtype == exact
        sums = None if self.sums_in_shared else torch.empty(logits.shape, dtype=exact)
        name = f"{SCALARS[logits.dtype]}_backward" + ("_in_place" if in_place else "")
        getattr(kernels(), name)(
            *arguments(logits, masks, mask_index, points, self.copies),
            *(grad_bce.to(exact), grad_dice.to(exact)),
            *((grad_logits,) if in_place else (sums, grad_logits)),
            rounding=ROUNDING[logits.dtype],
        )
        return grad_logits


class OnGpu:
    def forward(self, *tensors):
        results = torch.ops.fastinst.point_losses(*(x.cuda() for x in tensors))
        return tuple(x.cpu() for x in results)

    def backward(self, *tensors):
        return torch.ops.fastinst.point_losses_backward(*(x.cuda() for x in tensors)).cpu()


@pytest.fixture(
    params=[
        pytest.param(Emulated(), marks=needs_emulator),
        pytest.param(OnGpu(), marks=needs_gpu),
    ],
    ids=["emulated", "gpu"],
)
def losses(request):
    return request.param


def make(pairs=3, size=(9, 13), mask_size=(40, 64), count=150, sets=None, dtype=torch.float32):
    """Blobs, so that masks have insides, at points of each pair's own or of `sets`."""
    masks = torch.nn.functional.interpolate(torch.randn(1, 2, 4, 4), size=mask_size)[0] > 0
    points = torch.rand(pairs if sets is None else sets, count, 2, dtype=torch.float64)
    points = points.to(torch.promote_types(dtype, torch.float32))
    index = torch.arange(pairs) % 2
    return 4 * torch.randn(pairs, *size).to(dtype), pack_bits(masks), index, points


def expect(losses, logits, masks, index, points):
    """Losses and gradient; a tensor of each kind."""
    tensors = (logits, masks, index, points)
    exact = (logits.double(), masks, index, points.double())
    for results in zip(
        losses.forward(*tensors), definition(*tensors), definition(*exact), strict=True
    ):
        assert_as_good(*results, size=1.0)
    pairs = len(logits)
    gradients = torch.randn(2, pairs, dtype=torch.promote_types(logits.dtype, torch.float32))
    assert_as_good(
        losses.backward(*gradients, *tensors),
        backward_definition(*gradients, *tensors),
        backward_definition(*gradients.double(), *exact),
    )


@pytest.mark.parametrize("dtype", SCALARS)
def test_every_dtype(losses, dtype):
    expect(losses, *make(dtype=dtype))


# Fewer points than a warp has lanes, than a block has threads, and more.
@pytest.mark.parametrize("count", [1, 31, 1025, 2100])
def test_numbers_of_points(losses, count):
    expect(losses, *make(count=count, pairs=2))


@pytest.mark.parametrize("pairs", [1, 4])
def test_shared_points(losses, pairs):
    expect(losses, *make(pairs, sets=1))


def test_points_in_another_dtype(losses):
    logits, masks, index, points = make()
    expect(losses, logits, masks, index, points.double())
    expect(losses, logits.double(), masks, index, points)


@pytest.mark.parametrize(
    ("size", "mask_size"), [((1, 1), (1, 32)), ((1, 7), (32, 32)), ((40, 3), (5, 96))]
)
def test_sizes(losses, size, mask_size):
    expect(losses, *make(size=size, mask_size=mask_size))


def test_either_loss_alone(losses):
    tensors = make()
    zero, ones = torch.zeros(3), torch.ones(3)
    for gradients in ((ones, zero), (zero, ones)):
        found = losses.backward(*gradients, *tensors)
        expected = backward_definition(*gradients, *tensors)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert expected.abs().max() > 1e-4


def test_all_points_in_one_place(losses):
    """As many additions to one pixel as there are."""
    logits, masks, index, points = make(count=300)
    expect(losses, logits, masks, index, points[:, :1].expand(-1, 300, -1).contiguous())


def test_points_outside_are_zero(losses):
    logits, masks, index, points = make(count=80)
    expect(losses, logits, masks, index, 3 * points - 1)
    infinite = torch.full_like(logits, float("inf"))
    for far in (-0.5 - points, 1.5 + points):
        bce, dice = losses.forward(infinite, masks, index, far)
        torch.testing.assert_close(bce, torch.full((3,), 2.0).log())
        torch.testing.assert_close(dice, torch.full((3,), 1 - 1 / 41))  # of 80 times 1/2


def test_large_logits(losses):
    """exp of them overflows; the cross-entropy does not."""
    logits, *others = make()
    expect(losses, 100 * logits, *others)
    bce, dice = losses.forward(1e30 * logits.sign(), *others)
    assert bce.isfinite().all() and dice.isfinite().all()


def test_a_nan_stays_in_its_pair(losses):
    logits, masks, index, points = make()
    logits[1, 4, 5] = float("nan")
    points[1, 0] = torch.tensor([5.5 / 13, 4.5 / 9])
    bce, dice = losses.forward(logits, masks, index, points)
    assert bce.isnan().tolist() == dice.isnan().tolist() == [False, True, False]


def test_no_pair(losses):
    logits, masks, index, points = make()
    for some in (points[:0], points[:1]):
        nothing = (logits[:0], masks, index[:0], some)
        bce, dice = losses.forward(*nothing)
        assert bce.shape == dice.shape == (0,)
        assert losses.backward(bce, dice, *nothing).shape == (0, 9, 13)


@needs_emulator
@pytest.mark.parametrize("copies", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_what_shared_memory_does_not_hold(copies, dtype):
    expect(Emulated(copies, sums_in_shared=False), *make(dtype=dtype))


@needs_emulator
@pytest.mark.parametrize(
    ("bytes_of_logits", "limit", "plan"),
    [
        (4, 227, [1, 1, 1]),  # 34 + 34 + 67 KB
        (4, 99, [1, 1, 0]),
        (4, 64, [1, 0, 0]),
        (2, 64, [1, 1, 0]),
        (4, 20, [0, 0, 0]),
    ],
)
def test_what_goes_to_shared_memory(bytes_of_logits, limit, plan):
    result = torch.zeros(3, dtype=torch.int32)
    kernels().plan(bytes_of_logits, 80 * 108, 640 * 27, True, limit << 10, result)
    assert result.tolist() == plan


@needs_gpu
def test_more_than_shared_memory_holds():
    gpu = OnGpu()
    for size, mask_size in (((80, 108), (640, 864)), ((160, 216), (1280, 1728))):
        for dtype in (torch.float32, torch.float16):
            expect(gpu, *make(2, size, mask_size, 12544, dtype=dtype))
