"""Horizontal bars of stacked parts, in groups below one another, with Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from fastinst.plot import COLOURS, GREY, GRID, INK, PAPER, font, format_ticks, nice_ticks

# In pixels: of the picture, around the plot, of a bar and of a text row.
_WIDTH, _MARGIN, _TOP, _BOTTOM, _BAR, _PITCH, _ROW = 1200, 28, 62, 64, 22, 34, 26
_MARK = 3  # half the width of the line at a bar's total


@dataclass(frozen=True)
class Bar:
    """parts: by name, what is stacked from 0; `total` has a mark of its own, `note` beside it."""

    label: str
    parts: dict[str, float]
    total: float
    note: str


@dataclass(frozen=True)
class Group:
    title: str
    bars: Sequence[Bar]


def draw_bars(groups: Sequence[Group], title: str, x_label: str, total_label: str) -> Image.Image:
    """All groups over one axis from 0; a part has one colour wherever it appears."""
    bars = [bar for group in groups for bar in group.bars]
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    left = _MARGIN + max(font(15).getlength(bar.label) for bar in bars) + 14
    notes = max(font(15).getlength(bar.note) for bar in bars) + 12
    longest = max(max(sum(bar.parts.values()), bar.total) for bar in bars) or 1.0
    scale = (_WIDTH - _MARGIN - notes - left) / longest  # pixels

    legend = _arrange_legend([*names, total_label])
    rows = sum(_ROW + _PITCH * len(group.bars) + 10 for group in groups)
    top = _TOP + _ROW * len(legend) + 8
    bottom = top + rows
    picture = Image.new("RGB", (_WIDTH, bottom + _BOTTOM), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 34), title, INK, font(24), anchor="lm")
    for i, row in enumerate(legend):
        y = _TOP + i * _ROW + 10
        for x, name in row:
            if name == total_label:
                draw.rectangle((x + 6, y - 9, x + 6 + _MARK, y + 9), INK)
            else:
                draw.rectangle((x, y - 7, x + 14, y + 7), colours[name])
            draw.text((x + 22, y), name, INK, font(15), anchor="lm")

    ticks = nice_ticks(0, longest, 10)
    for tick, text in zip(ticks, format_ticks(ticks), strict=True):
        x = left + tick * scale
        draw.line((x, top, x, bottom), GRID)
        draw.text((x, bottom + 16), text, GREY, font(15), anchor="mm")
    draw.text(((left + _WIDTH) / 2, bottom + 44), x_label, GREY, font(15), anchor="mm")

    y = top
    for group in groups:
        _write_over(draw, (_MARGIN, y + _ROW / 2), group.title, 18)
        y += _ROW
        for bar in group.bars:
            middle, x = y + _PITCH / 2, left
            draw.text((left - 10, middle), bar.label, INK, font(15), anchor="rm")
            for name, value in bar.parts.items():
                end = x + value * scale
                if round(end) > round(x):
                    box = (round(x), middle - _BAR / 2, round(end) - 1, middle + _BAR / 2)
                    draw.rectangle(box, colours[name])
                x = end
            end = left + bar.total * scale
            draw.rectangle((end - _MARK / 2, y + 2, end + _MARK / 2, y + _PITCH - 2), INK)
            _write_over(draw, (max(x, end) + 10, middle), bar.note, 15)
            y += _PITCH
        y += 10
    return picture


def _write_over(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int):
    """From the middle of its left edge, with paper over the grid behind it."""
    draw.rectangle(draw.textbbox(place, text, font(size), anchor="lm"), PAPER)
    draw.text(place, text, INK, font(size), anchor="lm")


def _arrange_legend(names: Sequence[str]) -> list[list[tuple[float, str]]]:
    """Rows of entries, each with its left edge."""
    rows, x = [[]], float(_MARGIN)
    for name in names:
        width = 22 + font(15).getlength(name) + 26
        if x + width > _WIDTH and rows[-1]:
            rows.append([])
            x = float(_MARGIN)
        rows[-1].append((x, name))
        x += width
    return rows
