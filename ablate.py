"""The supplement's ablations on your own data: train what a table compares, measure it, print it.

    python ablate.py table1 --data coco --weights resnet50.pth
    python ablate.py table2 --data nuclei --steps 300 --batch-size 4 --size 192
    python ablate.py table3 --data coco --trained fastinst-d1-r50-576
    python ablate.py table5 --data cityscapes --weights resnet50.pth

table1: Mask2Former to FastInst in nine steps. table2: with and without the location cost. table3:
queries by local maxima first or not, 10, 50 or 100 of them; all by one model, unless --retrain.
table4, table5: Mask2Former and FastInst on streets, for each task. AP is COCO's in all of them.

All options that are not below are train.py's, and the same for every model of the table. The
supplement's numbers beside the measured ones are of COCO and a V100. Interrupted, the same command
goes on where it was.
"""

import argparse
import contextlib
import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from fastinst.ablation import (
    FPS,
    PARAMETERS,
    TABLES,
    Column,
    Table,
    format_ablation,
    with_options,
)
from fastinst.data.dataset import Dataset
from fastinst.data.formats import load_splits
from fastinst.data.images import read_image
from fastinst.device import choose_device
from fastinst.errors import ArgumentParser, InputError, run
from fastinst.files import check_output_file, make_output_folder, write_whole
from fastinst.metrics.measures import MEASURES
from fastinst.model import FastInst
from fastinst.predictor import Predictor
from fastinst.records import describe_machine, format_rows, print_machine, read_rows
from fastinst.timing import measure_in_turn
from fastinst.weights import load_model

CSV_HEADER = "date,machine,torch,commit,command,data,table,column,measure,value,p95,paper"
DONE = "trained.txt"  # in the folder of a finished run, the command that it is of


def main() -> int:
    args, others = parse_arguments()
    table = TABLES[args.table]
    device = choose_device(args.device)
    folder = make_output_folder(args.output or f"runs/{args.table}")
    if args.csv:
        check_output_file(args.csv)
    text = read_rows(args.csv, CSV_HEADER)
    validation = {}
    for task in table.tasks:
        _, validation[task], why = load_splits(args.data, args.val, args.images, task)
        if validation[task] is None:
            raise InputError(f"there is nothing to compare the models on: {why}; pass --val")
    print(table.title)

    # Train, each model in a process of its own.
    once = table.trained_once and not args.retrain
    runs = {}
    for column, task in itertools.product(table.columns, table.tasks):
        trained = table.columns[-1] if once else column
        name = trained.name if len(table.tasks) == 1 else f"{trained.name}-{task}"
        runs[column.name, task] = args.trained or folder / name / "best.pt"
        if not args.trained and (trained is column):
            code = train(args, others, column, task, table, folder / name)
            if code:
                return code

    # Evaluate, one after the other; then time, in turn.
    measured, predictors = {column.name: {} for column in table.columns}, {}
    for column, task in itertools.product(table.columns, table.tasks):
        model, info = load_model(runs[column.name, task])
        model = with_options(model, column.options) if once else model
        predictor = predictors[column.name] = Predictor(model, device, "float32")
        predictor.class_names = info.class_names
        print(f"{column.name}: {runs[column.name, task]}")
        evaluator = MEASURES[task].evaluate(predictor, validation[task])
        measured[column.name] |= evaluator.summarize() | {PARAMETERS: millions(model)}
    val = validation[table.tasks[0]]
    times = time_in_turn(predictors, val, args.seconds)
    for name, durations in times.items():
        measured[name][FPS] = 1000 / np.median(durations)

    # Write and print.
    report = describe_machine(device)
    print()
    print_machine(report)
    print(f"images a second (FPS): float32, one image of {val.source} at a time; AP: {val.source}")
    shown = format_ablation(table, measured)
    print(f"\n{shown}")
    with write_whole(folder / "table.md") as file:
        file.write(f"{table.title}\n\n{shown}\n".encode())
    if args.csv:
        rows = [
            report
            | {"data": Path(args.data).name, "table": args.table, "column": column.name}
            | {"measure": measure, "value": float(measured[column.name][measure]), "paper": paper}
            | ({"p95": 1000 / np.percentile(times[column.name], 95)} if measure == FPS else {})
            for column in table.columns
            for measure, paper in zip(table.measures, column.paper, strict=True)
        ]
        with write_whole(args.csv) as file:
            file.write((text + format_rows(rows, CSV_HEADER)).encode())
    return 0


def train(
    args: argparse.Namespace,
    others: list[str],
    column: Column,
    task: str,
    table: Table,
    output: Path,
) -> int:
    """train.py's exit code; 0 for a run that is done already. One that has begun is continued."""
    options = [f"{name}={value}" for name, value in column.options.items()]
    command = [sys.executable, str(Path(__file__).with_name("train.py"))]
    command += ["--model", column.model, "--output", str(output), "--resume", "auto"]
    command += ["--data", args.data, "--task", task, "--device", args.device, *others]
    for name in ("val", "images"):
        command += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    if table.size and "--size" not in others:
        command += ["--size", str(table.size)]
    if table.recipe:
        command += ["--recipe", table.recipe]
    command += ["--set", *args.set, *options]
    told = shlex.join(command[1:])
    print(f"\n{column.name}: {told}", flush=True)
    done = output / DONE
    if done.is_file() and done.read_text() == told:
        print("is done already")
        return 0
    process = subprocess.Popen(command)
    code = None
    while code is None:
        with contextlib.suppress(KeyboardInterrupt):
            # It has been interrupted as well, saves what it has, and leaves with 130.
            code = process.wait()
    if code == 0:
        with write_whole(done) as file:
            file.write(told.encode())
    return code


def millions(model: FastInst) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def time_in_turn(
    predictors: dict[str, Predictor], dataset: Dataset, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds from a resized image in memory to masks of its original's size, many times."""
    record = dataset.images[0]
    image = read_image(record.path, (record.height, record.width))
    calls = {}
    for name, predictor in predictors.items():
        resized = predictor.resize(image)
        calls[name] = [lambda p=predictor, r=resized: p.infer([r], [image.shape[:2]])]
    device = next(iter(predictors.values())).device
    return measure_in_turn(calls, device, seconds * len(predictors))


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("table", choices=TABLES)
    add("--data", required=True, help="what to train and evaluate on, as for train.py")
    add("--val", help="what to evaluate on [found in --data]")
    add("--images", help="folder of the images, for a COCO JSON that lies elsewhere")
    add("--output", help="folder of the runs and of table.md [runs/TABLE]")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of ModelConfig, for all")
    add("--retrain", action="store_true", help="of table3: a model for each row")
    add("--trained", help="of table3: a checkpoint or released model, instead of training")
    add("--seconds", type=float, default=5.0, help="of timing, for each model [5]")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... [auto]")
    add("--csv", type=Path, help="append a row for every number to this file")
    args, others = parser.parse_known_args()
    if not TABLES[args.table].trained_once and (args.retrain or args.trained):
        parser.error("--retrain and --trained are for table3")
    if args.retrain and args.trained:
        parser.error("give --retrain or --trained")
    for name in ("--model", "--resume", "--sanity", "--task"):
        if name in others:
            parser.error(f"{name} is the table's own")
    return args, others


if __name__ == "__main__":
    run(main)
