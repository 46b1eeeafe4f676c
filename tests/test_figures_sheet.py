"""Pictures in a table below headings."""

import numpy as np
import pytest

from fastinst.figures.colour_map import colour_map
from fastinst.figures.sheet import MARGIN, Cell, legend, sheet
from fastinst.visualize import BACKGROUND


def cell(value, height=60, width=80, caption=""):
    return Cell(np.full((height, width, 3), value, np.uint8), caption)


def box(picture, value):
    """(top, left, bottom, right) of what has this value."""
    rows, columns = np.nonzero((picture == value).all(2))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def test_every_picture_is_whole_and_in_its_place():
    cells = [cell(100), cell(110), cell(120), cell(130, 80, 60), cell(140)]
    picture = sheet(cells, ["one", "two"])
    boxes = [box(picture, value) for value in (100, 110, 120, 130, 140)]
    assert [(b - t, r - left) for t, left, b, r in boxes] == [(60, 80)] * 3 + [(80, 60), (60, 80)]
    assert boxes[0][1] == boxes[2][1] == boxes[4][1] == MARGIN
    assert boxes[1][1] > boxes[0][3] and boxes[3][1] == boxes[1][1] + 10
    assert boxes[2][0] > boxes[0][2] and boxes[4][0] > boxes[2][2]
    for edge in (picture[:MARGIN], picture[-MARGIN:], picture[:, :MARGIN], picture[:, -MARGIN:]):
        assert (edge == BACKGROUND).all()


def test_headings_are_above_and_captions_below():
    quiet = sheet([cell(100), cell(110)], ["", ""])
    spoken = sheet([cell(100, caption="left"), cell(110)], ["", "right"])
    assert quiet.shape == spoken.shape
    rows, columns = np.nonzero((quiet != spoken).any(2))
    top, left, bottom, right = box(quiet, 100)
    above = rows < top
    assert above.any() and (columns[above] >= right).all()
    assert (~above).any() and (rows[~above] >= bottom).all() and (columns[~above] < right).all()


def test_a_long_caption_is_shortened():
    short, long = (sheet([cell(100, caption=text)], ["h"]) for text in ("words", "words " * 30))
    assert short.shape == long.shape and (long[:, -MARGIN:] == BACKGROUND).all()


@pytest.mark.parametrize("marks", [False, True])
def test_a_legend_shows_the_colours_from_end_to_end(marks):
    bar = legend("probability", ("0", "1"), marks)
    row = bar[bar.shape[0] // 2].astype(int)
    for value in (0.1, 0.5, 0.9):
        assert (np.abs(row - colour_map(value)).max(1) <= 6).any()
    wide = sheet([cell(100)], ["h"], bar)
    assert wide.shape[1] == bar.shape[1] + 2 * MARGIN
    assert legend("p", ("0", "1"), True).shape[1] > legend("p", ("0", "1")).shape[1] + 100
