"""Samples of packed masks against bilinear interpolation in loops."""

import pytest
import torch
from test_matcher import bilinear

from fastinst.ops import bilinear as sampling
from fastinst.ops import pack_bits, sample_masks

EDGES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.999, 0.001]])


def make_case(dtype=torch.float64, masks=3, groups=2, count=9, height=5, width=64):
    bits = torch.rand(masks, height, width) < 0.5
    points = torch.cat([EDGES.to(dtype).repeat(groups, 1, 1), torch.rand(groups, count, 2)], 1)
    return bits, points.to(dtype), torch.arange(masks) % groups


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [32, 64])
def test_samples_are_bilinear_with_zeros_outside(dtype, width):
    masks, points, groups = make_case(dtype, width=width)
    samples = sample_masks(pack_bits(masks), points, groups)
    assert samples.dtype == dtype
    for mask, row, group in zip(masks.double().tolist(), samples, groups, strict=True):
        expected = [bilinear(mask, *p) for p in points[group].tolist()]
        assert row.tolist() == pytest.approx(expected, abs=1e-12 if dtype.itemsize == 8 else 1e-5)


def test_samples_do_not_depend_on_the_chunks(monkeypatch):
    masks, points, groups = make_case(masks=7)
    expected = sample_masks(pack_bits(masks), points, groups)
    monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", 30)
    assert torch.equal(sample_masks(pack_bits(masks), points, groups), expected)


@pytest.mark.parametrize("sizes", [{"masks": 0}, {"count": 0}])
def test_nothing_to_sample(sizes):
    masks, points, groups = make_case(**sizes)
    assert sample_masks(pack_bits(masks), points, groups).shape == (len(masks), points.shape[1])


def test_definition_and_fake_agree():
    masks, points, groups = make_case()
    torch.library.opcheck(torch.ops.fastinst.sample_masks, (pack_bits(masks), points, groups))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": torch.zeros(3, 5, 2)}, r"^masks must be int32 \[M, H, W32\], got torch.float32"),
        ({"masks": torch.zeros(5, 2).int()}, "^masks must be int32"),
        ({"points": torch.zeros(2, 9, 3)}, r"^points must be float32 or float64 \[G, K, 2\]"),
        ({"points": torch.zeros(2, 9, 2).half()}, "^points must be float32 or float64"),
        ({"groups": torch.zeros(2).long()}, r"^groups must be int64 \[3\], got .* \(2,\)"),
        ({"groups": torch.zeros(3).int()}, "^groups must be int64"),
        ({"groups": torch.zeros(3, device="meta").long()}, "^groups are on meta, masks on cpu"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    masks, points, groups = make_case()
    arguments = {"masks": pack_bits(masks), "points": points, "groups": groups} | change
    with pytest.raises(ValueError, match=message):
        sample_masks(**arguments)
