"""Axes, and lines where they belong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinst.plot import Line, Panel, draw_panels, format_ticks, log_ticks, nice_ticks, widened


@pytest.mark.parametrize(
    ("limits", "count", "expected"),
    [
        ((0, 40), 5, [0, 10, 20, 30, 40]),
        ((0, 41), 9, [0, 5, 10, 15, 20, 25, 30, 35, 40]),
        ((-0.3, 0.31), 4, [-0.2, 0, 0.2]),
        ((1, 2400), 5, [500, 1000, 1500, 2000]),
        ((0.1, 0.3), 2, [0.1, 0.2, 0.3]),  # though 0.3 / 0.1 is less than 3
    ],
)
def test_nice_ticks(limits, count, expected):
    np.testing.assert_allclose(nice_ticks(*limits, count), expected, atol=1e-12)


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6), st.integers(2, 12))
def test_ticks_are_few_round_and_inside(low, width, count):
    high = low + width
    ticks = nice_ticks(low, high, count)
    assert 0.2 * count <= len(ticks) + 1 and len(ticks) <= count + 1
    slack = 1e-6 * width
    assert ((ticks >= low - slack) & (ticks <= high + slack)).all()
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        mantissa = step / 10 ** np.floor(np.log10(step * 1.0001))
        assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3
        assert len(set(format_ticks(ticks))) == len(ticks)


def test_log_ticks():
    np.testing.assert_allclose(log_ticks(0.19, 30, 9), [0.2, 0.5, 1, 2, 5, 10, 20])
    np.testing.assert_allclose(log_ticks(0.19, 30, 6), [1, 10])
    np.testing.assert_allclose(log_ticks(1e-6, 1e-4, 3), [1e-6, 1e-5, 1e-4])


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 0.25, 0.5], ["0", "0.25", "0.5"]),
        ([0, 2000, 10000], ["0", "2,000", "10,000"]),
        ([1e-6, 1e-5, 2.5e-4], ["1e-6", "1e-5", "2.5e-4"]),
        ([0, 2e7], ["0", "2e7"]),
        ([1, 1.00005, 1.0001], ["1", "1.00005", "1.0001"]),
        ([0], ["0"]),
        ([], []),
    ],
)
def test_format_ticks(ticks, texts):
    assert format_ticks(np.array(ticks, float)) == texts


def test_widened():
    assert widened(1, 2) == (1, 2)
    for value in (-3, 0, 1e-9, 7):
        low, high = widened(value, value)
        assert low < value < high


def where(picture, colour):
    """Left, top, right and bottom of all pixels of the colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def height(panel, value):
    """The row of `value` in a picture of this panel alone."""
    x = np.array([0.0, 1])
    line = Line(x, np.full(2, value), "#ff0000", width=4)
    picture = draw_panels([Panel("", [line], panel.limits, panel.log)], "", "")
    _, top, _, bottom = where(picture, (255, 0, 0))
    return (top + bottom) / 2


@pytest.mark.parametrize("log", [False, True])
def test_lines_lie_where_the_axis_says(log):
    panel = Panel("", [], (1.0, 100.0), log)
    at = [height(panel, value) for value in (2.0, 10.0, 50.0)]
    expected = np.log10([2, 10, 50]) if log else np.array([2, 10, 50])
    fraction = (at[1] - at[0]) / (at[2] - at[0])
    true = (expected[1] - expected[0]) / (expected[2] - expected[0])
    assert at[0] > at[1] > at[2] and fraction == pytest.approx(true, abs=0.01)


def test_gaps_single_points_and_what_is_outside():
    x = np.arange(5.0)
    nan = np.nan
    lines = [
        Line(x, np.array([1, 1, nan, 5, nan]), "#ff0000", width=4),
        Line(x, np.array([nan] * 5), "#00ff00", width=4),
        Line(x, np.array([-50.0, -50, 4, -50, -50]), "#0000ff", width=4),
    ]
    picture = draw_panels([Panel("losses", lines, (0, 10))], "title", "step")
    left, top, right, bottom = where(picture, (255, 0, 0))
    # From the first point to the fourth, which stands alone, and nothing on the way.
    plot = picture.width - 84 - 28
    assert left < 110 and right == pytest.approx(84 + plot * 0.75, abs=15)
    columns = np.nonzero((np.asarray(picture) == (255, 0, 0)).all(2).any(0))[0]
    assert np.diff(columns).max() > 0.3 * plot
    assert not (np.asarray(picture) == (0, 255, 0)).all(2).any()
    # The plot's area clips: nothing of the line stands in the margin below.
    assert where(picture, (0, 0, 255))[3] <= picture.height - 64
    assert picture.size == (1200, 74 + 26 + 300 + 64)


def test_a_legend_takes_as_many_rows_as_it_needs():
    x = np.arange(2.0)
    heights = []
    for count in (2, 20):
        lines = [Line(x, x, label=f"a run with a long name {i}") for i in range(count)]
        picture = draw_panels([Panel("loss", lines, (0, 1))], "", "")
        assert picture.width == 1200
        margin = np.asarray(picture)[:, -8:]
        assert (margin == 255).all(), "an entry leaves the picture"
        heights.append(picture.height)
    assert heights[1] - heights[0] >= 3 * 26
    silent = [Line(x, x) for _ in range(20)]
    assert draw_panels([Panel("loss", silent, (0, 1))], "", "").height == heights[0]
