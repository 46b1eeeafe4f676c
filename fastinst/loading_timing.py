"""Measure how fast training images are made, beside the release's order of operations.

    python -m fastinst.loading_timing DATA
    python -m fastinst.loading_timing DATA --workers 4 --csv benchmarks/loading.csv

Both make the same views of the same images, in turn, in one thread. Then as many workers as given
make batches, as in training.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fastinst.config import longest_edge
from fastinst.data.augment import Augmentation
from fastinst.data.formats import load_dataset
from fastinst.data.images import read_reduced
from fastinst.data.loader import EpochSampler, TrainingImages
from fastinst.data.workers import read_batches
from fastinst.errors import run
from fastinst.files import check_output_file, write_whole
from fastinst.records import describe_machine, format_rows, print_machine, read_rows
from fastinst.rivals.mapper import STAGES, staged_mapper

CSV_HEADER = "date,machine,torch,commit,command,data,what,stage,median_ms,p95_ms,images_per_second"
BATCH_SIZE = 16


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="a data set in any format that train.py reads")
    add("--split", choices=("train", "val"), default="train")
    add("--size", type=int, default=640, help="shorter image edge of the model")
    add("--seconds", type=float, default=8, help="for the comparison, and again for the workers")
    add("--workers", type=int, default=4, help="0 to leave them out")
    add("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    for name in ("size", "seconds"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be positive")
    if args.workers < 0:
        parser.error("--workers must not be negative")

    if args.csv:
        check_output_file(args.csv)
    text = read_rows(args.csv, CSV_HEADER)
    torch.set_num_threads(1)
    report = describe_machine(torch.device("cpu"))
    print_machine(report)

    settings = Augmentation.for_size(args.size, longest_edge(args.size))
    images = TrainingImages(load_dataset(args.data, args.split), settings, seed=0)
    rows = summarize(time_in_turn(images, args.seconds))
    print(f"\n{'ms per image':24}{'median':>10}{'p95':>10}{'images/s':>10}")
    for row in rows:
        name = f"{row['what']}, {row['stage']}"
        rate = f"{row['images_per_second']:10.1f}" if row["stage"] == "all" else ""
        print(f"{name:24}{row['median_ms']:10.2f}{row['p95_ms']:10.2f}{rate}")
    ours, release = (row for row in rows if row["stage"] == "all")
    ratios = {
        "median": release["median_ms"] / ours["median_ms"],
        "p95": release["p95_ms"] / ours["p95_ms"],
        "images/s": ours["images_per_second"] / release["images_per_second"],
    }
    print("ratio: " + ", ".join(f"{name} {value:.2f}x" for name, value in ratios.items()))
    if args.workers:
        rate = images_per_second(images, args.workers, args.seconds)
        print(f"{args.workers} workers: {rate:.1f} images/s")
        what = f"{args.workers} workers"
        rows.append({"what": what, "stage": "all", "images_per_second": rate})
    if args.csv:
        known = report | {"data": Path(args.data).name}
        with write_whole(args.csv) as file:
            file.write((text + format_rows((known | row for row in rows), CSV_HEADER)).encode())
        print(f"wrote {args.csv}")
    return 0


def staged_loading(images: TrainingImages, key: tuple[int, int]) -> Iterator[dict]:
    """What `images[key]` does; yields after each of STAGES, at last the sample."""
    record = images.records[key[1]]
    rng = np.random.default_rng((images.seed, *key))
    seed = int(rng.integers(2**63))
    view = images.settings.draw(record.height, record.width, rng)
    image, reduction = read_reduced(record.path, (record.height, record.width), view.reduction)
    yield {}
    image = view.render(image, reduction)
    yield {}
    labels, masks = view.masks(images.objects(key[1]))
    yield {}
    target = {"labels": torch.from_numpy(labels), "masks": torch.from_numpy(masks), "seed": seed}
    yield {"image": image, "target": target}


def staged_release(images: TrainingImages, key: tuple[int, int]) -> Iterator[dict]:
    rng = np.random.default_rng((images.seed, *key))
    rng.integers(2**63)  # the sample's seed, so that the view that follows is the same
    yield from staged_mapper(images.records[key[1]], images.settings, rng)


def time_in_turn(images: TrainingImages, seconds: float) -> dict[str, list[list[float]]]:
    """Of each side, for each image the milliseconds of STAGES; each image 2 times at least."""
    sides = {"ours": staged_loading, "release": staged_release}
    times = {side: [] for side in sides}
    start = time.perf_counter()
    for epoch in itertools.count():
        for index in range(len(images)):
            for side, stages in sides.items():
                marks = [time.perf_counter()]
                marks += [time.perf_counter() for _ in stages(images, (epoch, index))]
                times[side].append([1000 * (b - a) for a, b in itertools.pairwise(marks)])
        if epoch == 0:  # which has read the files into the system's cache
            times = {side: [] for side in sides}
        elif time.perf_counter() - start > seconds:
            return times


def summarize(times: dict[str, list[list[float]]]) -> list[dict]:
    """Rows of the CSV for each side and stage, "all" being the last."""
    rows = []
    for side, runs in times.items():
        columns = [*zip(*runs, strict=True), [sum(run) for run in runs]]
        for stage, column in zip((*STAGES, "all"), columns, strict=True):
            median, p95 = np.percentile(column, (50, 95)).tolist()
            row = {"what": side, "stage": stage, "median_ms": median, "p95_ms": p95}
            rows.append(row | {"images_per_second": 1000 * len(column) / sum(column)})
    return rows


def images_per_second(images: TrainingImages, workers: int, seconds: float) -> float:
    """Of the batches that train.py reads, once its workers are running."""
    sampler = EpochSampler(len(images), BATCH_SIZE, seed=0)
    batches = read_batches(images, sampler, workers, pin_memory=False)
    for _ in range(3 * workers):  # what was made before, while nobody asked
        next(batches)
    start = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            return count * BATCH_SIZE / elapsed


if __name__ == "__main__":
    run(main)
