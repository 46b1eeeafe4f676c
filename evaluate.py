"""Evaluate a model on a data set (COCO, YOLO, Cityscapes): mask AP as pycocotools computes it.

python evaluate.py fastinst-d3-r50-640 --data coco
python evaluate.py runs/nuclei/best.pt --data nuclei --output ap.json --results masks.json
torchrun --nproc-per-node 8 evaluate.py fastinst-d3-r50-640 --data coco
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from fastinst.data.formats import load_dataset
from fastinst.device import choose_device
from fastinst.errors import run
from fastinst.files import check_output_file, write_whole
from fastinst.metrics.coco import STATISTICS, evaluate, format_table, match_classes
from fastinst.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a checkpoint, or the name of a released model")
    parser.add_argument("--data", required=True, help="its folder, COCO JSON or YOLO data.yaml")
    parser.add_argument("--images", help="folder of a COCO JSON's images, if they are elsewhere")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON")
    parser.add_argument("--results", type=Path, help="write all results to this JSON, as COCO does")
    parser.add_argument("--max-images", type=int, help="evaluate only the first so many images")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    args = parser.parse_args()
    if args.workers < 0 or (args.max_images is not None and args.max_images < 1):
        parser.error("--workers must be at least 0 and --max-images at least 1")

    # The machine. Better an error now than after an hour of evaluating.
    device = choose_device(args.device)
    for file in filter(None, (args.output, args.results)):
        check_output_file(file)
    if "LOCAL_RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    leads = not dist.is_initialized() or dist.get_rank() == 0

    # The data and the model.
    dataset = load_dataset(args.data, args.split, args.images)
    if leads and dataset.skipped:
        print(f"annotations left out: {len(dataset.skipped)}, as", file=sys.stderr)
        print("\n".join(dataset.skipped[:5]), file=sys.stderr)
    model, info = load_model(args.weights, device)
    labels = match_classes(info.class_names, model.config.num_classes, dataset)

    # The results.
    start = time.perf_counter()
    evaluator = evaluate(
        model, dataset, device, labels=labels, max_images=args.max_images, workers=args.workers
    )
    seconds = time.perf_counter() - start
    if leads:
        summary = evaluator.summarize()
        speed = summary["images"] / seconds
        print(f"{info.name} on {dataset.source}")
        print(format_table(summary))
        print(
            f"{seconds:.1f} s, {speed:.1f} images/s with loading, network, masks and their encoding"
        )
        if args.output:
            report = {
                "model": info.name,
                "weights": args.weights,
                "data": str(dataset.source),
                "device": str(device),
                "processes": dist.get_world_size() if dist.is_initialized() else 1,
                "torch": torch.__version__,
                "seconds": seconds,
                "images_per_second": speed,
                **summary,
            }
            write_json(args.output, without_nan(report))
        if args.results:
            write_json(args.results, evaluator.results())
    if dist.is_initialized():
        dist.destroy_process_group()


def without_nan(numbers: dict) -> dict:
    """JSON has no nan; null stands for what could not be measured."""
    per_class = {k: None if math.isnan(v) else v for k, v in numbers["per_class"].items()}
    overall = {k: None if math.isnan(numbers[k]) else numbers[k] for k in STATISTICS}
    return {**numbers, **overall, "per_class": per_class}


def write_json(path: Path, content: object) -> None:
    with write_whole(path) as file:
        file.write(json.dumps(content, allow_nan=False).encode())


if __name__ == "__main__":
    run(main)
