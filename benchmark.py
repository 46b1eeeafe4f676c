"""Measure a model's speed: latency percentiles of every stage and end to end, side by side with
what the authors' release does. Or the operators' (--ops): each compiled kernel beside what one
would use instead. All in one run and in turn, so that everything meets the same machine.

    python benchmark.py fastinst-d3-r50-640
    python benchmark.py fastinst-d3-r50-640 --compare --plot latency.png
    python benchmark.py fastinst-d3-r50-640 --batch-size 1 4 --size 384 640 --csv speed.csv
    python benchmark.py runs/nuclei/best.pt --images photos --protocol deploy
    python benchmark.py runs/nuclei/best.pt --compare --data nuclei --max-images 50
    python benchmark.py --paper-table
    python benchmark.py --ops --device cuda --dtype float16

A model's name means random weights, which take as long as trained ones: see `random_model`.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fastinst import op_timing
from fastinst.benchmarking.cases import measure_case
from fastinst.benchmarking.cost import random_model
from fastinst.benchmarking.measurement import PROTOCOLS
from fastinst.benchmarking.report import (
    CSV_HEADER,
    PAPER_FPS,
    draw_latency,
    print_case,
    print_run,
    print_summary,
    rows,
)
from fastinst.benchmarking.variants import (
    VARIANTS,
    Variant,
    artefact_variant,
    default_variants,
    make_variant,
)
from fastinst.config import list_models
from fastinst.data.dataset import Dataset
from fastinst.data.formats import load_dataset
from fastinst.data.images import list_images, read_image
from fastinst.device import choose_device, choose_dtype
from fastinst.errors import InputError, run
from fastinst.files import check_output_file, write_whole
from fastinst.metrics.evaluate import evaluate
from fastinst.networks import ARTEFACTS
from fastinst.records import describe_machine, format_rows, print_machine, read_rows
from fastinst.rivals import CASES
from fastinst.weights import load_model

# Of a folder's images: so many batches are held in memory, and taken in turn.
MOST_BATCHES = 32
OPS_OPTIONS = ("ops", "only", "device", "dtype", "seconds", "threads", "json", "csv")


def main() -> int:
    args = parse_arguments()

    # The machine. Better an error now than after the measurement.
    device = choose_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"cannot time {device.type!r}; use --device cpu or --device cuda")
    for file in filter(None, (args.json, args.csv, args.plot)):
        check_output_file(file)
    text = read_rows(args.csv, op_timing.CSV_HEADER if args.ops else CSV_HEADER)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.fp32_precision = "ieee"  # no TF32
    report = describe_machine(device) | {"interrupted": False, "cases": []}

    # One case after the other; an interrupt leaves what has been measured.
    measure, show = time_models, print_case
    if args.ops:
        measure, show = time_operators, op_timing.print_case
    try:
        for case in measure(args, device, report):
            report["cases"].append(case)
            show(case)
            save(report, args, text)
    except KeyboardInterrupt:
        report["interrupted"] = True
        print("interrupted", file=sys.stderr)
    if report["cases"] and not args.ops:
        print_summary(report["cases"])
    save(report, args, text)
    return 130 if report["interrupted"] else 0


def save(report: dict, args: argparse.Namespace, text: str) -> None:
    """Everything to the JSON; to the CSV, after the text that was in it, this run's rows."""
    if args.json:
        with write_whole(args.json) as file:
            file.write(json.dumps(report, indent=1, allow_nan=False).encode())
    if args.csv:
        if args.ops:
            new = format_rows(op_timing.rows(report), op_timing.CSV_HEADER)
        else:
            new = format_rows(rows(report), CSV_HEADER)
        with write_whole(args.csv) as file:
            file.write((text + new).encode())
    if args.plot and report["cases"]:
        with write_whole(args.plot) as file:
            draw_latency(report).save(file, "PNG")


def time_operators(args: argparse.Namespace, device: torch.device, report: dict) -> Iterator[dict]:
    dtype = choose_dtype(args.dtype or "float32", device)
    print(f"dtype: {dtype}")
    print_machine(report)
    yield from op_timing.measure_ops(device, dtype, args.only, args.seconds)


