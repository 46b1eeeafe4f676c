"""The chosen points against sorting in Python."""

import math

import pytest
import torch
from test_matcher import bilinear
from test_random_points import point

from fastinst.ops import bilinear as sampling
from fastinst.ops import uncertain_points

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEEDS = torch.tensor([5, -7, 2**62 + 12345])


def make_logits(dtype=torch.float64):
    return (5 * torch.randn(3, 4, 6, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [(20, 50, 12), (20, 20, 20), (7, 30, 0), (5, 4, 4)])
def test_the_most_uncertain_candidates_come_first_then_random_ones(dtype, numbers):
    count, num_candidates, num_important = numbers
    logits = make_logits(dtype)
    points = uncertain_points(logits, SEEDS, *numbers)
    assert points.shape == (3, count, 2) and points.dtype == torch.float32
    for mine, map_, seed in zip(points.tolist(), logits.double().tolist(), SEEDS, strict=True):
        drawn = [point(i, int(seed)) for i in range(num_candidates + count - num_important)]
        candidates = range(num_candidates)
        by_size = sorted(candidates, key=lambda i: abs(bilinear(map_, *drawn[i])))  # noqa: B023
        chosen = sorted(by_size[:num_important])
        assert mine == [drawn[i] for i in chosen] + drawn[num_candidates:]


def test_of_equal_candidates_the_earlier_are_taken():
    """All samples but those near the border are 1; 0 would not tell them from those outside."""
    points = uncertain_points(torch.zeros(1, 4, 4), SEEDS[:1], 10, 30, 10)
    assert points[0].tolist() == [point(i, int(SEEDS[0])) for i in range(10)]


def test_outside_the_map_counts_as_zero():
    """So that the border is uncertain on a map that is not."""
    points = uncertain_points(torch.full((1, 2, 2), 9.0), SEEDS[:1], 40, 400, 40)[0]
    distance = torch.minimum(points, 1 - points).amin(dim=1)
    assert distance.max() < 0.1


def test_not_a_number_is_chosen_last():
    """And is no reason to stop: the loss must show it."""
    logits = torch.full((1, 8, 8), math.inf)
    logits[..., :4] = math.nan
    logits[..., 7] = 3.0
    candidates = torch.tensor([point(i, int(SEEDS[0])) for i in range(300)])
    finite = candidates[:, 0] > 7.51 / 8
    number = int(finite.sum())
    assert 0 < number < 300
    points = uncertain_points(logits, SEEDS[:1], number, 300, number)[0]
    assert torch.equal(points, candidates[finite])
    assert uncertain_points(logits, SEEDS[:1], 300, 300, 300)[0].tolist() == candidates.tolist()


@pytest.mark.parametrize("important", [0.0, 0.75, 1.0])
def test_points_gather_where_the_logit_is_nearest_zero(important):
    """In the left half; half of the random ones lie there too."""
    logits = torch.full((2, 8, 8), -9.0)
    logits[..., :4] = 0.1
    points = uncertain_points(logits, SEEDS[:2], 1000, 3000, int(1000 * important))
    assert points.min() >= 0 and points.max() <= 1
    left = (points[..., 0] < 0.5).double().mean().item()
    assert left == pytest.approx(important + (1 - important) / 2, abs=0.05)


def test_points_do_not_depend_on_the_chunks(monkeypatch):
    logits = make_logits()
    expected = uncertain_points(logits, SEEDS, 20, 50, 12)
    monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", 100)
    assert torch.equal(uncertain_points(logits, SEEDS, 20, 50, 12), expected)


def test_points_of_no_maps_and_no_points():
    assert uncertain_points(torch.empty(0, 4, 6), SEEDS[:0], 20, 50, 12).shape == (0, 20, 2)
    assert uncertain_points(make_logits(), SEEDS, 0, 50, 0).shape == (3, 0, 2)


def test_points_have_no_gradient():
    assert not uncertain_points(make_logits().requires_grad_(), SEEDS, 20, 50, 12).requires_grad


def test_definition_and_fake_agree():
    for dtype in DTYPES:
        arguments = (make_logits(dtype).requires_grad_(), SEEDS, 20, 50, 12)
        torch.library.opcheck(torch.ops.fastinst.uncertain_points, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 24)}, r"^logits must be floating-point \[P, h, w\]"),
        ({"logits": torch.zeros(3, 4, 6).int()}, "^logits must be floating-point"),
        ({"logits": torch.zeros(3, 0, 6)}, "^logits must be floating-point"),
        ({"seeds": torch.zeros(2).long()}, r"^seeds must be int64 \[3\]"),
        ({"seeds": torch.zeros(3).int()}, "^seeds must be int64"),
        ({"seeds": torch.zeros(3, device="meta").long()}, "^seeds are on meta, logits on cpu"),
        ({"num_important": 21}, r"^num_important must be in 0\.\.20, got 21"),
        ({"num_candidates": 11}, r"^num_important must be in 0\.\.11, got 12"),
        ({"num_important": -1}, r"^num_important must be in 0\.\.20"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"logits": make_logits(), "seeds": SEEDS, "num_points": 20}
    arguments |= {"num_candidates": 50, "num_important": 12} | change
    with pytest.raises(ValueError, match=message):
        uncertain_points(**arguments)
