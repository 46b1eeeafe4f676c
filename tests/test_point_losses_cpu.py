"""The CPU kernels of ops.point_losses against the definitions, as precise as those."""

import importlib

import pytest
import torch
from cpu_kernels import (
    DTYPES,
    assert_as_good,
    assert_threads_do_not_matter,
    run_lowered,
    skip_unless_compiled,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst import ops

pytestmark = skip_unless_compiled("point_losses")

module = importlib.import_module("fastinst.ops.point_losses")
forward = torch.ops.fastinst.point_losses
backward = torch.ops.fastinst.point_losses_backward

# Logits [h, w], masks [H, W32], points.
SIZES = {
    "as in training": ((32, 32), (256, 8), 12544),
    "as for a photograph": ((80, 108), (640, 27), 3001),
    "small": ((5, 7), (40, 2), 50),
    "one pixel": ((1, 1), (1, 1), 3),
    "flat": ((2, 40), (3, 5), 100),
}


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make(pairs, size, mask_size, points, dtype=torch.float32, shared=False, scale=3.0):
    """Logits, masks, mask_index, points: noise; of the masks one is full and one is empty."""
    logits = (scale * torch.randn(pairs, *size)).to(dtype)
    masks = torch.randint(-(2**31), 2**31, (4, *mask_size)).to(torch.int32)
    masks[0], masks[1] = -1, 0
    # Some outside of the map, and in its corners.
    places = torch.rand(1 if shared else pairs, points, 2) * 1.1 - 0.05
    places[:, 0], places[:, -1] = 0, 1
    index = torch.randint(len(masks), (pairs,))
    return logits, masks, index, places.to(torch.promote_types(dtype, torch.float32))


def as_double(tensors):
    return [x.double() if x.is_floating_point() else x for x in tensors]


def assert_as_good_as_the_definition(args):
    exact = torch.promote_types(args[0].dtype, torch.float32)
    grads = torch.randn(2, len(args[0]), dtype=exact)
    plain, wide = module.definition(*args), module.definition(*as_double(args))
    for results in zip(forward(*args), plain, wide, strict=True):
        # Of terms of about the logits' size, some cancel.
        assert_as_good(*results, size=args[0].double().abs().max())
    actual = backward(*grads, *args)
    plain = module.backward_definition(*grads, *args)
    wide = module.backward_definition(*grads.double(), *as_double(args))
    assert actual.is_contiguous()
    assert_as_good(actual, plain, wide)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_equals_the_definition(sizes, shared, dtype):
    assert_as_good_as_the_definition(make(5, *sizes, dtype, shared))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 30.0, 1e4])
def test_any_scale(scale):
    for dtype in (torch.float64, torch.float32):
        assert_as_good_as_the_definition(make(4, (6, 9), (48, 3), 200, dtype, scale=scale))


side = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(side, side),
    mask_size=st.tuples(st.integers(1, 200), st.integers(1, 4)),
    points=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(size, mask_size, points, dtype, seed):
    torch.manual_seed(seed)
    assert_as_good_as_the_definition(make(3, size, mask_size, points, dtype))


def test_softplus_and_sigmoid_of_every_size():
    """One pair for each logit, so that no error hides behind another."""
    logits = torch.linspace(-100, 100, 4001)
    masks = torch.tensor([[[0]], [[-1]]], dtype=torch.int32)
    x, points = logits.double(), torch.full((1, 1, 2), 0.5)
    for t in (0, 1):
        index = torch.full((len(x),), t)
        bce, dice = forward(logits[:, None, None], masks, index, points)
        expected = x.clamp(min=0) - x * t + (-x.abs()).exp().log1p()
        torch.testing.assert_close(bce.double(), expected, rtol=4e-7, atol=1e-37)
        s = x.sigmoid()
        expected = 1 - (2 * s * t + 1) / (s + t + 1)
        torch.testing.assert_close(dice.double(), expected, rtol=4e-7, atol=2e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_reaches_the_losses(value, dtype):
    """Of the pair that has it, and of no other. Infinite logits still have a gradient."""
    logits, masks, index, points = make(3, (4, 4), (32, 1), 300, dtype)
    logits[1, 2, 1] = value
    grads = torch.ones(2, 3, dtype=points.dtype)
    gradient = backward(*grads, logits, masks, index, points)
    bce, _ = forward(logits, masks, index, points)
    assert bce.isfinite().tolist() == [True, False, True]
    assert gradient.isfinite().flatten(1).all(1).tolist() == [True, value == value, True]


def test_autograd_and_numbers_agree():
    logits, *others = make(3, (3, 4), (32, 2), 20, torch.float64, scale=1.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.point_losses(x, *others), logits)


def test_a_gradient_that_is_one_number():
    """What the gradient of a sum is: expanded, of stride 0."""
    args = make(4, (5, 6), (32, 1), 60)
    ones = torch.ones(()).expand(4)
    assert torch.equal(backward(ones, ones, *args), backward(*torch.ones(2, 4), *args))


def test_no_pairs():
    args = make(0, (4, 5), (32, 1), 6)
    assert [tuple(x.shape) for x in forward(*args)] == [(0,), (0,)]
    assert backward(*torch.ones(2, 0), *args).shape == (0, 4, 5)


def test_memory_layout_does_not_matter():
    logits, masks, index, points = make(6, (9, 14), (40, 2), 70)
    expected = forward(logits, masks, index, points)
    odd = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (logits, masks, points)]
    actual = forward(odd[0], odd[1], index.repeat_interleave(2)[::2], odd[2])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_points_in_another_dtype():
    logits, masks, index, points = make(3, (9, 14), (40, 2), 70)
    for dtype in (torch.float64, torch.float16):
        converted = points.to(torch.promote_types(dtype, torch.float32))
        expected = forward(logits.to(dtype), masks, index, converted)
        actual = forward(logits.to(dtype), masks, index, points.double().float())
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    actual = forward(logits, masks, index, points.double())
    assert torch.equal(actual[0], forward(logits, masks, index, points)[0])


def test_threads_do_not_change_a_bit():
    args = make(7, (9, 14), (40, 2), 500)
    grads = torch.randn(2, 7)
    assert_threads_do_not_matter(lambda: [*forward(*args), backward(*grads, *args)])


@pytest.mark.parametrize("pairs", [0, 3])
def test_registration(pairs):
    logits, *others = make(pairs, (5, 6), (32, 1), 60)
    torch.library.opcheck(forward.default, (logits.requires_grad_(), *others))
    torch.library.opcheck(backward.default, (*torch.randn(2, pairs), logits.detach(), *others))


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lesser_instruction_sets(name):
    run_lowered(name, __file__, "equals or scale or every_size or overflow")