def time_models(args: argparse.Namespace, device: torch.device, report: dict) -> Iterator[dict]:
    """Yields a case for each model, size and batch size."""
    report |= {
        "protocol": args.protocol,
        "images": str(args.images or "random pixels"),
        "height": args.height,  # None for a folder's
        "width": args.width,
    }
    print_run(report)
    dataset = load_dataset(args.data, "val") if args.data else None
    for name, size in itertools.product(args.models, args.size or [None]):
        variants, weights = make_variants(args, name, size, device)
        ap = {v.name: mask_ap(v, dataset, args.max_images) for v in variants if dataset}
        for batch_size in args.batch_size:
            case = measure_case(
                variants,
                read_batches(args, batch_size),
                *(args.protocol, args.warmup, args.iterations, args.seconds),
            )
            for entry in case["variants"]:
                entry["ap"] = ap.get(entry["variant"])
            if case["variants"]:
                yield case | {"weights": weights}
            if case["interrupted"]:
                raise KeyboardInterrupt


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?", help=f"a checkpoint, an exported file, or {', '.join(list_models())}")
    add("--weights", action="store_true", help="the released weights of a model's name")
    add("--paper-table", action="store_true", help="the paper's five models beside its speeds")
    add("--ops", action="store_true", help="the operators beside what one would use instead")
    add("--only", choices=CASES, help="of --ops, this one")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--protocol", choices=PROTOCOLS, default="paper", help="what end to end spans")
    add("--compare", action="store_true", help="the release, the model and its engine in turn")
    add("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help=", ".join(VARIANTS))
    add("--dtype", help="of the engine; default: float32, or for the protocol deploy auto")
    add("--height", type=int, help="of the original image, 480 by default")
    add("--width", type=int, help="of the original image, 640 by default")
    add("--images", type=Path, help="a folder of images to take in turn; default: random pixels")
    add("--size", type=int, nargs="+", help="shorter edge that images are resized to, or several")
    add("--batch-size", type=int, nargs="+", default=[1], help="images at once, or several")
    add("--data", help="also AP on this data set, by what is timed; see evaluate.py")
    add("--max-images", type=int, help="of --data, only the first so many")
    add("--warmup", type=int, help="runs before the measured ones; default: until stable")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--iterations", type=int, help="runs to measure")
    duration.add_argument("--seconds", type=float, help="for a variant: 10, or a case of --ops: 1")
    add("--threads", type=int, help="of the CPU")
    add("--json", type=Path, help="write everything to this file")
    add("--csv", type=Path, help="append a row for every stage or rival to this file")
    add("--plot", type=Path, help="draw the latency by stage to this PNG")
    args = parser.parse_args()
    if [args.paper_table, args.ops, bool(args.model)].count(True) != 1:
        parser.error("give either a model or --paper-table or --ops")
    for name, value in vars(args).items():
        if args.ops and name not in OPS_OPTIONS and value != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for models, not for --ops")
    if args.only and not args.ops:
        parser.error("--only is for --ops")
    if [args.compare, bool(args.variants), bool(args.dtype)].count(True) > 1 and not args.ops:
        parser.error("give one of --compare, --variants and --dtype: variants have their dtypes")
    if args.images and (args.height or args.width):
        parser.error("--images have their own height and width")
    numbers = ("height", "width", "iterations", "seconds", "threads", "max_images")
    for name in (*numbers, "size", "batch_size"):
        value = getattr(args, name)
        if value is not None and not np.all(np.greater(value, 0)):
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.warmup is not None and args.warmup < 0:
        parser.error("--warmup must not be negative")
    if args.seconds is None:
        args.seconds = 1.0 if args.ops else 10.0
    if args.images is None:
        args.height, args.width = args.height or 480, args.width or 640
    args.models = list(PAPER_FPS) if args.paper_table else [args.model]
    return args


def make_variants(
    args: argparse.Namespace, name: str, size: int | None, device: torch.device
) -> tuple[list[Variant], str]:
    """What is measured of a model, all with the same weights, and where those are from."""
    if Path(name).suffix.lower() in ARTEFACTS:
        if size or args.compare or args.variants or args.dtype:
            raise InputError(
                f"{name} is measured as it was exported: without --size, --compare, --variants and "
                "--dtype"
            )
        return [artefact_variant(name, device)], Path(name).name
    if args.weights or Path(name).is_file():
        model, info = load_model(name)
        weights = Path(name).name if Path(name).is_file() else "released"
    elif name in list_models():
        model, info, weights = random_model(name), None, "random"
    else:
        known = ", ".join(list_models())
        raise InputError(f"{name!r} is neither a file nor a model; the models are {known}")
    if args.data and not info:
        raise InputError(f"--data wants trained weights: a checkpoint, or {name} --weights")
    if size:
        ratio = model.config.test_max_edge / model.config.test_short_edge
        edges = {"test_short_edge": size, "test_max_edge": round(size * ratio)}
        model.config = dataclasses.replace(model.config, **edges)
    default = args.dtype or ("float32" if args.protocol == "paper" else "auto")
    names = [f"engine-{choose_dtype(default, device)}".replace("torch.", "")]
    if args.compare or args.variants:
        names = args.variants or default_variants(device, model.config)
    variants = [make_variant(variant, model.eval(), device) for variant in names]
    for variant in variants:
        if variant.predictor and info:
            variant.predictor.class_names = info.class_names
    return variants, weights


def read_batches(args: argparse.Namespace, batch_size: int) -> list[list[np.ndarray]]:
    """Batches of uint8 [H, W, 3] images, to be taken in turn."""
    if args.images is None:
        shape = (batch_size, args.height, args.width, 3)
        return [list(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))]
    paths = list_images(args.images)
    count = min(MOST_BATCHES, -(-len(paths) // batch_size))
    endless = itertools.cycle(paths)
    return [[read_image(next(endless)) for _ in range(batch_size)] for _ in range(count)]


def mask_ap(variant: Variant, dataset: Dataset, max_images: int | None) -> float | None:
    """Mask AP by what is timed; None for the release, which is no Predictor."""
    predictor = variant.predictor
    if predictor is None:
        return None
    with variant.scope():
        return evaluate(predictor, dataset, max_images=max_images).summarize()["AP"]


if __name__ == "__main__":
    run(main)
