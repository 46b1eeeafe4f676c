"""The fused losses against loops over points, their gradients against finite differences."""

import math

import pytest
import torch
from test_matcher import bilinear

from fastinst.ops import bilinear as sampling
from fastinst.ops import pack_bits, point_losses

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def make_case(dtype=torch.float64, shared=False, count=11, pairs=4):
    """Pairs, of which two are to predict the same mask; some points lie at the border."""
    logits = (3 * torch.randn(pairs, 3, 4, dtype=torch.float64)).to(dtype)
    masks = torch.rand(3, 6, 32) < 0.5
    points = torch.rand(1 if shared else pairs, count, 2)
    points[:, :2] = torch.tensor([[0.0, 0.01], [1.0, 0.999]])
    return logits, masks, torch.tensor([2, 0, 2, 1])[:pairs], points


def by_loops(logits, mask, points):
    logits, mask = logits.double().tolist(), mask.double().tolist()
    s = [1 / (1 + math.exp(-bilinear(logits, *p))) for p in points.tolist()]
    t = [bilinear(mask, *p) for p in points.tolist()]
    both = list(zip(s, t, strict=True))
    bce = -sum(b * math.log(a) + (1 - b) * math.log(1 - a) for a, b in both) / len(both)
    return bce, 1 - (2 * sum(a * b for a, b in both) + 1) / (sum(s) + sum(t) + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("points_dtype", [torch.float32, torch.float64])
def test_losses_are_those_of_the_definition(dtype, shared, points_dtype):
    logits, masks, index, points = make_case(dtype, shared)
    bce, dice = point_losses(logits, pack_bits(masks), index, points.to(points_dtype))
    exact = torch.promote_types(dtype, torch.float32)
    assert bce.dtype == dice.dtype == exact and bce.shape == dice.shape == (4,)
    for i, pair in enumerate(zip(bce.tolist(), dice.tolist(), strict=True)):
        expected = by_loops(logits[i], masks[index[i]], points[0 if shared else i])
        assert pair == pytest.approx(expected, rel=1e-12 if dtype.itemsize == 8 else 1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_finite_differences(shared):
    logits, masks, index, points = make_case(shared=shared)
    packed = pack_bits(masks)
    torch.autograd.gradcheck(
        lambda x: point_losses(x, packed, index, points), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_has_the_logits_dtype_and_float32_accuracy(dtype):
    logits, masks, index, points = make_case(dtype)
    grads = []
    for x in (logits.requires_grad_(), logits.detach().double().requires_grad_()):
        bce, dice = point_losses(x, pack_bits(masks), index, points)
        (3 * bce.sum() - 2 * dice.sum()).backward()
        grads.append(x.grad)
    assert grads[0].dtype == dtype
    limit = torch.finfo(dtype).eps if dtype.itemsize == 2 else 50 * torch.finfo(dtype).eps
    assert (grads[0] - grads[1]).abs().max() <= limit * grads[1].abs().max()


def test_one_loss_alone_can_be_differentiated():
    logits, masks, index, points = make_case()
    for which in (0, 1):
        x = logits.clone().requires_grad_()
        point_losses(x, pack_bits(masks), index, points)[which].sum().backward()
        assert x.grad.any()


def test_large_logits_neither_overflow_nor_lose_their_gradient():
    _, masks, index, points = make_case()
    for sign in (1, -1):
        logits = torch.full((4, 3, 4), sign * 1e4, requires_grad=True)
        bce, dice = point_losses(logits, pack_bits(masks), index, points)
        assert bce.isfinite().all() and dice.isfinite().all()
        bce.sum().backward()
        assert logits.grad.isfinite().all() and logits.grad.any()


def test_what_is_not_finite_stays_so():
    """The training loop must see it."""
    logits, masks, index, points = make_case()
    logits[1] = math.nan
    bce, dice = point_losses(logits, pack_bits(masks), index, points)
    assert bce.isnan().tolist() == dice.isnan().tolist() == [False, True, False, False]


def test_losses_do_not_depend_on_the_chunks(monkeypatch):
    logits, masks, index, points = make_case()
    results = []
    for chunk in (sampling.CHUNK_ELEMENTS, 12):
        monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", chunk)
        x = logits.clone().requires_grad_()
        losses = point_losses(x, pack_bits(masks), index, points)
        torch.stack(losses).sum().backward()
        results.append((*losses, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_pairs():
    logits, masks, index, points = make_case(pairs=0)
    losses = point_losses(logits.requires_grad_(), pack_bits(masks), index, points)
    assert [loss.shape for loss in losses] == [(0,), (0,)]
    torch.stack(losses).sum().backward()
    assert logits.grad.shape == (0, 3, 4)


def test_definition_fake_and_gradient_agree():
    for dtype in (torch.float64, torch.float16):
        logits, masks, index, points = make_case(dtype)
        arguments = (logits.requires_grad_(), pack_bits(masks), index, points)
        torch.library.opcheck(torch.ops.fastinst.point_losses, arguments)
    grads = torch.randn(2, 4, dtype=torch.float64)
    arguments = (*grads, make_case()[0], *arguments[1:])
    torch.library.opcheck(torch.ops.fastinst.point_losses_backward, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4, 12)}, r"^logits must be floating-point \[P, h, w\]"),
        ({"logits": torch.zeros(4, 3, 4).long()}, "^logits must be floating-point"),
        ({"masks": torch.zeros(3, 6, 32) > 0}, r"^masks must be int32 \[M, H, W32\]"),
        ({"masks": torch.zeros(3, 0, 1).int()}, "^masks must be int32"),
        ({"mask_index": torch.zeros(3).long()}, r"^mask_index must be int64 \[4\]"),
        ({"mask_index": torch.zeros(4).int()}, "^mask_index must be int64"),
        ({"points": torch.zeros(2, 11, 2)}, r"^points must be .* \[1 or 4, K, 2\]"),
        ({"points": torch.zeros(4, 0, 2)}, "^points must be"),
        ({"points": torch.zeros(4, 11, 2).half()}, "^points must be float32 or float64"),
        ({"points": torch.zeros(4, 11, 2, device="meta")}, "^points is on meta, logits on cpu"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    logits, masks, index, points = make_case()
    arguments = {"logits": logits, "masks": pack_bits(masks), "mask_index": index} | {
        "points": points
    }
    with pytest.raises(ValueError, match=message):
        point_losses(**arguments | change)
