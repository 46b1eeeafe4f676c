"""The CPU kernel of ops.uncertain_points against the definition: the same points.

A kernel may round samples otherwise, and so choose another one of two candidates that differ by
rounding only. Nothing else may differ.
"""

import importlib

import pytest
import torch
from cpu_kernels import DTYPES, assert_threads_do_not_matter, run_lowered, skip_unless_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst import ops
from fastinst.ops.bilinear import sample_maps

pytestmark = skip_unless_compiled("uncertain_points")

module = importlib.import_module("fastinst.ops.uncertain_points")

INFINITY = float("inf")


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def sprinkled(logits, *values):
    """With each of the values at one pixel in ten."""
    for value in values:
        logits[torch.rand(logits.shape) < 0.1] = value
    return logits


PATTERNS = {
    "noise": torch.randn,
    "one sign": torch.rand,
    "signs": lambda *size: torch.randint(-1, 2, size).float(),
    "constant": lambda *size: torch.full(size, -2.0),
    "zeros": lambda *size: torch.where(torch.rand(size) < 0.3, -0.0, 0.0),
    "tiny": lambda *size: torch.randn(size) * 1e-38,
    "huge": lambda *size: torch.randn(size) * 1e37,
    "infinite": lambda *size: sprinkled(torch.randn(size), INFINITY, -INFINITY),
    "nan": lambda *size: sprinkled(torch.randn(size), float("nan")),
    "all nan": lambda *size: torch.full(size, float("nan")),
}


def assert_same(logits, seeds, points, candidates, important):
    counts = (points, candidates, important)
    actual = ops.uncertain_points(logits, seeds, *counts)
    expected = module.definition(logits, seeds, *counts)
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert torch.equal(actual[:, important:], expected[:, important:])
    for i in (actual != expected).flatten(1).any(1).nonzero().flatten().tolist():
        drawn = ops.random_points(seeds[i : i + 1], candidates)
        chosen, other = (set(map(tuple, x[i, :important].tolist())) for x in (actual, expected))
        rest = iter(drawn[0].tolist())
        assert all(point in rest for point in actual[i, :important].tolist()), "out of order"
        exact = magnitudes(logits[i], drawn[0])
        limit = exact.kthvalue(important).values
        doubtful = magnitudes(logits[i], torch.tensor(sorted(chosen ^ other)))
        precision = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
        assert ((doubtful - limit).abs() <= 8 * precision * logits[i].abs().max()).all()


def magnitudes(logits, points):
    return sample_maps(logits[None, None].double(), points[None].double()).flatten().abs()


def random_seeds(count):
    return torch.randint(-(2**63), 2**63 - 1, (count,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_equals_the_definition(pattern, dtype):
    for size in ((16, 16), (5, 27), (1, 1)):
        assert_same(pattern(3, *size).to(dtype), random_seeds(3), 150, 601, 113)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(32, 32), (80, 108), (3, 300)])
def test_as_many_points_as_in_training(size, dtype):
    assert_same(torch.randn(2, *size).to(dtype), random_seeds(2), 12544, 37632, 9408)


@pytest.mark.parametrize("pattern", ["zeros", "signs", "nan", "all nan"])
def test_as_many_points_with_equal_samples(pattern):
    assert_same(PATTERNS[pattern](2, 20, 24), random_seeds(2), 5000, 15000, 3750)


def test_first_candidates_unlike_the_others():
    """The kernel expects the n-th key where it lies among the first candidates. Here those are 0 to
    more than n, or larger than all others."""
    seeds = torch.tensor([77])
    first = ops.random_points(seeds, 1024)[0]
    for low, high in ((0.0, 1.0), (1.0, 0.0)):
        logits = torch.rand(1, 512, 512) + 2 * high
        for dx in (-0.5, 0.5):
            for dy in (-0.5, 0.5):
                column = (first[:, 0] * 512 + dx).clamp(0, 511).long()
                row = (first[:, 1] * 512 + dy).clamp(0, 511).long()
                logits[0, row, column] = 5 * low
        assert_same(logits, seeds, 3000, 5000, 2000)


@pytest.mark.parametrize("counts", [(0, 0, 0), (7, 0, 0), (7, 9, 0), (9, 9, 9), (5, 9, 1)])
def test_few_points(counts):
    assert_same(torch.randn(2, 4, 6), random_seeds(2), *counts)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    counts=st.lists(st.integers(0, 5000), min_size=3, max_size=3).map(sorted),
    pattern=st.sampled_from(sorted(PATTERNS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_sizes(size, counts, pattern, dtype, seed):
    torch.manual_seed(seed)
    important, points, candidates = counts
    logits = PATTERNS[pattern](1, *size).to(dtype)
    assert_same(logits, torch.tensor([seed]), points, candidates, important)


def test_no_maps():
    points = ops.uncertain_points(torch.empty(0, 4, 4), random_seeds(0), 8, 24, 6)
    assert points.shape == (0, 8, 2)


def test_memory_layout_does_not_matter():
    logits, seeds = torch.randn(6, 9, 14), random_seeds(6)
    expected = ops.uncertain_points(logits, seeds, 100, 300, 75)
    odd = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(ops.uncertain_points(odd, seeds, 100, 300, 75), expected)
    every_second = ops.uncertain_points(logits[::2], seeds[::2], 100, 300, 75)
    assert torch.equal(every_second, expected[::2])


def test_threads_do_not_change_a_bit():
    logits, seeds = torch.randn(5, 10, 14), random_seeds(5)
    assert_threads_do_not_matter(lambda: [ops.uncertain_points(logits, seeds, 100, 300, 75)])


@pytest.mark.parametrize("count", [0, 3])
def test_registration(count):
    args = (torch.randn(count, 10, 14), random_seeds(count), 20, 60, 15)
    torch.library.opcheck(torch.ops.fastinst.uncertain_points.default, args)


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lesser_instruction_sets(name):
    run_lowered(name, __file__, "equal or training or unlike or few")
