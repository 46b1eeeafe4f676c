"""Bars lie where their numbers say."""

import numpy as np
import pytest

from fastinst.bars import Bar, Group, draw_bars
from fastinst.plot import COLOURS, INK


def columns_of(picture, colour, rows):
    """First and last column of a colour in some rows, or None."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    found = (np.asarray(picture)[rows] == rgb).all(axis=2).any(axis=0).nonzero()[0]
    return (int(found[0]), int(found[-1])) if len(found) else None


@pytest.fixture
def picture():
    """Two bars of one group: 30 + 10 with a total of 45, and 20 with 20."""
    bars = [
        Bar("first", {"backbone": 30, "decoder": 10, "nothing": 0}, 45, "45 ms"),
        Bar("another one", {"decoder": 20}, 20, "20 ms, fast"),
    ]
    return draw_bars([Group("group", bars)], "title", "milliseconds", "end to end")


def test_parts_are_stacked_in_proportion(picture):
    (first, second) = (slice(y + 12, y + 22) for y in (62 + 26 + 8 + 26, 62 + 26 + 8 + 60))
    backbone, decoder = (columns_of(picture, colour, first) for colour in COLOURS[:2])
    assert decoder[0] == backbone[1] + 1
    unit = (backbone[1] + 1 - backbone[0]) / 30
    assert decoder[1] + 1 - decoder[0] == pytest.approx(10 * unit, abs=1)
    assert columns_of(picture, COLOURS[2], first) is None
    again = columns_of(picture, COLOURS[1], second)
    assert again[0] == backbone[0]
    assert again[1] + 1 - again[0] == pytest.approx(20 * unit, abs=2)
    end = backbone[0] + 45 * unit
    left = decoder[1] + 2  # of the mark, whose colour the labels have too
    marks = columns_of(picture.crop((left, 0, round(end) + 4, picture.height)), INK, first)
    assert left + marks[0] == pytest.approx(end, abs=3)


def test_notes_fit_in(picture):
    """The notes of the longest bars end within the picture."""
    long = [Bar("x", {"a": 1.0}, 1.0, "1,234,567.8 milliseconds, " * 3)]
    crowded = draw_bars([Group("g", long)], "title", "ms", "total")
    for drawn in (picture, crowded):
        right = np.asarray(drawn)[100:-70, -8:]
        assert (right == 255).all()


def test_a_long_legend_takes_more_rows():
    parts = {f"a stage with a long name {i}": 1.0 for i in range(9)}
    few = draw_bars([Group("g", [Bar("x", {"a": 1.0}, 1, "")])], "t", "ms", "total")
    many = draw_bars([Group("g", [Bar("x", parts, 9, "")])], "t", "ms", "total")
    assert many.height > few.height and many.width == few.width
