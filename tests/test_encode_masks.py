"""ops.encode_masks against run lengths counted in loops."""

import pycocotools.mask
import pytest
import torch

from fastinst.ops import encode_masks, pack_bits


def run_lengths(mask):
    """COCO's uncompressed counts: column by column, beginning with zeros."""
    counts, last = [0], False
    for value in mask.T.flatten().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def compressed(counts, size):
    """As pycocotools compresses counts."""
    return pycocotools.mask.frPyObjects({"counts": counts, "size": list(size)}, *size)["counts"]


MASKS = {
    "random": lambda h, w: torch.rand(3, h, w) < 0.5,
    "sparse": lambda h, w: torch.rand(3, h, w) < 0.02,
    "none": lambda h, w: torch.zeros(2, h, w, dtype=torch.bool),
    "all": lambda h, w: torch.ones(2, h, w, dtype=torch.bool),
    "checkerboard": lambda h, w: ((torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0)[None],
    "no masks": lambda h, w: torch.zeros(0, h, w, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (13, 33), (64, 32), (31, 65)])
def test_equals_counted_runs(kind, size):
    masks = MASKS[kind](*size)
    expected = [{"size": list(size), "counts": compressed(run_lengths(m), size)} for m in masks]
    assert encode_masks(masks) == expected
    assert encode_masks(pack_bits(masks), size[1]) == expected


def test_decodes_to_the_mask():
    masks = torch.zeros(2, 300, 200, dtype=torch.bool)
    masks[0, 20:280, 30:170] = True  # long runs, of several characters each
    masks[1, 299, 199] = True
    for mask, code in zip(masks, encode_masks(masks), strict=True):
        assert torch.equal(torch.from_numpy(pycocotools.mask.decode(code)).bool(), mask)


def test_memory_layout_does_not_matter():
    masks = torch.rand(40, 3, 50) < 0.5
    assert encode_masks(masks.permute(1, 2, 0)) == encode_masks(masks.permute(1, 2, 0).contiguous())


def test_registration():
    masks = torch.rand(3, 20, 40) < 0.5
    torch.library.opcheck(torch.ops.fastinst.encode_masks.default, (masks, 40))
    torch.library.opcheck(torch.ops.fastinst.encode_masks.default, (pack_bits(masks), 40))


@pytest.mark.parametrize(
    ("masks", "width", "message"),
    [
        (torch.rand(2, 3, 4), None, "^masks must be .* bool, or int32"),
        (torch.ones(3, 4).bool(), None, "^masks must be"),
        (torch.ones(2, 3, 4).int(), None, "^packed masks need their width"),
        (torch.ones(2, 3, 4).int(), 32, "^masks of shape .* are not 32 wide"),
        (torch.ones(2, 3, 0).int(), -5, "^masks of shape .* are not -5 wide"),
        (torch.ones(2, 3, 4).bool(), 5, "^masks of shape .* are not 5 wide"),
    ],
)
def test_bad_arguments_are_named(masks, width, message):
    with pytest.raises(ValueError, match=message):
        encode_masks(masks, width)
