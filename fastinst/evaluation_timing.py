"""Measure what an evaluation costs, beside the release's way of doing it with pycocotools.

    python -m fastinst.evaluation_timing DATA --model fastinst-d3-r50-640
    python -m fastinst.evaluation_timing DATA --model best.pt --csv benchmarks/evaluation.csv

Both evaluate the same images with the same weights, in turn, in one thread of Python: ours with the
engine, masks as bits and matching as they come; the release's network
(`fastinst.rivals.release_network`) with float masks, each encoded by pycocotools, and COCOeval at
the end. The stage "network" is from an image in memory to the model's outputs, "results" the masks,
their codes, the matching and the averages.

Each goes through all images, and then through them again, which is what is measured: an evaluation
has thousands of images of a few sizes, and what is done when a size first comes is no part of it.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.formats import load_dataset
from fastinst.data.images import read_image
from fastinst.errors import run
from fastinst.files import check_output_file, write_whole
from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.regions import ground_truth
from fastinst.model import FastInst, create_model
from fastinst.predictor import Predictor
from fastinst.preprocess import preprocess
from fastinst.records import describe_machine, format_rows, print_machine, read_rows
from fastinst.results import postprocess
from fastinst.rivals.release_network import release_network, release_postprocess
from fastinst.timing import summarize_stages
from fastinst.weights import load_model

CSV_HEADER = (
    "date,machine,torch,commit,command,data,model,dtype,threads,images,side,stage,median_ms,p95_ms"
)
STAGES = ("read", "network", "results")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="a data set in any format that train.py reads")
    add("--split", choices=("train", "val"), default="val")
    add("--model", default="fastinst-d3-r50-640", help="a checkpoint, or a model's name: untrained")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the engine")
    add("--images", type=int, default=10, help="how many, the first ones")
    add("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.images < 1:
        parser.error("--images must be positive")
    if args.csv:
        check_output_file(args.csv)
    text = read_rows(args.csv, CSV_HEADER)

    report = describe_machine(torch.device("cpu"))
    print_machine(report)
    dataset = load_dataset(args.data, args.split)
    model = _load(args.model, dataset)
    sides = {
        "ours": Ours(Predictor(model, "cpu", args.dtype), dataset),
        "release": Release(model, dataset),
    }
    rows = summarize(time_in_turn(sides, dataset.images[: args.images]))
    print(f"\n{'ms per image':24}{'median':>10}{'p95':>10}")
    for row in rows:
        print(
            f"{row['side'] + ', ' + row['stage']:24}{row['median_ms']:10.1f}{row['p95_ms']:10.1f}"
        )
    medians = {(row["side"], row["stage"]): row["median_ms"] for row in rows}
    print(
        f"results to network: {medians['ours', 'results'] / medians['ours', 'network']:.2f}; "
        f"end to end: {medians['release', 'all'] / medians['ours', 'all']:.2f}x faster"
    )
    if args.csv:
        known = report | {
            "data": Path(args.data).name,
            "model": model.config.name,
            "dtype": args.dtype,
            "images": min(args.images, len(dataset)),
        }
        with write_whole(args.csv) as file:
            file.write((text + format_rows((known | row for row in rows), CSV_HEADER)).encode())
        print(f"wrote {args.csv}")
    return 0


def _load(name: str, dataset: Dataset) -> FastInst:
    if Path(name).is_file():
        return load_model(name)[0]
    torch.manual_seed(0)
    return create_model(name, num_classes=len(dataset.class_names)).eval()


class Ours:
    """As `fastinst.metrics.evaluate` has it, without the threads."""

    def __init__(self, predictor: Predictor, dataset: Dataset):
        self.predictor, self.dataset = predictor, dataset
        self.evaluator = CocoEvaluator(dataset, keep_results=False)

    def stages(self, record: ImageRecord) -> Iterator[None]:
        """Yields after each of STAGES."""
        predictor, size = self.predictor, (record.height, record.width)
        resized = predictor.resize(read_image(record.path, size))
        yield
        to = (predictor.config, predictor.device, predictor.dtype)
        batch, sizes = preprocess([resized], *to)
        outputs = predictor.network(batch)
        yield
        (found,) = postprocess(outputs, sizes, [size])
        self.evaluator.update(record.id, found)
        yield

    def finish(self, records: list[ImageRecord]) -> None:
        self.evaluator.image_ids = sorted(record.id for record in records)
        self.evaluator.summarize()


class Release:
    def __init__(self, model: FastInst, dataset: Dataset):
        self.network, self.dataset = release_network(model), dataset
        self.resize = Predictor(model, engine=False).resize
        self.results: list[dict] = []

    def stages(self, record: ImageRecord) -> Iterator[None]:
        size = (record.height, record.width)
        resized = self.resize(read_image(record.path, size))
        yield
        batch, sizes = self.network.preprocess([resized])
        outputs = self.network(batch)
        yield
        self.results = [r for r in self.results if r["image_id"] != record.id]
        ((scores, labels, masks),) = release_postprocess(outputs, sizes, [size])
        for score, label, mask in zip(scores.tolist(), labels.tolist(), masks, strict=True):
            code = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            category = self.dataset.category_ids[label]
            found = {"image_id": record.id, "category_id": category, "score": score}
            self.results.append(found | {"segmentation": code})
        yield

    def finish(self, records: list[ImageRecord]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = _coco(self.dataset, records)
            evaluation = COCOeval(truth, truth.loadRes(self.results), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()


def _coco(dataset: Dataset, records: list[ImageRecord]) -> COCO:
    """The annotations of these images as pycocotools wants them."""
    annotations = []
    for record in records:
        truth = ground_truth(record)
        for i, code in enumerate(truth.codes):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": dataset.category_ids[truth.labels[i]],
                    "segmentation": code,
                    "area": truth.areas[i],
                    "iscrowd": int(truth.crowd[i]),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": r.id, "height": r.height, "width": r.width} for r in records],
        "categories": [{"id": id_} for id_ in dataset.category_ids],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


@torch.inference_mode()
def time_in_turn(sides: dict, records: list[ImageRecord]) -> dict[str, list[list[float]]]:
    """Of each side, for each image the milliseconds of STAGES; each shares in `finish`."""
    # A side at a time: memory that the other takes and gives back would be its own page faults.
    for _ in range(2):
        times = {name: [_time(side, r) for r in records] for name, side in sides.items()}
    for name, side in sides.items():
        start = time.perf_counter()
        side.finish(records)
        share = 1000 * (time.perf_counter() - start) / len(records)
        times[name] = [[*row[:-1], row[-1] + share] for row in times[name]]
    return times


def _time(side: "Ours | Release", record: ImageRecord) -> list[float]:
    marks = [time.perf_counter()]
    marks += [time.perf_counter() for _ in side.stages(record)]
    return (1000 * np.diff(marks)).tolist()


def summarize(times: dict[str, list[list[float]]]) -> list[dict]:
    """Rows of the CSV for each side and stage, "all" being the last."""
    return [
        {"side": side, "stage": stage} | numbers
        for side, runs in times.items()
        for stage, numbers in summarize_stages(runs, STAGES)
    ]


if __name__ == "__main__":
    run(main)
