"""What a run says at its end: what it came to, and the command to go on with."""

import argparse
import shlex
from pathlib import Path

from fastinst.training.processes import Processes
from fastinst.training.run_folder import BEST, LAST
from fastinst.training.state import Progress
from fastinst.training.validation import Validation


def describe_outcome(
    args: argparse.Namespace,
    progress: Progress,
    steps: int,
    validation: Validation,
    processes: Processes,
    stopped_by: str | None,
) -> list[str]:
    """Lines of text.

    steps: of the whole run, as planned
    stopped_by: why a run that can be resumed has stopped; None for one that is done
    """
    lines, measure = [], validation.measure
    if progress.skipped_steps:
        lines.append(
            f"{progress.skipped_steps} steps were skipped, as their gradients were not finite"
        )
    if progress.replaced_images:
        lines.append(
            f"{progress.replaced_images} times another image stood in for one that is unreadable"
        )
    if stopped_by:
        program = "python" if processes.world == 1 else "torchrun ..."
        again = f"{program} train.py --resume {shlex.quote(args.output)}"
        lines.append(f"stopped by {stopped_by} after step {progress.step}; continue with: {again}")
        return lines
    if progress.step < steps:
        lines.append(f"ended early: no better {measure.chief} in {args.patience} evaluations")
    if validation.summary:
        lines.append(f"best {measure.title} {progress.best:.2f}; the last evaluation:")
        lines.append(measure.format(validation.summary))
    val = validation.val
    task = "" if args.task == "instance" else f" --task {args.task}"
    if val is None:
        last = shlex.quote(str(Path(args.output) / LAST))
        lines.append(f"next: python predict.py {last} YOUR_IMAGES{task}")
    else:
        data = ["--data", args.val or args.data]
        if args.images:
            data = ["--data", str(val.source), "--images", str(val.image_folder)]
        best = [str(Path(args.output) / BEST), *data]
        lines.append(f"next: python evaluate.py {shlex.join(best)}{task}")
    return lines
