"""Evaluate a model on a data set (COCO, YOLO, Cityscapes): AP as pycocotools computes it.

Or its panoptic quality or semantic segmentation, and Cityscapes' own evaluation.

python evaluate.py fastinst-d3-r50-640 --data coco
python evaluate.py runs/nuclei/best.pt --data nuclei --output ap.json --report report
python evaluate.py --predictions results.json --data coco --metrics mask box boundary
python evaluate.py runs/city/best.pt --data cityscapes --task panoptic --cityscapes results
torchrun --nproc-per-node 8 evaluate.py fastinst-d3-r50-640 --data coco
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from fastinst.data.cityscapes_results import CityscapesResults
from fastinst.data.dataset import TASKS, Dataset
from fastinst.data.formats import load_dataset
from fastinst.device import choose_device
from fastinst.errors import ArgumentParser, InputError, run
from fastinst.files import check_output_file, make_output_folder, write_whole
from fastinst.metrics.cityscapes import check_cityscapesscripts, evaluate_cityscapes
from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.measures import MEASURES
from fastinst.metrics.overlap import METRICS
from fastinst.metrics.predictions import read_predictions
from fastinst.metrics.report import write_report
from fastinst.predictor import Predictor
from fastinst.training.processes import Processes


def main() -> int:
    processes = Processes.find()
    with processes.telling_one_error("Nothing was written"):
        args = parse_arguments()
        device = choose_device(args.device)
        processes = processes.connect(device)
        code = evaluate_and_write(args, device, processes)
        processes.leave()
        return code
    return 2


def evaluate_and_write(args: argparse.Namespace, device: torch.device, processes: Processes) -> int:
    # Better an error now than after an hour of evaluating.
    for file in filter(None, (args.output, args.results)):
        check_output_file(file)
    if args.report:
        make_output_folder(args.report)

    if args.cityscapes:
        check_cityscapesscripts()

    # The data.
    dataset = load_dataset(args.data, args.split, args.images, args.task)
    if processes.leads and dataset.skipped:
        print(f"annotations left out: {len(dataset.skipped)}, as", file=sys.stderr)
        print("\n".join(dataset.skipped[:5]), file=sys.stderr)

    # The results.
    measure, written = MEASURES[args.task], None
    if args.cityscapes:
        written = CityscapesResults(args.cityscapes, args.task, dataset.category_ids)
    start = time.perf_counter()
    kept = {"metrics": args.metrics, "keep_results": bool(args.results or args.report)}
    try:
        if args.predictions:
            name, how = args.predictions.name, {}
            evaluator = compare_predictions(args, dataset, kept)
        else:
            # "auto" is a GPU, but for a file that nothing installed runs there.
            chosen = None if args.device == "auto" else device
            predictor = Predictor(args.weights, chosen, args.dtype)
            name = predictor.name
            how = {"device": str(predictor.device), "dtype": str(predictor.dtype).split(".")[-1]}
            start = time.perf_counter()
            how_many = {"max_images": args.max_images, "workers": args.workers}
            if args.task == "instance":
                how_many |= {"batch_size": args.batch_size, **kept}
            keep = written.add if written else None
            evaluator = measure.evaluate(predictor, dataset, keep=keep, **how_many)
            if written:
                written.finish()
    except KeyboardInterrupt as stop:
        if processes.leads:
            where = f" {stop}" if str(stop) else ""
            print(f"interrupted{where}; nothing was written", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start

    # The numbers.
    if not processes.leads:
        return 0
    summary = evaluator.summarize()
    speed = summary["images"] / seconds
    print(f"{name} on {dataset.source}")
    print(measure.format(summary))
    if written:
        records = dataset.images[: args.max_images]
        theirs = evaluate_cityscapes(dataset, args.task, args.cityscapes, records)
        summary["cityscapes"] = theirs
        numbers = (f"{n} {v:.1f}" for n, v in theirs.items() if isinstance(v, float))
        print("Cityscapes' own evaluation:", "  ".join(numbers))
    if how:
        print(f"{seconds:.1f} s, {speed:.1f} images/s from files to matches, {how['dtype']}")
    if args.output:
        report = {
            "model": name,
            "weights": args.weights,
            "data": str(dataset.source),
            **how,
            "processes": processes.world,
            "torch": torch.__version__,
            "seconds": seconds,
            "images_per_second": speed,
            **summary,
        }
        write_json(args.output, without_nan(report))
    if args.results:
        write_json(args.results, evaluator.results())
    if args.report:
        for path in write_report(evaluator, name, args.report):
            print(f"wrote {path}")
    return 0


def compare_predictions(args: argparse.Namespace, dataset: Dataset, kept: dict) -> CocoEvaluator:
    """Results out of a file; those of boxes alone have box AP alone."""
    predictions = read_predictions(args.predictions, dataset)
    if any("segmentation" not in results[0] for results in predictions.values()):
        if "box" not in args.metrics or args.report:
            raise InputError(
                f"{args.predictions} has boxes and no masks: there is --metrics box, and no report"
            )
        kept = kept | {"metrics": ["box"]}
    image_ids = [record.id for record in dataset.images[: args.max_images]]
    evaluator = CocoEvaluator(dataset, image_ids, **kept)
    bar = tqdm(image_ids, "compare", disable=None)
    for done, image_id in enumerate(bar):
        try:
            evaluator.update_results(image_id, predictions.get(image_id, []))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"after {done} of {len(image_ids)} images") from None
    return evaluator


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", nargs="?", help="a checkpoint, an exported file, or a released model's name")
    add("--predictions", type=Path, help="in place of a model: results of any, a JSON as COCO's")
    add("--data", required=True, help="its folder, COCO JSON or YOLO data.yaml")
    add("--task", choices=TASKS, default="instance", help="what the model was trained for")
    add("--images", help="folder of a COCO JSON's images, if they are elsewhere")
    add("--split", choices=("train", "val"), default="val", help="of the data [val]")
    add("--metrics", nargs="+", choices=METRICS, default=["mask", "box"], help="[mask box]")
    add("--device", default="auto", help="cpu, cuda, cuda:1 or mps [a GPU where there is one]")
    dtypes = ("auto", "float32", "float16", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help="[float32]; auto: the fastest here")
    add("--batch-size", type=int, default=1, help="images at a time; no matter for AP [1]")
    add("--output", type=Path, help="write the numbers to this JSON")
    add("--results", type=Path, help="write all results to this JSON, as COCO does")
    add("--report", type=Path, help="draw precision over recall and the worst mistakes, a folder")
    cityscapes = (
        "write results as Cityscapes wants them to this folder, and have cityscapesscripts "
    )
    add("--cityscapes", type=Path, help=cityscapes + "evaluate")
    add("--max-images", type=int, help="evaluate only the first so many images")
    add("--workers", type=int, default=2, help="threads that read images [2]")
    args = parser.parse_args()
    if (args.weights is None) == (args.predictions is None):
        parser.error("give a model, or --predictions with a file of results")
    if args.workers < 0 or args.batch_size < 1:
        parser.error("--workers must be at least 0 and --batch-size at least 1")
    if args.max_images is not None and args.max_images < 1:
        parser.error("--max-images must be at least 1")
    if args.task != "instance" and (args.predictions or args.results or args.report):
        parser.error("--predictions, --results and --report are for --task instance")
    if args.cityscapes and args.predictions:
        parser.error("--cityscapes evaluates a model, not --predictions")
    args.dtype = None if args.dtype == "auto" else args.dtype
    args.metrics = [metric for metric in METRICS if metric in args.metrics]
    return args


def without_nan(content: object) -> object:
    """JSON has no nan; null stands for what could not be measured."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content


def write_json(path: Path, content: object) -> None:
    with write_whole(path) as file:
        file.write(json.dumps(content, allow_nan=False).encode())


if __name__ == "__main__":
    run(main)
