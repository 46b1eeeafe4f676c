"""The supplement's tables: what is compared, and the tables as text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastinst.config import make_config
from fastinst.metrics.measures import MEASURES
from fastinst.model import FastInst

# As they are asked of an evaluation, or measured beside it.
PARAMETERS, FPS = "Param. (M)", "FPS"
BY_SIZE = ("AP", "APs", "APm", "APl", FPS)


@dataclass(frozen=True)
class Column:
    """One of the systems that a table compares.

    name: of its folder
    settings: what is written under the table's own settings
    model, options: the preset, and fields of `ModelConfig`
    paper: the supplement's numbers under the table's measures, on COCO val and a V100
    """

    name: str
    settings: tuple[str, ...]
    model: str
    options: dict[str, Any]
    paper: tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """A table of the supplement.

    settings, measures: the names of what tells its columns apart, and of what is measured
    size: shorter image edge, in pixels, unless another is asked for; None for the models' own
    recipe: of train.py
    trained_once: options act in prediction, so that one model, the last column's, serves for all
    upright: a column of ours is one of the paper's table, not a row
    """

    title: str
    settings: tuple[str, ...]
    measures: tuple[str, ...]
    columns: tuple[Column, ...]
    size: int | None = None
    recipe: str | None = None
    trained_once: bool = False
    upright: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """What each of its models is trained for, one after the other."""
        return tuple(task for task in MEASURES if MEASURES[task].chief in self.measures)


def _switched(letters: str, *paper: float) -> Column:
    """Of Table I: the baseline with those of its switches on."""
    options = {
        "dual_path": "A" in letters,
        "activation_guided": "B" in letters,
        "mask_guided": "C" in letters,
        "learnable_positions": "E" in letters,
        "num_aux_queries": 8 if "E" in letters else 0,
    }
    model = "fastinst-d3-r50-640" if "A" in letters else "mask2former-light-r50-640"
    marks = tuple("x" if letter in letters else "" for letter in "ABCE")
    return Column(letters or "baseline", marks, model, options, paper)


def _located(weight: float, name: str, *paper: float) -> Column:
    options = {"location_weight": weight}
    return Column(name, (name.replace("-", " "),), "fastinst-d1-r50d-dcn-576", options, paper)


def _chosen(count: int, local_maximum_first: bool, *paper: float) -> Column:
    how = "with" if local_maximum_first else "without"
    options = {"num_queries": count, "local_maximum_first": local_maximum_first}
    return Column(f"{how}-{count}", (how, str(count)), "fastinst-d1-r50-576", options, paper)


def _on_streets(name: str, model: str, *paper: float) -> Column:
    return Column(name, (model.removesuffix("-1024"),), model, {}, paper)


TABLES = {
    "table1": Table(
        "Table I: improvements on Mask2Former. A: dual-path decoder of 3 layers, B: activation-"
        "guided queries, C: mask-guided learning, E: learnable positions and auxiliary queries",
        ("A", "B", "C", "E"),
        (PARAMETERS, FPS, "AP"),
        (
            _switched("", 40.9, 25.3, 37.2),
            _switched("B", 41.4, 24.5, 37.3),
            _switched("C", 40.9, 25.3, 37.6),
            _switched("BC", 41.4, 24.5, 37.6),
            _switched("A", 33.5, 34.3, 36.9),
            _switched("AB", 34.1, 32.9, 37.3),
            _switched("AC", 33.5, 34.3, 37.5),
            _switched("ABC", 34.1, 32.9, 37.8),
            _switched("ABCE", 34.2, 35.5, 37.9),
        ),
        upright=True,
    ),
    "table2": Table(
        "Table II: the location cost with deformable convolutions",
        ("location cost",),
        BY_SIZE,
        (
            _located(0, "without", 36.5, 14.8, 39.6, 59.2, 43.3),
            _located(1000, "with", 38.1, 16.2, 41.5, 60.6, 43.3),
        ),
        size=640,
    ),
    "table3": Table(
        "Table III: local maxima first, by the number of queries",
        ("local maxima first", "N_a"),
        BY_SIZE,
        (
            _chosen(10, False, 28.6, 9.0, 30.0, 49.3, 53.5),
            _chosen(10, True, 30.0, 9.8, 32.1, 51.3, 52.9),
            _chosen(50, False, 34.4, 13.9, 36.9, 55.3, 51.3),
            _chosen(50, True, 34.8, 14.2, 37.6, 55.7, 51.0),
            _chosen(100, False, 35.3, 14.6, 38.2, 56.3, 49.0),
            _chosen(100, True, 35.6, 14.3, 38.8, 56.6, 48.8),
        ),
        size=640,
        trained_once=True,
    ),
    "table4": Table(
        "Table IV: instance segmentation of Cityscapes",
        ("model",),
        ("AP", "AP50", FPS),
        (
            _on_streets("mask2former", "mask2former-light-r50-1024", 31.4, 55.9, 9.2),
            _on_streets("fastinst", "fastinst-d3-r50-1024", 35.5, 59.0, 9.2),
        ),
        recipe="cityscapes",
    ),
    "table5": Table(
        "Table V: instance, panoptic and semantic segmentation of Cityscapes",
        ("model",),
        ("AP", "PQ", "mIoU", PARAMETERS),
        (
            _on_streets("mask2former", "mask2former-light-r50-1024", 31.4, 53.9, 74.4, 40.9),
            _on_streets("fastinst", "fastinst-d3-r50-1024", 35.5, 56.4, 74.7, 34.2),
        ),
        recipe="cityscapes",
    ),
}


def with_options(model: FastInst, options: Mapping[str, Any]) -> FastInst:
    """The same weights in a model of other options, in evaluation mode.

    Raises RuntimeError if the options want other parameters.
    """
    fields = {name: getattr(model.config, name) for name in model.config.__slots__}
    changed = FastInst(make_config(**fields | dict(options)))
    changed.load_state_dict(model.state_dict())
    return changed.to(model.device, model.dtype).eval()


def format_ablation(table: Table, measured: Mapping[str, Mapping[str, float]]) -> str:
    """The table as Markdown, each measure followed by the paper's.

    measured: by columns' names, the measures by theirs
    """
    rows = [[*table.settings, *(title for m in table.measures for title in (m, "paper"))]]
    for column in table.columns:
        pairs = zip(table.measures, column.paper, strict=True)
        numbers = [(measured[column.name][measure], paper) for measure, paper in pairs]
        rows.append([*column.settings, *(_number(x) for pair in numbers for x in pair)])
    if table.upright:
        rows = [list(row) for row in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
