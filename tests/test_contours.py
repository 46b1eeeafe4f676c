"""Lines along borders."""

import numpy as np
import pytest

from fastinst.contours import Pen, slide


@pytest.mark.parametrize("size", range(1, 14))
def test_windows_slide_as_their_definition(size):
    values = np.random.default_rng(size).integers(0, 2, (30, 25), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(values, (size, size))
    assert (slide(values, size, np.maximum) == windows.max((2, 3))).all()
    assert (slide(values, size, np.minimum) == windows.min((2, 3))).all()
    if size <= 7:
        total = slide(np.full((20, 20), 3, np.uint8), size, np.add)
        assert (total == 3 * 4 ** int(np.ceil(np.log2(size)))).all()


@pytest.mark.parametrize("unit", [1.0, 1.6, 3.0, 5.0])
def test_borders_lie_where_neighbours_differ_and_fade_to_both_sides(unit):
    pen, values = Pen(unit), np.zeros((60, 80), np.int32)
    values[:, 40:] = 1000
    lines = pen.borders(values)
    assert lines.shape == values.shape and lines.dtype == np.uint8
    assert lines[30, 40] == lines.max() > 160 and (lines == lines[0]).all()
    assert (np.diff(lines[0, 40:].astype(int)) <= 0).all() and len(np.unique(lines)) >= 3
    assert lines[0, 40 - pen.reach] and not lines[0, : 40 - pen.reach].any()
    assert (lines[0] == lines[0, ::-1]).all()


def test_a_single_pixel_has_a_border_and_the_image_none():
    values = np.full((9, 9), 7)
    assert not Pen(1.0).borders(values).any()
    values[4, 4] = 8
    assert Pen(1.0).borders(values)[4, 4] > 230
