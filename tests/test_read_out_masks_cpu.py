"""The CPU kernel of ops.read_out_masks against the definition: the same masks, bit for bit."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import DTYPES, assert_threads_do_not_matter, skip_unless_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst import ops
from fastinst.ops.kernels import instruction_set

pytestmark = skip_unless_compiled("read_out_masks")

module = importlib.import_module("fastinst.ops.read_out_masks")  # the name in ops is the function

# Logits, padded input, image in it, output. PyTorch resizes in another way to outputs of at most
# 128 rows and columns together.
SIZES = {
    "smaller": ((10, 14), (80, 112), (77, 101), (58, 76)),
    "larger": ((10, 14), (80, 112), (77, 101), (100, 131)),
    "small": ((5, 7), (40, 56), (37, 50), (29, 41)),
    "halves": ((8, 12), (64, 96), (64, 96), (32, 48)),
    "the same": ((9, 150), (9, 150), (9, 150), (9, 150)),
    "one pixel": ((1, 1), (8, 8), (1, 1), (70, 67)),
    "cropped to a pixel": ((6, 5), (48, 40), (1, 1), (5, 3)),
    "to a pixel": ((6, 5), (48, 40), (41, 33), (1, 1)),
    "shrunk first": ((40, 70), (13, 17), (11, 16), (130, 7)),
}
INFINITY = float("inf")


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with torch.device("cpu"):
        yield


def antisymmetric(*size):
    """Exactly 0 along the middle, if rounding lets it be."""
    logits = torch.randn(*size)
    logits = logits - logits.flip(2)
    return logits - logits.flip(1)


def sprinkled(logits, *values):
    """With each of the values at one pixel in thirty."""
    for value in values:
        logits[torch.rand(logits.shape) < 1 / 30] = value
    return logits


# Logits [N, h, w] whose resized values are often 0, or nearly.
PATTERNS = {
    "noise": torch.randn,
    "signs": lambda *size: torch.randint(-1, 2, size).float(),
    "checkerboard": lambda n, h, w: (
        (torch.arange(h)[:, None] + torch.arange(w)) % 2 * 2 - 1.0
    ).repeat(n, 1, 1),
    "antisymmetric": antisymmetric,
    "multiples": lambda n, h, w: torch.randint(-13, 14, (n, h, w)) * torch.rand(n, 1, 1),
    "zeros": lambda *size: torch.where(torch.rand(size) < 0.3, -0.0, 0.0),
    "tiny": lambda *size: torch.randn(size) * 1e-38,
    "huge": lambda *size: (torch.randn(size) * 1e38).clamp(-3.4e38, 3.4e38),
    "infinite": lambda *size: sprinkled(torch.randn(size), INFINITY, -INFINITY),
    "negative and infinite": lambda *size: sprinkled(-torch.rand(size), -INFINITY),
    "nan": lambda *size: sprinkled(torch.randn(size), float("nan")),
}


def assert_same(logits, padded, image, output):
    """Masks, areas and boxes equal; scores up to twice the definition's own error."""
    sizes = [list(padded), list(image), list(output)]
    exact = module.definition(logits.double(), *sizes, False)
    plain = module.definition(logits, *sizes, False)
    for packed in (False, True):
        expected = module.definition(logits, *sizes, packed)
        actual = ops.read_out_masks(logits, padded, image, output, packed)
        assert torch.equal(actual.masks, expected[0])
        assert torch.equal(actual.areas, expected[2])
        assert torch.equal(actual.boxes, expected[3])
        assert actual.scores.dtype == expected[1].dtype
        # A mask that rounding made another one than the exact mask has another score.
        told = plain[2] == exact[2]
        assert torch.equal(actual.scores.isnan(), plain[1].isnan())
        error = (actual.scores - exact[1])[told].nan_to_num().abs()
        bound = 2 * (plain[1] - exact[1])[told].nan_to_num().abs().max() if told.any() else 0
        # A score is at most 1. Plain is exact now and then; in float64 it is the reference itself,
        # and the sums of both over some hundred rows round, each in its order.
        roundings = 64 if plain[1].dtype == torch.float64 else 4
        assert (error <= bound + roundings * torch.finfo(plain[1].dtype).eps).all()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_equals_the_definition(pattern, sizes):
    for dtype in (torch.float32, torch.float64):
        assert_same(pattern(3, *sizes[0]).to(dtype), *sizes[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1, 30])
