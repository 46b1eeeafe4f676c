"""The CPU kernel of ops.select_queries against the definition."""

import importlib

import pytest
import torch
from cpu_kernels import DTYPES, assert_threads_do_not_matter, run_lowered, skip_unless_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst import ops

pytestmark = skip_unless_compiled("select_queries")

module = importlib.import_module("fastinst.ops.select_queries")  # the name in ops is the function

# Images, classes, size, channels, chosen. 16 pixels are a vector, 64 a block.
CASES = {
    "odd": (2, 3, (5, 7), 4, 11),
    "as in the model": (1, 80, (40, 54), 256, 100),
    "one class": (3, 1, (9, 17), 19, 20),
    "one row": (2, 17, (1, 67), 5, 13),
    "one column": (2, 17, (67, 1), 5, 13),
    "one pixel": (2, 16, (1, 1), 3, 1),
    "all": (1, 33, (11, 13), 2, 143),
}
NAMES = list(CASES)


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def make_case(name="odd", dtype=torch.float32, shared=True):
    """Class logits, features, positions (one map if shared, else one for each image), number."""
    batch, classes, size, channels, count = CASES[name]
    return (
        (2 * torch.randn(batch, classes + 1, *size)).to(dtype),
        torch.randn(batch, channels, *size).to(dtype),
        torch.randn(1 if shared else batch, channels, *size).to(dtype),
        count,
    )


def assert_same(actual, expected):
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def assert_as_good(actual, logits, features, positions, count, local_maximum_first):
    """Features and positions of the chosen pixels, no other of which is better by more than
    rounding."""
    indices = actual[2]
    assert torch.equal(actual[0], module._gather(features, indices))
    assert torch.equal(actual[1], module._gather(positions, indices))
    assert (indices.diff() > 0).all()
    rank = ops.activation_rank(logits.double(), local_maximum_first)
    plain = ops.activation_rank(logits, local_maximum_first)
    # A local maximum by less than rounding is one or is not.
    told = (plain - rank).abs() < 0.5
    chosen = torch.zeros_like(told).scatter(1, indices, True)
    error = (plain - rank)[told].abs().max() + torch.finfo(plain.dtype).eps
    for ranks, yes, known in zip(rank, chosen, told, strict=True):
        if (yes & known).any() and (~yes & known).any():
            assert ranks[yes & known].min() >= ranks[~yes & known].max() - 2 * error
    assert chosen.sum() == len(indices) * count


