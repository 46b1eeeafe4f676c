"""Measure what reading, drawing and writing pictures add to a network's time in predict.py.

    python -m fastinst.pipeline_timing DATA --model fastinst-d3-r50-640
    python -m fastinst.pipeline_timing DATA --model best.pt --dtype bfloat16 --csv FILE

In turn, over the same images again and again: the network alone, on images that lie resized in
memory, up to their masks; and all that predict.py does with a folder, with the network in the
middle. What is drawn are the annotations, so that it is the same work for any model.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.formats import load_dataset
from fastinst.data.images import read_image
from fastinst.device import choose_device
from fastinst.errors import run
from fastinst.files import check_output_file, write_whole
from fastinst.model import create_model
from fastinst.picture_pipeline import run_pipeline
from fastinst.predictor import Predictor
from fastinst.records import describe_machine, format_rows, print_machine, read_rows
from fastinst.results import Instances
from fastinst.timing import synchronize
from fastinst.visualize import ground_truth_instances, overlay, save_jpeg
from fastinst.weights import load_model

CSV_HEADER = (
    "date,machine,device,torch,commit,command,data,model,dtype,threads,images,side,median_ms,p95_ms"
)
THRESHOLD = 0.5  # predict.py's


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", help="a data set in any format that train.py reads")
    add("--split", choices=("train", "val"), default="val")
    add("--model", default="fastinst-d3-r50-640", help="a checkpoint, or a model's name: untrained")
    add("--device", default="auto")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--images", type=int, default=10, help="how many, the first ones")
    add("--rounds", type=int, default=5, help="over all of them")
    add("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.images < 1 or args.rounds < 1:
        parser.error("--images and --rounds must be positive")
    if args.csv:
        check_output_file(args.csv)
    text = read_rows(args.csv, CSV_HEADER)

    device = choose_device(args.device)
    report = describe_machine(device)
    print_machine(report)
    dataset = load_dataset(args.data, args.split)
    records = dataset.images[: args.images]
    torch.manual_seed(0)
    model = load_model(args.model)[0] if Path(args.model).is_file() else create_model(args.model)
    predictor = Predictor(model, device, args.dtype, threshold=THRESHOLD)
    times = time_in_turn(predictor, dataset, records, args.rounds)

    rows = []
    for side, durations in times.items():
        median, p95 = np.percentile(durations, (50, 95)).tolist()
        rows.append({"side": side, "median_ms": median, "p95_ms": p95})
        print(f"{side:10} {median:8.1f} ms an image, p95 {p95:.1f}")
    added = rows[1]["median_ms"] / rows[0]["median_ms"] - 1
    print(f"the pipeline adds {100 * added:.0f} % to the network's time")
    if args.csv:
        known = report | {
            "data": Path(args.data).name,
            "model": predictor.name,
            "dtype": args.dtype,
            "images": len(records),
        }
        with write_whole(args.csv) as file:
            file.write((text + format_rows((known | row for row in rows), CSV_HEADER)).encode())
    return 0


def time_in_turn(
    predictor: Predictor, dataset: Dataset, records: list[ImageRecord], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds for an image in each round of "network" and "pipeline", after one to warm up."""
    sizes = [(record.height, record.width) for record in records]
    images = [read_image(r.path, size) for r, size in zip(records, sizes, strict=True)]
    resized = [predictor.resize(image) for image in images]

    def network() -> None:
        for image, size in zip(resized, sizes, strict=True):
            predictor.infer([image], [size], THRESHOLD)
        synchronize(predictor.device)

    with tempfile.TemporaryDirectory() as folder:
        sources = [partial(read_image, r.path, s) for r, s in zip(records, sizes, strict=True)]
        place_of = {source: place for place, source in enumerate(sources)}

        def finish(source: partial, found: Instances) -> list[dict]:
            place = place_of[source]
            drawn = overlay(
                images[place], ground_truth_instances(records[place]), dataset.class_names
            )
            save_jpeg(Path(folder) / f"{place}.jpg", drawn)
            return found.to_coco(place, range(predictor.config.num_classes))

        def pipeline() -> None:
            for _ in run_pipeline(predictor, sources, finish):
                pass

        times = {"network": [], "pipeline": []}
        for count in range(1 + rounds):
            for side, call in (("network", network), ("pipeline", pipeline)):
                start = time.perf_counter()
                call()
                if count > 0:
                    times[side].append(1000 * (time.perf_counter() - start) / len(records))
    return times


if __name__ == "__main__":
    run(main)
