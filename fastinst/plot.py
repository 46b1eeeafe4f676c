"""Line charts with Pillow: panels below one another that share the x axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GREY, GRID, PAPER = "#18181b", "#71717a", "#e4e4e7", "#ffffff"
# Told apart with any kind of colour vision.
COLOURS = ("#2563eb", "#ea580c", "#0d9488", "#a21caf", "#ca8a04", "#64748b", "#dc2626", "#65a30d")

# In pixels: of the picture, around the plots, and of their headers' rows.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _ROW = 1200, 84, 28, 74, 64, 36, 26
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_SUPERSAMPLING = 3  # plots are drawn this much larger, which makes the lines' edges smooth


@dataclass(frozen=True)
class Line:
    """Points in order, as arrays of equal lengths; a y that is not finite is a gap.

    label: in the legend; None for no entry
    width: in pixels
    dots: mark every point
    """

    x: np.ndarray
    y: np.ndarray
    colour: str = INK
    label: str | None = None
    width: float = 2.5
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over one y axis; the last one is on top.

    limits: lowest and highest y, of which the former is the smaller
    log: a logarithmic axis, whose limits must be positive
    height: of the plot in pixels
    """

    title: str
    lines: Sequence[Line]
    limits: tuple[float, float]
    log: bool = False
    height: int = 300

    def ticks(self) -> np.ndarray:
        return (log_ticks if self.log else nice_ticks)(*self.limits, self.height // 40)

    def rows(self, y: np.ndarray) -> np.ndarray:
        """Where values lie, in pixels from the plot's top; what is not positive on a logarithmic
        axis lies far below it."""
        low, high = self.limits
        if self.log:
            y = np.log10(np.maximum(y, low * 1e-3))  # NaN stays
            low, high = math.log10(low), math.log10(high)
        return (high - y) / (high - low) * self.height


def draw_panels(panels: Sequence[Panel], title: str, x_label: str) -> Image.Image:
    """The panels from top to bottom, each below its title and legend, above one x axis."""
    x = np.concatenate([line.x for panel in panels for line in panel.lines])
    left, right = widened(x.min(), x.max())
    room = (right - left) / 80  # for the first and the last dot
    left, right = left - room, right + room
    legends = [_arrange_legend(panel) for panel in panels]
    headers = sum(_ROW * len(rows) + _GAP for rows in legends) - _GAP
    height = _TOP + headers + sum(panel.height for panel in panels) + _BOTTOM
    picture = Image.new("RGB", (_WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_LEFT, 36), title, INK, font(24), anchor="lm")

    y = _TOP
    for panel, rows in zip(panels, legends, strict=True):
        draw.text((_LEFT, y + 8), panel.title, INK, font(18), anchor="lm")
        for row in rows:
            for place, line in row:
                draw.line((place, y + 8, place + 20, y + 8), line.colour, 4)
                draw.text((place + 28, y + 8), line.label, INK, font(15), anchor="lm")
            y += _ROW
        picture.paste(_plot(panel, left, right), (_LEFT, y))
        ticks = panel.ticks()
        for row, text in zip(panel.rows(ticks), format_ticks(ticks), strict=True):
            draw.text((_LEFT - 10, y + row), text, GREY, font(15), anchor="rm")
        y += panel.height + _GAP
    y -= _GAP

    ticks = nice_ticks(left, right, 10)
    for tick, text in zip(ticks, format_ticks(ticks), strict=True):
        place = _LEFT + (tick - left) / (right - left) * _PLOT_WIDTH
        draw.text((place, y + 18), text, GREY, font(15), anchor="mm")
    draw.text((_LEFT + _PLOT_WIDTH / 2, y + 44), x_label, GREY, font(15), anchor="mm")
    return picture


def widened(low: float, high: float) -> tuple[float, float]:
    """The same as floats, or limits around them if they are equal."""
    low, high = float(low), float(high)
    margin = 0.0 if high > low else (abs(low) or 1.0) / 2
    return low - margin, high + margin


def nice_ticks(low: float, high: float, count: int) -> np.ndarray:
    """The multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most `count` + 1."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) <= s * power * count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return np.arange(first, last + 1) * step


def log_ticks(low: float, high: float, count: int) -> np.ndarray:
    """The powers of ten from `low` to `high`, with their 2 and 5 folds if those are at most
    `count` in all."""
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for folds in ((1, 2, 5), (1,)):
        ticks = np.outer(powers, folds).ravel()
        ticks = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
        if len(ticks) <= count:
            break
    return ticks


def format_ticks(ticks: np.ndarray) -> list[str]:
    """In one style: 0.25, 20, 4,000; or where all are small or some are huge, 1e-4."""
    largest = np.abs(ticks).max(initial=0)
    if 1e-2 <= largest < 1e7 or largest == 0:
        spacing = np.diff(np.sort(ticks)).min(initial=1)
        digits = 1 - math.floor(math.log10(spacing))
        return [f"{tick:,.{digits}f}".rstrip("0").rstrip(".") for tick in ticks]
    texts = [f"{tick:.1e}".replace(".0e", "e").partition("e") for tick in ticks]
    return [f"{number}e{int(power)}" if float(number) else "0" for number, _, power in texts]


def font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _arrange_legend(panel: Panel) -> list[list[tuple[float, Line]]]:
    """Rows of entries, each with its left edge, right of the title; at least one row."""
    start = _LEFT + font(18).getlength(panel.title) + 32
    rows, place = [[]], start
    for line in panel.lines:
        if line.label is not None:
            width = 28 + font(15).getlength(line.label) + 28
            if place + width > _WIDTH and rows[-1]:
                rows.append([])
                place = start
            rows[-1].append((place, line))
            place += width
    return rows


def _plot(panel: Panel, left: float, right: float) -> Image.Image:
    scale = _SUPERSAMPLING
    size = _PLOT_WIDTH * scale, panel.height * scale
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for row in panel.rows(panel.ticks()) * scale:
        draw.line((0, row, size[0], row), GRID, scale)
    for tick in nice_ticks(left, right, 10):
        column = (tick - left) / (right - left) * size[0]
        draw.line((column, 0, column, size[1]), GRID, scale)
    draw.line((0, size[1] - scale, size[0], size[1] - scale), GREY, 2 * scale)
    for line in panel.lines:
        columns = (line.x - left) / (right - left) * size[0]
        points = np.stack([columns, panel.rows(line.y) * scale], 1)
        gaps = np.flatnonzero(~np.isfinite(line.y))
        for part in np.split(points, gaps):
            part = part[np.isfinite(part[:, 1])]
            if len(part) > 1:
                width = round(line.width * scale)
                draw.line(part.ravel().tolist(), line.colour, width, joint="curve")
            if line.dots or len(part) == 1:
                for x, y in part:
                    draw.circle((x, y), 1.6 * line.width * scale, line.colour)
    return canvas.reduce(scale)
