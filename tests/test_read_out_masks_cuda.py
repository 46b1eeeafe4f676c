"""The CUDA kernels of read_out_masks: emulated, and on a GPU if there is one.

Where a value is within rounding of 0, the bits of the masks depend on the order of operations. On
a GPU the definition runs PyTorch's CUDA kernel, whose order is spelled out here in numpy.
Emulated runs call the launchers of csrc/kernels; the host in csrc/cuda is met on a GPU only.
"""

import functools

import emulated
import numpy as np
import pytest
import torch
from emulated import SCALARS, needs_emulator, needs_gpu

from fastinst.ops.bits import pack_bits, packed_length
from fastinst.ops.read_out_masks import definition, mask_boxes

# A network's: logits at an eighth, padded at the right and at the bottom, made smaller or larger.
SMALLER = ((10, 14), (80, 112), (77, 101), (51, 67))
LARGER = ((5, 6), (40, 48), (40, 43), (61, 64))

SOURCE = """
#include "kernels/read_out_masks.cuh"

namespace fastinst {

template <typename T>
void read_out(const T* logits, int count, int h, int w, int padded_height, int padded_width,
              int image_height, int image_width, int height, int width, unsigned* words,
              unsigned char* masks, Measure<Accumulate<T>>* measures, Accumulate<T>* scores,
              long long* areas, long long* boxes) {
  using A = Accumulate<T>;
  launch_read_out<T>({logits, resize_between<A>(h, w, padded_height, padded_width),
                      resize_between<A>(image_height, image_width, height, width), count, height,
                      width, words, masks, measures}, nullptr);
  launch_add_up<A>({measures, count, ceil_div(height, kBandRows), scores, areas, boxes}, nullptr);
}

}  // namespace fastinst
"""


@functools.cache
def kernels():
    entries = [f"EMULATED({name}, fastinst::read_out<{name}>)" for name in SCALARS.values()]
    return emulated.build(SOURCE + "\n".join(entries))


