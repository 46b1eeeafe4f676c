"""The numbers of an evaluation as text."""

import math

from fastinst.metrics.average_precision import STATISTICS
from fastinst.metrics.overlap import METRICS


def format_table(summary: dict, columns: int = 3) -> str:
    """`CocoEvaluator.summarize`'s numbers as text: a line for each metric, then AP per class."""
    metrics = [metric for metric in METRICS if metric in summary]
    lines = [f"{summary['metric']:<8}  {_overall(summary)}"]
    lines += [f"{metric:<8}  {_overall(summary[metric])}" for metric in metrics]
    lines.append(f"({summary['instances']} instances in {summary['images']} images)")
    if not metrics and summary["metric"] == "mask":
        lines = [f"{_overall(summary)}  {lines[-1]}"]
    if summary["instances"] == 0:
        lines.append("These images have no ground truth, so there is nothing to measure.")
        return "\n".join(lines)
    names = [name if len(name) <= 24 else name[:23] + "…" for name in summary["per_class"]]
    width = max(map(len, names))
    per_class = [numbers["AP"] for numbers in summary["per_class"].values()]
    cells = [f"{name:<{width}} {_number(ap)}" for name, ap in zip(names, per_class, strict=True)]
    rows = math.ceil(len(cells) / columns)
    if len(lines) > 1:
        lines.append(f"{summary['metric']} AP by class:")
    lines += ["    ".join(cells[row::rows]) for row in range(rows)]
    missing = sum(map(math.isnan, per_class))
    if missing:
        lines.append(f"-: no ground truth in these images ({missing} of {len(cells)} classes)")
    return "\n".join(lines)


def _overall(numbers: dict) -> str:
    return "  ".join(f"{name} {_number(numbers[name]).strip()}" for name in STATISTICS)


def _number(value: float) -> str:
    return f"{'-' if math.isnan(value) else f'{value:.1f}':>5}"