@pytest.mark.parametrize("local_maximum_first", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(name, dtype, local_maximum_first):
    case = make_case(name, dtype, shared=False)
    actual = ops.select_queries(*case, local_maximum_first=local_maximum_first)
    if dtype == torch.float64:  # random logits are far enough from each other
        assert_same(actual, module.definition(*case, local_maximum_first))
    assert_as_good(actual, *case, local_maximum_first)


side = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(side, side),
    classes=st.integers(1, 40),
    levels=st.integers(1, 6),
    first=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_ties(size, classes, levels, first, seed, data):
    """Pixels of few different logits: equal ranks everywhere, in any lane, and the first wins."""
    generator = torch.Generator().manual_seed(seed)
    count = data.draw(st.integers(1, size[0] * size[1]))
    kinds = torch.randn(levels, classes + 1, generator=generator)
    kind = torch.randint(levels, size, generator=generator)
    logits = kinds[kind].permute(2, 0, 1)[None]  # channels-last
    maps = torch.randn(1, 3, *size, generator=generator)
    expected = choice(*kinds.double().softmax(1)[:, :-1].max(1), kind, count, first)
    for layout in (logits, logits.contiguous()):
        assert ops.select_queries(layout, maps, maps, count, first)[2].tolist() == [expected]


def choice(probability, best, kind, count, local_maximum_first):
    """By a loop: PyTorch's own softmax may round equal pixels differently, by their place."""
    height, width = kind.shape
    probability, best, kind = probability.float().tolist(), best.tolist(), kind.tolist()
    ranks = []
    for y in range(height):
        for x in range(width):
            own = kind[y][x]
            around = [
                other
                for row in kind[max(y - 1, 0) : y + 2]
                for other in row[max(x - 1, 0) : x + 2]
                if best[other] == best[own]
            ]
            is_maximum = all(probability[other] <= probability[own] for other in around)
            ranks.append(probability[own] + (is_maximum and local_maximum_first))
    by_rank = sorted(range(len(ranks)), key=lambda i: -ranks[i])  # stable
    return sorted(by_rank[:count])


def test_of_equal_pixels_the_first_are_chosen():
    logits = torch.randn(1, 81, 1, 1).expand(-1, -1, 41, 53)
    maps = torch.zeros(1, 1, 41, 53)
    for layout in (logits, logits.contiguous()):
        for count in (1, 100, 2173):
            assert ops.select_queries(layout, maps, maps, count)[2].tolist() == [[*range(count)]]


def test_the_first_of_equal_classes_counts():
    """Pixels 0 and 1 have class 0 and 1 as likely: both are of class 0, so 1 is beaten by 2."""
    logits = torch.full((1, 4, 1, 4), -9.0)
    logits[0, :2, 0, 0], logits[0, :2, 0, 1], logits[0, 0, 0, 2] = 2.0, 1.0, 3.0
    logits[0, 2, 0, 3] = 0.0
    maps = torch.zeros(1, 1, 1, 4)
    expected = module.definition(logits, maps, maps, 2, True)
    assert expected[2].tolist() == [[2, 3]]
    assert_same(ops.select_queries(logits, maps, maps, 2), expected)


@pytest.mark.parametrize("shift", [80.0, 60.0, 10.0])
def test_improbable_pixels(shift):
    """Where no-object wins everywhere, ranks are small numbers and nothing is a maximum."""
    logits, *rest = make_case("as in the model")
    logits[:, -1] += shift
    assert_same(ops.select_queries(logits, *rest), module.definition(logits, *rest, True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(dtype, value):
    """A pixel whose probabilities are NaN comes first, as when PyTorch sorts."""
    logits, *rest = make_case("one class", dtype)
    logits[torch.rand(logits.shape) < 0.05] = value
    assert_same(ops.select_queries(logits, *rest), module.definition(logits, *rest, True))


def layouts(tensor):
    wide = torch.zeros(*tensor.shape[:3], tensor.shape[3] + 3, dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return {
        "channels last": tensor.to(memory_format=torch.channels_last),
        "cropped": wide[..., 1:-2],
        "transposed": torch.stack([*tensor.transpose(2, 3)]).transpose(2, 3),
        "batch last": tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }


@pytest.mark.parametrize("name", ["odd", "one class", "one row", "one column", "as in the model"])
def test_memory_layout_does_not_matter(name):
    case = make_case(name)
    expected = ops.select_queries(*case)
    for argument in range(3):
        for tensor in layouts(case[argument]).values():
            other = [*case[:argument], tensor, *case[argument + 1 :]]
            assert_same(ops.select_queries(*other), expected)


def test_positions_for_every_image():
    case = make_case("one class", shared=False)
    assert_same(ops.select_queries(*case), module.definition(*case, True))


def test_no_images():
    logits, features, positions, count = make_case()
    chosen = ops.select_queries(logits[:0], features[:0], positions, count)
    assert [tuple(x.shape) for x in chosen] == [(0, 11, 4), (0, 11, 4), (0, 11)]


def test_gradients():
    logits, features, positions, count = make_case(dtype=torch.float64)
    tensors = features.requires_grad_(), positions.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *maps: ops.select_queries(logits, *maps, count)[:2], tensors
    )


def test_threads_do_not_matter():
    case = make_case("as in the model")
    assert_threads_do_not_matter(lambda: ops.select_queries(*case))


@pytest.mark.parametrize("name", ["odd", "one class"])
def test_registration(name):
    logits, *maps, count = make_case(name)
    args = (logits, *(m.requires_grad_() for m in maps), count, True)
    torch.library.opcheck(torch.ops.fastinst.select_queries.default, args)


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_lower_instruction_sets(name):
    run_lowered(name, __file__, "equals or ties or layout or extreme")
