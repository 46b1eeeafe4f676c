import pytest
import torch

from fastinst.ops import random_points

SEEDS = [0, 1, 2**31, 2**32, 2**63 - 1, -1, -(2**63), 123456789123456789]


def point(number, seed):
    """In Python's integers."""
    low, high = seed % 2**32, (seed >> 32) % 2**32
    x = (number * 0x9E3779B9 + low) % 2**32 ^ high
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    x ^= x >> 16
    return [(x % 2**16 + 0.5) / 2**16, (x // 2**16 + 0.5) / 2**16]


@pytest.mark.parametrize("start", [0, 37632, 2**32 - 20])
def test_points_are_those_of_the_definition(start):
    points = random_points(torch.tensor(SEEDS), 40, start)
    assert points.dtype == torch.float32
    expected = [[point(number, seed) for number in range(start, start + 40)] for seed in SEEDS]
    assert points.tolist() == expected


def test_later_points_are_those_of_a_longer_draw():
    seeds = torch.tensor(SEEDS)
    assert torch.equal(random_points(seeds, 10, 30), random_points(seeds, 40)[:, 30:])


def test_no_seeds_and_no_points():
    assert random_points(torch.empty(0, dtype=torch.int64), 5).shape == (0, 5, 2)
    assert random_points(torch.tensor(SEEDS), 0).shape == (len(SEEDS), 0, 2)


def test_points_are_evenly_distributed_and_do_not_depend_on_each_other():
    """Chi-squared over 16 x 16 cells, and over the cells of pairs of coordinates of neighbouring
    points, seeds and streams: each is within 5 standard deviations of the mean of 255.
    """
    count = 65536
    seeds = torch.tensor([12345, 12346, 12345 + (1 << 32), 12345 + (1 << 48)])
    points = (random_points(seeds, count + 1) * 16).long()
    x, y = points[0, :-1].unbind(1)
    pairs = {
        "x and y": (x, y),
        "next x": (x, points[0, 1:, 0]),
        "next y": (y, points[0, 1:, 1]),
        **{f"seed {i}": (x, points[i, :-1, 0]) for i in (1, 2, 3)},
    }
    for name, (a, b) in pairs.items():
        counts = torch.bincount(16 * a + b, minlength=256).double()
        chi_squared = ((counts - count / 256) ** 2).sum().item() / (count / 256)
        assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5, name
