"""A picture of precision over recall: by threshold, by size and by class."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from fastinst.metrics.average_precision import RECALLS, Curves, select
from fastinst.metrics.matching import AREAS
from fastinst.plot import COLOURS, INK, Line, Panel, draw_panels

OVERLAPS = (0.5, 0.6, 0.7, 0.8, 0.9)
MOST_CLASSES = 8


def draw_precision_recall(
    curves: Curves, class_names: Sequence[str], counts: Mapping[int, int], title: str
) -> Image.Image | None:
    """Precision at each recall, averaged over the classes that have ground truth.

    counts: of annotations by label, to pick the most frequent classes
    Returns None if there is no ground truth at all.
    """
    at_half = select(curves.precision, 0.5, "all")[0]  # [101, K]
    known = np.flatnonzero(at_half[0] > -1)
    if not len(known):
        return None
    by_overlap = [
        _line(select(curves.precision, overlap, "all")[0], COLOURS[i], f"IoU {overlap:g}")
        for i, overlap in enumerate(OVERLAPS)
    ]
    every = np.moveaxis(select(curves.precision, None, "all"), 0, -1).reshape(len(RECALLS), -1)
    by_overlap.append(_line(every, INK, "0.5 to 0.95"))
    by_size = [
        _line(select(curves.precision, 0.5, area)[0], COLOURS[i], area)
        for i, area in enumerate(AREAS)
        if area != "all" and (select(curves.precision, 0.5, area) > -1).any()
    ]
    panels = [_panel("by overlap", by_overlap, 340), _panel("IoU 0.5, by size", by_size, 240)]
    if len(known) > 1:
        order = sorted(known, key=lambda k: -counts[k])[:MOST_CLASSES]
        by_class = [
            _line(at_half[:, [k]], COLOURS[i], class_names[k][:24]) for i, k in enumerate(order)
        ]
        few = f"the {len(order)} most frequent of {len(known)} classes"
        which = few if len(order) < len(known) else "by class"
        panels.append(_panel(f"IoU 0.5, {which}", by_class, 340))
    return draw_panels(panels, title, "recall")


def _line(precision: np.ndarray, colour: str, name: str) -> Line:
    """The mean over the columns of [101, N] that have ground truth, and in words their AP."""
    mean = precision[:, precision[0] > -1].mean(axis=1)
    return Line(RECALLS, mean, colour, f"{name}: {100 * mean.mean():.1f}")


def _panel(title: str, lines: list[Line], height: int) -> Panel:
    return Panel(f"precision, {title}", lines, (0.0, 1.02), height=height)
