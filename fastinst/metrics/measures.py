"""What the models of each task are judged by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastinst.metrics.evaluate import evaluate
from fastinst.metrics.evaluate_segments import evaluate_segments
from fastinst.metrics.panoptic_quality import format_panoptic
from fastinst.metrics.semantic import format_semantic
from fastinst.metrics.table import format_table


@dataclass(frozen=True)
class Measure:
    """How one task is measured.

    title: what the chief number is called
    numbers: those of an evaluator's `summarize` that runs log, in percent; the first is the chief
        one, by which models are chosen
    evaluate: runs a predictor over a data set and returns the evaluator: `metrics.evaluate` or
        `metrics.evaluate_segments`, which share `keep`, `max_images`, `workers` and `progress`
    format: such a summary as text
    """

    title: str
    numbers: tuple[str, ...]
    evaluate: Callable[..., Any]
    format: Callable[[dict], str]

    @property
    def chief(self) -> str:
        return self.numbers[0]

    def line(self, summary: dict[str, Any]) -> str:
        """The numbers of `numbers` in one line."""
        names = (self.title, *self.numbers[1:])
        pairs = zip(names, self.numbers, strict=True)
        return ", ".join(f"{name} {summary[number]:.2f}" for name, number in pairs)


# By task, those of `data.dataset.TASKS`.
MEASURES = {
    "instance": Measure(
        "mask AP", ("AP", "AP50"), partial(evaluate, keep_results=False), format_table
    ),
    "panoptic": Measure(
        "PQ", ("PQ", "SQ", "RQ"), partial(evaluate_segments, task="panoptic"), format_panoptic
    ),
    "semantic": Measure(
        "mIoU", ("mIoU", "accuracy"), partial(evaluate_segments, task="semantic"), format_semantic
    ),
}
