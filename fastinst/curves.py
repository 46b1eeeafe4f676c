"""Pictures of training runs, out of their log.csv: losses, validation and learning rate.

    python -m fastinst.curves runs/demo
    python -m fastinst.curves runs/* --output comparison.png

One run gives its curves.png; several are compared in one picture.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageColor
from scipy.ndimage import gaussian_filter1d

from fastinst.errors import InputError, run
from fastinst.files import write_whole
from fastinst.metrics.measures import MEASURES
from fastinst.plot import COLOURS, INK, Line, Panel, draw_panels, widened
from fastinst.training.log import LOSS_KINDS, read_log

Columns = dict[str, np.ndarray]


def draw_curves(csv_path: Path | str, png_path: Path | str) -> None:
    """One run: the loss and its parts, what validation has measured (if anything), learning rate.

    Raises InputError if the log cannot be read or has no rows, or the picture cannot be written.
    """
    log = _read(csv_path)
    steps = log["step"]
    loss = _loss_lines(steps, log["loss"], INK, "total")
    for kind, colour in zip(LOSS_KINDS, COLOURS, strict=False):
        loss.append(Line(*_smoothed(steps, log[kind]), colour, kind.removeprefix("loss_")))
    scores = {
        measure.title: [
            _score_line(log, number, COLOURS[i], number) for i, number in enumerate(measure.numbers)
        ]
        for measure in MEASURES.values()
    }
    rate = Line(steps, log["lr"], INK, f"highest {log['lr'].max():.3g}")
    panels = [_loss_panel(loss, 400), *_score_panels(scores), _lr_panel([rate])]
    epoch = f" (an epoch is {steps[-1] / log['epoch'][-1]:,.0f})" if log["epoch"][-1] > 0 else ""
    _write(png_path, panels, Path(csv_path).resolve().parent.name, f"step{epoch}")


def compare_curves(csv_paths: Sequence[Path | str], png_path: Path | str) -> None:
    """Several runs, each of one colour: total loss, the number that judged it, learning rate.

    Raises InputError as `draw_curves`.
    """
    losses, outlines, rates = [], [], []
    scores = {measure.title: [] for measure in MEASURES.values()}
    for i, (path, name) in enumerate(zip(csv_paths, _names(csv_paths), strict=True)):
        log, colour = _read(path), COLOURS[i % len(COLOURS)]
        *outline, loss = _loss_lines(log["step"], log["loss"], colour, name)
        outlines += outline
        losses.append(loss)
        for measure in MEASURES.values():
            scores[measure.title].append(_score_line(log, measure.chief, colour, name))
        rates.append(Line(log["step"], log["lr"], colour))
    panels = [_loss_panel([*outlines, *losses], 320), *_score_panels(scores), _lr_panel(rates)]
    _write(png_path, panels, f"{len(losses)} runs", "step")


def _read(path: Path | str) -> Columns:
    """The columns that are drawn; what a row lacks is NaN."""
    rows = read_log(path)
    if not rows:
        raise InputError(f"{path} has no rows yet: the run has not made a step")
    measured = (number for measure in MEASURES.values() for number in measure.numbers)
    names = ("step", "epoch", "lr", "loss", *LOSS_KINDS, *measured)
    return {name: np.array([row.get(name, math.nan) for row in rows], float) for name in names}


def _loss_lines(steps: np.ndarray, loss: np.ndarray, colour: str, label: str) -> list[Line]:
    """As it is, thin and pale, and smoothed."""
    pale = "#" + "".join(f"{255 - (255 - c) // 4:02x}" for c in ImageColor.getrgb(colour))
    outline = Line(*_outline(steps, loss), pale, width=1)
    return [outline, Line(*_smoothed(steps, loss), colour, label)]


def _loss_panel(lines: list[Line], height: int) -> Panel:
    values = np.concatenate([line.y for line in lines if line.label])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    # Parts that differ much, or a loss that fell far, could not be told apart on a linear axis.
    if 0 < low < high / 25:
        return Panel("loss", lines, (low / 1.3, high * 1.3), log=True, height=height)
    return Panel("loss", lines, widened(min(low, 0), 1.06 * high), height=height)


def _score_line(log: Columns, kind: str, colour: str, label: str) -> Line:
    measured = np.isfinite(log[kind])
    steps, scores = log["step"][measured], log[kind][measured]
    if len(scores):
        best = scores.argmax()
        label += f", best {scores[best]:.1f} at step {steps[best]:,.0f}"
    return Line(steps, scores, colour, label, dots=len(scores) <= 40)


def _score_panels(scores: dict[str, list[Line]]) -> list[Panel]:
    """By title; none where nothing was measured."""
    panels = []
    for title, lines in scores.items():
        if lines := [line for line in lines if len(line.x)]:
            highest = max(line.y.max() for line in lines)
            limits = np.array([-0.03, 1.08]) * max(highest, 1)  # room for the dots of an AP of 0
            panels.append(Panel(title, lines, tuple(limits), height=240))
    return panels


def _lr_panel(lines: list[Line]) -> Panel:
    values = np.concatenate([line.y for line in lines])
    values = values[values > 0]
    low, high = (values.min(), values.max()) if len(values) else (1e-5, 1e-3)
    return Panel("learning rate", lines, (low / 1.6, high * 1.6), log=True, height=130)


def _smoothed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian average, about a thirtieth of the run wide, of what is finite."""
    finite = np.isfinite(y)
    starts = np.arange(0, len(y), -(-len(y) // 2000))  # long runs are averaged in groups first
    columns = np.stack([x, np.ones(len(x)), np.where(finite, y, 0), finite])
    x, count, total, weight = np.add.reduceat(columns, starts, axis=1)
    sigma = max(len(x) / 100, 0.3)
    total, weight = gaussian_filter1d(np.stack([total, weight]), sigma, mode="constant")
    return x / count, np.where(weight > 1e-6, total / np.maximum(weight, 1e-6), math.nan)


def _outline(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Few points that look like all: of a long run the lowest and the highest of each group."""
    starts = np.arange(0, len(y), -(-len(y) // 1500))
    if len(starts) == len(y):
        return x, y
    extremes = np.stack([np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts)], 1)
    return np.repeat(x[starts], 2), extremes.ravel()


def _names(paths: Sequence[Path | str]) -> list[str]:
    """Of the runs' folders: as much of their paths as tells them apart."""
    folders = [Path(path).resolve().parent for path in paths]
    if len({folder.name for folder in folders}) == len(folders):
        return [folder.name for folder in folders]
    common = os.path.commonpath(folders)
    return [os.path.relpath(folder, common) for folder in folders]


def _write(path: Path | str, panels: list[Panel], title: str, x_label: str) -> None:
    picture = draw_panels(panels, title, x_label)
    with write_whole(path) as file:
        picture.save(file, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or its log.csv")
    parser.add_argument("--output", help="PNG file [RUN/curves.png; of several runs: curves.png]")
    args = parser.parse_args()
    logs = [Path(name) / "log.csv" if Path(name).is_dir() else Path(name) for name in args.runs]
    if len(logs) == 1:
        output = args.output or logs[0].with_name("curves.png")
        draw_curves(logs[0], output)
    else:
        output = args.output or "curves.png"
        compare_curves(logs, output)
    print(output)


if __name__ == "__main__":
    run(main)
