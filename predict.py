"""Find and draw the instances in images.

    python predict.py fastinst-d3-r50-640 street.jpg "my photos" --output found
    python predict.py runs/nuclei/best.pt nuclei/val --output found --ground-truth val.json

Writes one picture per image and predictions.json. That file has COCO's form: "images",
"categories" and, as "annotations", COCO results (image_id, category_id, RLE segmentation, bbox,
score), so that it also opens as a data set.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from torch import nn
from tqdm import tqdm

from fastinst.data.augment import resize_shortest_edge
from fastinst.data.dataset import Dataset
from fastinst.data.formats import load_dataset
from fastinst.data.images import list_images, read_image
from fastinst.device import choose_device
from fastinst.errors import InputError, run
from fastinst.files import make_output_folder, write_whole
from fastinst.results import Instances, postprocess
from fastinst.visualize import ground_truth_instances, overlay, save_jpeg, side_by_side
from fastinst.weights import CheckpointInfo, load_model

STAGES = ("read", "network", "read-out", "drawing", "saving")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a checkpoint, or the name of a released model")
    parser.add_argument("inputs", nargs="+", type=Path, help="images, or folders of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score to keep")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ground-truth", help="a data set to draw beside the predictions")
    args = parser.parse_args()
    if not 0 <= args.threshold <= 1:
        parser.error("--threshold must be from 0 to 1")

    # What to read and where to write.
    device = choose_device(args.device)
    paths = find_images(args.inputs)
    output = make_output_folder(args.output)
    inside = [path for path in paths if path.resolve().parent == output.resolve()]
    if inside:
        raise InputError(f"{inside[0]} lies in the output folder; choose another --output")
    truth, records = None, {}
    if args.ground_truth:
        truth = load_dataset(args.ground_truth, "val")
        records = {record.path.resolve(): record for record in truth.images}

    # The model and its classes.
    model, info = load_model(args.weights, device)
    class_names, category_ids = classes(model.config.num_classes, info, truth)

    # One image after the other.
    images, annotations, unreadable, interrupted = [], [], [], False
    timings = []
    try:
        bar = tqdm(paths, "predict", unit="image", disable=len(paths) == 1)
        for path, name in zip(bar, picture_names(paths), strict=True):
            clock = [time.perf_counter()]
            record = records.get(path.resolve())
            try:
                image = read_image(path, (record.height, record.width) if record else None)
            except InputError as error:
                unreadable.append(str(error))
                continue
            clock.append(time.perf_counter())

            found, network_done = predict(model, image, device)
            found = found[found.scores >= args.threshold].to("cpu")
            clock += [network_done, time.perf_counter()]

            picture = overlay(image, found, class_names)
            if record:
                drawn = overlay(
                    image, ground_truth_instances(record), truth.class_names, show_scores=False
                )
                picture = side_by_side(drawn, picture, ("ground truth", "prediction"))
            clock.append(time.perf_counter())

            results = found.to_coco(len(images) + 1, category_ids)
            save_jpeg(output / name, picture)
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": str(path),
                    "height": image.shape[0],
                    "width": image.shape[1],
                    "picture": name,
                }
            )
            annotations += results
            clock.append(time.perf_counter())

            timings.append([1000 * (b - a) for a, b in zip(clock, clock[1:], strict=False)])
            tqdm.write(f"{path}: {len(found)} instances, {sum(timings[-1]):.0f} ms")
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what is done is kept", file=sys.stderr)

    # The file and the summary.
    categories = [
        {"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)
    ]
    with write_whole(output / "predictions.json") as file:
        content = {
            "model": info.name,
            "threshold": args.threshold,
            "images": images,
            "categories": categories,
            "annotations": [as_annotation(i, r) for i, r in enumerate(annotations, start=1)],
        }
        file.write(json.dumps(content, allow_nan=False).encode())
    print(f"{len(annotations)} instances in {len(images)} images, written to {output}")
    if truth:
        drawn = sum(Path(image["file_name"]).resolve() in records for image in images)
        print(f"{drawn} of these images are in {truth.source}")
    if timings:
        medians = map(statistics.median, zip(*timings, strict=True))
        stages = ", ".join(f"{s} {ms:.1f}" for s, ms in zip(STAGES, medians, strict=True))
        print(f"median ms per image: {stages}")
    for line in unreadable:
        print(f"skipped: {line}", file=sys.stderr)
    return 130 if interrupted else 1 if unreadable else 0


def find_images(inputs: list[Path]) -> list[Path]:
    """The files among the inputs and the images directly in the folders, each once."""
    paths = {}
    for source in inputs:
        if source.is_dir():
            found = list_images(source)
        elif source.is_file():
            found = [source]
        else:
            raise InputError(f"{source}: no such file or folder")
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def picture_names(paths: list[Path]) -> Iterator[str]:
    """NAME.jpg for each path, or NAME-2.jpg and so on where several would have that name."""
    taken = set()
    for path in paths:
        name, count = f"{path.stem}.jpg", 1
        # Many file systems do not tell upper from lower case.
        while name.lower() in taken:
            count += 1
            name = f"{path.stem}-{count}.jpg"
        taken.add(name.lower())
        yield name


def classes(
    num_classes: int, info: CheckpointInfo, truth: Dataset | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names and category ids by label.

    The checkpoint's, or for one that has none the ground truth's if it has as many, else numbers.
    """
    if info.class_names is not None:
        return info.class_names, info.category_ids or tuple(range(1, num_classes + 1))
    if truth and len(truth.class_names) == num_classes:
        return truth.class_names, truth.category_ids
    numbers = tuple(range(1, num_classes + 1))
    return tuple(f"class {number}" for number in numbers), numbers


@torch.inference_mode()
def predict(model: nn.Module, image: np.ndarray, device: torch.device) -> tuple[Instances, float]:
    """The instances in a uint8 [H, W, 3] image, best first, and when the network was done."""
    config = model.config
    small = resize_shortest_edge(image, config.test_short_edge, config.test_max_edge)
    pixels = torch.from_numpy(small).permute(2, 0, 1).to(device)
    batch, image_sizes = model.preprocess([pixels])
    outputs = model(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    network_done = time.perf_counter()
    return postprocess(outputs, image_sizes, [image.shape[:2]])[0], network_done


def as_annotation(number: int, result: dict) -> dict:
    """A COCO result with what makes it an annotation too."""
    area = rle.area(result["segmentation"])
    box = rle.toBbox(result["segmentation"])
    return {"id": number, **result, "bbox": box.tolist(), "area": int(area), "iscrowd": 0}


if __name__ == "__main__":
    run(main)