def emulate(logits, padded, image, output, packed=False):
    """What the CUDA host does."""
    count, (height, width) = len(logits), output
    exact = torch.promote_types(logits.dtype, torch.float32)
    words = torch.empty(count, height, packed_length(width), dtype=torch.int32) if packed else None
    masks = None if packed else torch.empty(count, height, width, dtype=torch.bool)
    measures = torch.empty(count * -(-height // 16), 8 if exact == torch.float32 else 5).to(exact)
    scores, areas = torch.empty(count, dtype=exact), torch.empty(count, dtype=torch.int64)
    boxes = torch.empty(count, 4, dtype=torch.int64)
    getattr(kernels(), SCALARS[logits.dtype])(
        *(logits.contiguous(), *logits.shape, *padded, *image, *output),
        *(words, masks, measures, scores, areas, boxes),
    )
    return words if packed else masks, scores, areas, boxes


def run_on_gpu(logits, *sizes, packed=False):
    results = torch.ops.fastinst.read_out_masks(logits.cuda(), *sizes, packed)
    return tuple(x.cpu() for x in results)


@pytest.fixture(
    params=[pytest.param(emulate, marks=needs_emulator), pytest.param(run_on_gpu, marks=needs_gpu)],
    ids=["emulated", "gpu"],
)
def read_out(request):
    return request.param


def fused(a, b, c):
    """a * b + c of float32, rounded once: float64 holds the product."""
    return (np.float64(a) * b + c).astype(np.float32)


def resize_as_cuda(image, size):
    """upsample_bilinear2d of [N, h, w] float32 in PyTorch's CUDA kernel, as nvcc fuses it."""
    if image.shape[1:] == size:
        return image

    def taps(source, result):
        scale = np.float32(source) / np.float32(result)
        at = np.maximum(fused(np.arange(result) + np.float32(0.5), scale, np.float32(-0.5)), 0)
        first = at.astype(np.int32)
        weight = (at - first).astype(np.float32)
        return first, np.minimum(first + 1, source - 1), np.float32(1) - weight, weight

    top, bottom, top_weight, bottom_weight = taps(image.shape[1], size[0])
    left, right, left_weight, right_weight = taps(image.shape[2], size[1])

    def along_x(rows):
        return fused(left_weight, rows[:, :, left], right_weight * rows[:, :, right])

    top_weight, bottom_weight = top_weight[:, None], bottom_weight[:, None]
    return fused(top_weight, along_x(image[:, top]), bottom_weight * along_x(image[:, bottom]))


def values_as_cuda(logits, padded, image, output):
    values = resize_as_cuda(logits.float().numpy(), padded)[:, : image[0], : image[1]]
    return torch.from_numpy(resize_as_cuda(values, output))


def expect(read_out, logits, padded, image, output):
    """All four results, in both forms of the masks. Returns the values that were thresholded."""
    values = values_as_cuda(logits, padded, image, output)
    masks, scores, areas, boxes = read_out(logits, padded, image, output)
    assert torch.equal(masks, values > 0)
    expect_measures(masks, scores, areas, boxes, values)
    words, *measures = read_out(logits, padded, image, output, packed=True)
    assert torch.equal(words, pack_bits(masks))
    for one, other in zip(measures, (scores, areas, boxes), strict=True):
        assert torch.equal(one, other)
    return values


def expect_measures(masks, scores, areas, boxes, values):
    assert torch.equal(areas, masks.sum(dim=(1, 2)))
    assert torch.equal(boxes, mask_boxes(masks))
    inside = torch.where(masks, values.double().sigmoid(), 0).sum(dim=(1, 2))
    # Each sigmoid and each of the some 20 roundings of a sum in tree order: units of 2^-24.
    torch.testing.assert_close(
        scores.double(), inside / (areas + 1e-6), rtol=40 * 2**-24, atol=1e-12
    )


@pytest.mark.parametrize("sizes", [SMALLER, LARGER])
def test_random_logits(read_out, sizes):
    size, *others = sizes
    expect(read_out, 4 * torch.randn(3, *size), *others)


@pytest.mark.parametrize("magnitude", [1.0, 1e-42])
@pytest.mark.parametrize("sizes", [SMALLER, LARGER])
def test_where_rounding_decides(read_out, sizes, magnitude):
    """Columns of logits of alternating sign that cancel, but for rounding, in one of the masks'."""
    size, *others = sizes
    columns = torch.zeros(2, *size)
    columns[0, :, ::2] = columns[1, :, 1::2] = 1
    even, odd = values_as_cuda(columns, *others)[:, 0]
    where = torch.randint(len(even), (40,))
    where = where[(even[where] - odd[where]).abs() < 0.8]
    ratio = (even / odd)[where, None, None]
    rows = magnitude * torch.randn(len(where), size[0], 1)
    values = expect(read_out, rows * (columns[0] - ratio * columns[1]), *others)
    undecided = values[values.abs() < max(4e-6 * magnitude, 1e-44)]
    assert (undecided > 0).sum() > 50 and (undecided < 0).sum() > 50


def test_agrees_with_the_definition(read_out):
    size, *others = SMALLER
    logits = 4 * torch.randn(2, *size, dtype=torch.float64)
    masks, scores, areas, boxes = read_out(logits, *others)
    expected = definition(logits, *map(list, others), False)
    assert torch.equal(masks, expected[0])
    torch.testing.assert_close(scores, expected[1], rtol=1e-13, atol=0)
    assert torch.equal(areas, expected[2]) and torch.equal(boxes, expected[3])


@needs_gpu
@pytest.mark.parametrize("sizes", [SMALLER, LARGER])
def test_numpy_has_the_order_of_pytorch(sizes):
    size, *others = sizes
    logits = torch.randn(9, *size)
    exact = values_as_cuda(logits, *others)
    logits = logits.cuda()[:, None]
    padded = torch.nn.functional.interpolate(logits, size=others[0], mode="bilinear")
    padded = padded[:, :, : others[1][0], : others[1][1]]
    values = torch.nn.functional.interpolate(padded, size=others[2], mode="bilinear")
    assert torch.equal(values[:, 0].cpu(), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits(read_out, dtype):
    size, *others = SMALLER
    expect(read_out, (4 * torch.randn(2, *size)).to(dtype), *others)


@pytest.mark.parametrize("width", [1, 31, 32, 33, 48, 97])
def test_widths(read_out, width):
    expect(read_out, torch.randn(2, 4, 5), (32, 40), (32, 39), (17, width))


@pytest.mark.parametrize(
    ("size", "padded", "image", "output"),
    [
        ((9, 7), (9, 7), (9, 7), (9, 7)),
        ((9, 7), (9, 7), (8, 7), (20, 31)),
        ((9, 7), (18, 21), (18, 21), (18, 21)),
        ((9, 7), (18, 21), (15, 16), (15, 16)),
        ((9, 70), (18, 21), (15, 16), (15, 16)),  # the first resize shrinks
        ((90, 7), (18, 21), (18, 20), (40, 30)),
        ((1, 1), (8, 8), (5, 8), (3, 4)),
        ((6, 6), (48, 48), (1, 1), (5, 5)),
        ((6, 6), (48, 48), (48, 48), (1, 1)),
    ],
)
def test_unusual_sizes(read_out, size, padded, image, output):
    expect(read_out, torch.randn(2, *size), padded, image, output)


def test_empty_and_full_masks(read_out):
    size, *others = LARGER
    logits = torch.full((3, *size), -1.0)
    logits[0] = 2.0
    logits[2, 2, 3] = 40.0
    values = expect(read_out, logits, *others)
    areas = (values > 0).sum(dim=(1, 2))
    assert areas[0] == values[0].numel() and areas[1] == 0 and 0 < areas[2] < areas[0]


def test_a_band_without_a_positive_logit(read_out):
    logits = torch.full((1, 12, 4), -1.0)
    logits[0, 5] = torch.tensor([3.0, -2.0, 1.0, 0.0])
    expect(read_out, logits, (96, 32), (96, 32), (96, 32))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan"), 3e38, 1e-39, 0.0])
def test_special_values(read_out, special):
    size, *others = LARGER
    logits = torch.randn(2, *size)
    logits[0, 1:3, 2] = special
    logits[1] *= 1e-39
    values = values_as_cuda(logits, *others)
    masks, *_ = read_out(logits, *others)
    assert torch.equal(masks, values > 0)


def test_sums_that_overflow(read_out):
    """Where the weights of three taps add up to more than 1, and those of PyTorch do not."""
    largest = torch.finfo(torch.float32).max
    logits = torch.where(torch.rand(9, 5, 6) < 0.5, largest, -largest)
    sizes = ((37, 45), (37, 45), (61, 64))
    values = values_as_cuda(logits, *sizes)
    assert values.isfinite().all()
    assert torch.equal(read_out(logits, *sizes)[0], values > 0)


def test_a_resize_to_the_same_size_copies(read_out):
    """Interpolation would multiply infinity by 0."""
    logits = torch.randn(1, 5, 6)
    logits[0, 2, 3] = float("inf")
    masks, *_ = read_out(logits, (5, 6), (5, 6), (5, 6))
    assert torch.equal(masks, logits > 0)


def test_no_mask(read_out):
    logits = torch.empty(0, 5, 6)
    masks, scores, areas, boxes = read_out(logits, (40, 48), (40, 48), (9, 9))
    assert masks.shape == (0, 9, 9) and len(scores) == len(areas) == len(boxes) == 0
