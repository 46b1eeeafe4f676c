"""Pictures in a table below headings, each above its caption, with a legend: one figure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastinst.figures.colour_map import colour_map
from fastinst.figures.query_points import draw_point
from fastinst.visualize import BACKGROUND, FOREGROUND, framed, grid, text_line

MARGIN = 16
_HEADING, _CAPTION, _LEGEND = 18, 13, 15  # font sizes in pixels
_SUPERSAMPLING = 4
_BAR, _ROW = 200, 32  # of a legend: pixels of the bar of colours, and of the height


class Cell(NamedTuple):
    """picture: uint8 [H, W, 3]"""

    picture: np.ndarray
    caption: str


def sheet(
    cells: Sequence[Cell], headings: Sequence[str], legend: np.ndarray | None = None
) -> np.ndarray:
    """A table of as many columns as there are headings.

    cells: row by row; the last row may have fewer
    legend: what is put below them all, uint8 [H, W, 3]
    Returns uint8 [H, W, 3].
    """
    columns = len(headings)
    widths = [max(cell.picture.shape[1] for cell in cells[c::columns]) for c in range(columns)]
    parts = [
        text_line(heading, width, _HEADING, 2 * _HEADING)
        for heading, width in zip(headings, widths, strict=True)
    ]
    for picture, caption in cells:
        below = text_line(caption, picture.shape[1], _CAPTION, 2 * _CAPTION)
        parts.append(np.concatenate([picture, below]))
    table = grid(parts, columns)
    return framed(table if legend is None else grid([table, legend], 1), MARGIN)


def legend(title: str, ends: tuple[str, str], marks: bool = False) -> np.ndarray:
    """What the colours mean, between the words for both ends; and the marks of query points."""
    scale, font = _SUPERSAMPLING, ImageFont.load_default(_LEGEND * _SUPERSAMPLING)
    canvas = Image.new("RGB", (1400 * scale, _ROW * scale), BACKGROUND)
    draw, middle, x = ImageDraw.Draw(canvas), _ROW * scale / 2, 0.0

    def write(text: str) -> None:
        nonlocal x
        draw.text((x, middle), text, FOREGROUND, font, anchor="lm")
        x += font.getlength(text) + 10 * scale

    write(f"{title}:")
    write(ends[0])
    bar = colour_map(np.linspace(0, 1, _BAR * scale))[None].repeat(_LEGEND * scale, axis=0)
    canvas.paste(Image.fromarray(bar), (round(x), round(middle - bar.shape[0] / 2)))
    x += (_BAR + 10) * scale
    write(ends[1])
    for filled, text in ((True, "local maximum"), (False, "not a local maximum")) * marks:
        x += 24 * scale
        colour = tuple(colour_map(np.array(0.6)).tolist())
        draw_point(draw, (x, middle), 6 * scale, colour, filled)
        x += 16 * scale
        write(text)
    return np.array(canvas.crop((0, 0, round(x), canvas.height)).reduce(scale))
