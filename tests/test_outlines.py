"""Outlines of masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from fastinst.outlines import trace_outlines


def windings(rings, size):
    """How often the rings go clockwise around each pixel, counted side by side."""
    count = np.zeros((size[0], size[1] + 1), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1)
            if y1 < y0:  # upwards: the mask is to the right
                count[y1:y0, x0] += 1
            else:
                count[y0:y1, x0] -= 1
    return count.cumsum(axis=1)[:, :-1]


@settings(deadline=None, max_examples=300)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans()))
def test_rings_go_around_every_pixel_of_the_mask_once(mask):
    rings = trace_outlines(mask)
    assert np.array_equal(windings(rings, mask.shape), mask.astype(int))
    parts = ndimage.label(mask)[1]
    holes = ndimage.label(~np.pad(mask, 1), np.ones((3, 3)))[1] - 1
    assert len(rings) == parts + holes
    for ring in rings:
        sides = np.roll(ring, -1, axis=0) - ring
        assert ring.dtype == np.int64 and (sides[::2, 1] == 0).all() and (sides[1::2, 0] == 0).all()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["...", "..."], []),
        (["...", ".#."], [[(1, 1), (2, 1), (2, 2), (1, 2)]]),
        (
            ["###", "#.#", "###"],
            [[(0, 0), (3, 0), (3, 3), (0, 3)], [(2, 1), (1, 1), (1, 2), (2, 2)]],
        ),
        (["#.", ".#"], [[(0, 0), (1, 0), (1, 1), (0, 1)], [(1, 1), (2, 1), (2, 2), (1, 2)]]),
    ],
)
def test_by_hand(rows, expected):
    mask = np.array([[pixel == "#" for pixel in row] for row in rows])
    assert [list(map(tuple, ring.tolist())) for ring in trace_outlines(mask)] == expected
