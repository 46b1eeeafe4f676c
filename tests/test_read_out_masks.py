"""ops.read_out_masks against the chain of plain operations that defines it."""

import sys

import pytest
import torch
import torch.nn.functional as F

from fastinst.ops import read_out_masks, unpack_bits
from fastinst.ops.read_out_masks import mask_boxes

# The package's function of the same name hides the submodule.
MODULE = sys.modules["fastinst.ops.read_out_masks"]
SIZES = [
    # padded input, image in it, output
    ((64, 96), (61, 90), (61, 90)),
    ((64, 96), (61, 90), (183, 271)),  # larger
    ((64, 96), (61, 90), (13, 17)),  # smaller
    ((64, 96), (64, 96), (127, 31)),  # one side each way
    ((32, 32), (1, 1), (7, 5)),
    ((32, 64), (31, 33), (1, 1)),
]


def make_logits(count=5, size=(8, 12), dtype=torch.float32):
    """Blobs; the second mask is empty, the third full."""
    logits = F.interpolate(torch.randn(1, count, 3, 4), size=size, mode="bicubic")[0] - 0.2
    logits[1:2], logits[2:3] = -1.0, 2.0
    return logits.to(dtype)


def definition(mask_logits, padded_size, image_size, output_size):
    logits = mask_logits[None].to(torch.promote_types(mask_logits.dtype, torch.float32))
    logits = F.interpolate(logits, padded_size, mode="bilinear", align_corners=False)
    logits = logits[..., : image_size[0], : image_size[1]]
    logits = F.interpolate(logits, output_size, mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(1).sum(1)
    return masks, inside / (masks.flatten(1).sum(1).to(inside.dtype) + 1e-6)


def box_definition(mask):
    pixels = mask.nonzero().tolist()
    if not pixels:
        return [0, 0, 0, 0]
    rows, columns = zip(*pixels, strict=True)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equals_the_definition(sizes, dtype):
    logits = make_logits(dtype=dtype, size=(sizes[0][0] // 8, sizes[0][1] // 8))
    read = read_out_masks(logits, *sizes)
    masks, scores = definition(logits, *sizes)
    assert read.scores.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(read.masks, masks)
    torch.testing.assert_close(read.scores, scores)
    assert read.areas.tolist() == [int(mask.sum()) for mask in masks]
    assert read.boxes.tolist() == [box_definition(mask) for mask in masks]
    assert read.areas.dtype == read.boxes.dtype == torch.int64


@pytest.fixture
def threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", SIZES[:3])
@pytest.mark.parametrize("per_chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_do_not_change_a_bit(monkeypatch, threads_restored, sizes, per_chunk, threads):
    """Nor do threads, of which each would sum a part of a mask that is alone in its chunk."""
    logits = make_logits(count=7)
    torch.set_num_threads(threads)
    whole = read_out_masks(logits, *sizes)
    largest = max(sizes[0][0] * sizes[0][1], sizes[2][0] * sizes[2][1])
    monkeypatch.setattr(MODULE, "CHUNK_ELEMENTS", per_chunk * largest)
    chunked = read_out_masks(logits, *sizes)
    assert all(torch.equal(a, b) for a, b in zip(chunked, whole, strict=True))


def test_empty_masks_score_zero():
    read = read_out_masks(torch.full((3, 4, 4), -1.0), (32, 32), (30, 30), (60, 50))
    assert not read.masks.any()
    assert read.scores.tolist() == [0, 0, 0] and read.areas.tolist() == [0, 0, 0]
    assert read.boxes.tolist() == [[0] * 4] * 3


def test_a_logit_of_zero_is_outside():
    assert not read_out_masks(torch.zeros(1, 4, 4), (32, 32), (32, 32), (32, 32)).masks.any()


def test_no_masks():
    read = read_out_masks(torch.empty(0, 4, 4), (32, 32), (30, 31), (7, 9))
    assert [tuple(x.shape) for x in read] == [(0, 7, 9), (0,), (0,), (0, 4)]


def test_padding_is_cut_off():
    """What lies right of and below the image has no part in the masks."""
    logits = torch.full((1, 4, 4), -1.0)
    logits[:, :, 3:] = 5.0
    assert not read_out_masks(logits, (32, 32), (32, 16), (32, 16)).masks.any()


def test_two_resizes_are_not_one():
    logits = torch.randn(5, 8, 12)
    sizes = ((64, 96), (64, 96), (17, 23))
    once = F.interpolate(logits[None], sizes[2], mode="bilinear")[0] > 0
    assert not torch.equal(read_out_masks(logits, *sizes).masks, once)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (4, 0), (0, 6), (4, 6), (2, 3)])
def test_the_box_of_one_pixel(x, y):
    mask = torch.zeros(1, 7, 5, dtype=torch.bool)
    mask[0, y, x] = True
    assert mask_boxes(mask).tolist() == [[x, y, x + 1, y + 1]]


def test_boxes_of_random_masks():
    masks = torch.rand(50, 11, 13) < 0.02
    assert mask_boxes(masks).tolist() == [box_definition(mask) for mask in masks]


def test_memory_layout_does_not_matter():
    logits = make_logits()
    odd = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expected, actual = read_out_masks(logits, *SIZES[1]), read_out_masks(odd, *SIZES[1])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_registration(count, dtype, packed):
    sizes = [list(size) for size in SIZES[1]]
    args = (make_logits(dtype=dtype)[:count], *sizes, packed)
    torch.library.opcheck(torch.ops.fastinst.read_out_masks.default, args)


@pytest.mark.parametrize("sizes", SIZES)
def test_packed_masks_are_the_bits_of_masks(sizes):
    logits = make_logits()
    expected, actual = read_out_masks(logits, *sizes), read_out_masks(logits, *sizes, packed=True)
    assert actual.masks.dtype == torch.int32
    assert torch.equal(unpack_bits(actual.masks, sizes[2][1]), expected.masks)
    assert all(torch.equal(a, b) for a, b in zip(actual[1:], expected[1:], strict=True))


def test_compiled_equals_eager():
    compiled = torch.compile(read_out_masks, fullgraph=True, backend="aot_eager")
    logits = make_logits()
    actual, expected = compiled(logits, *SIZES[1]), read_out_masks(logits, *SIZES[1])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_logits": torch.rand(4, 4)}, "^mask_logits must have shape"),
        ({"mask_logits": torch.rand(2, 0, 4)}, "^mask_logits must have shape"),
        ({"mask_logits": torch.ones(2, 4, 4).bool()}, "^mask_logits must be a floating-point"),
        ({"padded_size": (32, 0)}, "^padded_size must be"),
        ({"image_size": (0, 32)}, "^image_size must be"),
        ({"output_size": (1, 2, 3)}, "^output_size must be"),
        ({"image_size": (33, 32)}, "^image_size .* is larger than padded_size"),
        ({"image_size": (32, 33)}, "^image_size .* is larger than padded_size"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "mask_logits": torch.rand(2, 4, 4),
        "padded_size": (32, 32),
        "image_size": (30, 30),
        "output_size": (60, 60),
    }
    with pytest.raises(ValueError, match=message):
        read_out_masks(**arguments | change)


def test_nothing_has_a_gradient():
    logits = torch.randn(2, 5, 6, requires_grad=True)
    result = read_out_masks(logits, (40, 48), (33, 41), (20, 30))
    assert not any(value.requires_grad for value in result)