def test_every_dtype(dtype, scale):
    for sizes in (SIZES["smaller"], SIZES["small"]):
        logits = (scale * torch.randn(4, *sizes[0])).to(dtype)
        assert_same(logits, *sizes[1:])


side = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(side, side),
    factors=st.tuples(*4 * [st.floats(0.3, 8)]),
    crop=st.tuples(side, side),
    pattern=st.sampled_from(sorted(PATTERNS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(size, factors, crop, pattern, dtype, seed):
    torch.manual_seed(seed)
    padded = [max(1, int(n * f)) for n, f in zip(size, factors[:2], strict=True)]
    image = [max(1, n - c + 1) for n, c in zip(padded, crop, strict=True)]
    output = [max(1, min(300, int(n * f))) for n, f in zip(image, factors[2:], strict=True)]
    assert_same(PATTERNS[pattern](2, *size).to(dtype), padded, image, output)


def test_at_the_size_of_a_photograph():
    """By 8, cropped, by 0.75; more than one band of rows; objects here and there."""
    blobs = F.interpolate(torch.randn(1, 5, 10, 14), size=(80, 108), mode="bicubic")[0] * 5 - 3
    assert_same(blobs, (640, 864), (640, 854), (480, 640))
    assert_same(blobs[:2], (640, 864), (640, 854), (832, 1110))


def test_rounding_decides_as_in_the_definition():
    """By 7, weights are fourteenths, and of multiples of one number many sums are 0 but for
    rounding. Whether products are fused into sums then decides of signs."""
    multiples = PATTERNS["multiples"](200, 10, 14)
    for logits, size in ((multiples, [70, 98]), (multiples[:, :5, :7], [35, 49])):
        masks = ops.read_out_masks(logits, size, size, size).masks
        assert torch.equal(masks, module.definition(logits, size, size, size, False)[0])
        exact = module.definition(logits.double(), size, size, size, False)
        assert not torch.equal(masks, exact[0])


def test_where_a_resize_reads_is_rounded_to_float32():
    """By 3, some pixels read exactly one other, or by float64's rounding nearly: PyTorch takes the
    floor in float32 there, too."""
    for dtype in (torch.float32, torch.float64):
        assert_same(antisymmetric(20, 2, 9).to(dtype), (2, 9), (2, 9), (2, 27))
        assert_same(antisymmetric(20, 9, 2).to(dtype), (27, 2), (27, 2), (81, 90))


def test_the_mask_of_padding_is_empty():
    logits = torch.full((1, 4, 4), -1.0)
    logits[:, :, 3:] = 5.0
    read = ops.read_out_masks(logits, (32, 32), (32, 16), (96, 96))
    assert not read.masks.any() and read.boxes.tolist() == [[0] * 4]


def test_no_masks():
    read = ops.read_out_masks(torch.empty(0, 4, 4), (32, 32), (30, 31), (7, 90), packed=True)
    assert [tuple(x.shape) for x in read] == [(0, 7, 3), (0,), (0,), (0, 4)]


def test_memory_layout_does_not_matter():
    sizes, logits = SIZES["larger"], torch.randn(6, 10, 14)
    expected = ops.read_out_masks(logits, *sizes[1:])
    odd = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for strided, step in ((odd, 1), (logits[::2], 2)):
        actual = ops.read_out_masks(strided, *sizes[1:])
        assert all(torch.equal(a, b[::step]) for a, b in zip(actual, expected, strict=True))


def test_threads_do_not_change_a_bit():
    sizes, logits = SIZES["larger"], torch.randn(5, 10, 14)
    assert_threads_do_not_matter(lambda: ops.read_out_masks(logits, *sizes[1:]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_registration(count, packed):
    sizes = [list(size) for size in SIZES["smaller"][1:]]
    args = (torch.randn(count, 10, 14), *sizes, packed)
    torch.library.opcheck(torch.ops.fastinst.read_out_masks.default, args)


@pytest.mark.parametrize(("own", "of_torch"), [("baseline", "avx2"), ("avx2", "default")])
def test_other_instruction_sets(own, of_torch):
    """PyTorch too has several; one fuses no products, and rounds otherwise. Each here with a kernel
    that has what PyTorch lacks, or lacks what it has."""
    if instruction_set() == "baseline":
        pytest.skip("the only one that this processor has")
    tests = "(equals and (smaller or small)) or rounding or rounded"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", tests]
    environment = os.environ | {"FASTINST_ISA": own, "ATEN_CPU_CAPABILITY": of_torch}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
