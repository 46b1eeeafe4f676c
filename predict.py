"""Find and draw what is in images and videos: instances, or panoptic or semantic segmentation.

    python predict.py fastinst-d3-r50-640 street.jpg "my photos" clip.mp4 --output found
    python predict.py runs/nuclei/best.pt nuclei/val --output found --ground-truth val.json
    python predict.py runs/city/best.pt street.jpg --output found --task panoptic

Writes one picture per image, one MP4 per video, and predictions.json. That file has COCO's form:
"images", "categories" and, as "annotations", COCO results (image_id, category_id, RLE
segmentation, bbox, score), so that it also opens as a data set. So it does with --task panoptic,
in COCO's panoptic format: each annotation names a PNG of segment ids in the folder predictions, and
lists the segments. With --task semantic the pixels of these PNGs are category ids. The frames of a
video are images with "video_id" and "frame_id". Under torchrun the processes share the inputs,
each on its own GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fastinst.data.dataset import TASKS, ImageRecord
from fastinst.data.formats import load_dataset
from fastinst.data.images import find_files, read_image
from fastinst.errors import ArgumentParser, InputError, run
from fastinst.files import make_output_folder, write_whole
from fastinst.picture_pipeline import run_pipeline
from fastinst.prediction.classes import Classes
from fastinst.prediction.instance_files import InstanceFiles
from fastinst.prediction.segment_files import PanopticFiles, SemanticFiles
from fastinst.predictor import Predictor
from fastinst.read_outs import Found
from fastinst.training.interrupts import Interrupts
from fastinst.training.processes import Processes
from fastinst.video import VIDEO_SUFFIXES, Video, VideoWriter
from fastinst.visualize import save_jpeg, side_by_side

FILES = {"instance": InstanceFiles, "panoptic": PanopticFiles, "semantic": SemanticFiles}


def main() -> int:
    processes, code = Processes.find(), 2
    with processes.telling_one_error("predictions.json was not written"):
        args = parse_arguments()
        processes = processes.connect(torch.device("cpu"))
        code = predict(args, processes)
        processes.leave()
    return code


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a checkpoint, an exported file or a released model's name")
    parser.add_argument("inputs", nargs="+", type=Path, help="images, folders of images, videos")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--task", choices=TASKS, default="instance", help="what the model was trained for"
    )
    lowest = "lowest score to keep [0.5; with --task panoptic 0.8]"
    parser.add_argument("--threshold", type=float, help=lowest)
    parser.add_argument("--max-instances", type=int, help="per image [100]")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once [1]")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps [a GPU where there is one]")
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16 [the fastest that the device really has]"
    )
    parser.add_argument("--ground-truth", help="a data set to draw beside the predictions")
    parser.add_argument("--images", help="the folder of its images, if --ground-truth is a JSON")
    parser.add_argument("--no-pictures", action="store_true", help="write the results alone")
    args = parser.parse_args()
    if args.task == "semantic" and args.threshold is not None:
        parser.error("--threshold leaves out instances and segments; --task semantic has none")
    if args.task != "instance" and args.max_instances is not None:
        parser.error("--max-instances is for --task instance")
    if args.threshold is None and args.task == "instance":
        args.threshold = 0.5
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error("--threshold must be from 0 to 1")
    if args.images and not args.ground_truth:
        parser.error("--images is the folder of the images of --ground-truth; name that too")
    return args


def predict(args: argparse.Namespace, processes: Processes) -> int:
    # What to read and where to write.
    paths = find_files(args.inputs)
    output = make_output_folder(args.output)
    results = output / "predictions"  # the PNGs', named after predictions.json as COCO's are
    taken = (output.resolve(), results.resolve())
    inside = [path for path in paths if path.resolve().parent in taken]
    if inside:
        raise InputError(f"{inside[0]} lies in the output folder; choose another --output")
    truth, records = None, {}
    if args.ground_truth:
        truth = load_dataset(args.ground_truth, "val", args.images, args.task)
        records = {record.path.resolve(): record for record in truth.images}

    # The model and its classes.
    most = 100 if args.max_instances is None else args.max_instances
    options = (args.device, args.dtype, most, args.threshold)
    predictor = Predictor(args.weights, *options, task=args.task)
    files = FILES[args.task](results, Classes.of(predictor, truth), truth)

    # What becomes of an item behind the network, in threads.
    def finish(item: Item, found: Found | InputError) -> Item:
        if isinstance(found, InputError):
            item.error = str(found)
            return item
        item.annotations, item.count = files.write(item.name, found)
        if not args.no_pictures:
            in_video = item.frame is not None
            picture = files.draw(item.pixels, found, in_video)
            if item.record:
                drawn = files.draw_truth(item.pixels, item.record)
                picture = side_by_side(drawn, picture, ("ground truth", "prediction"))
            if in_video:
                item.pixels = picture
                return item
            save_jpeg(output / item.picture, picture)
        item.pixels = None  # finished items are kept
        return item

    interrupts, started = Interrupts(), time.perf_counter()

    def run_items(items: Iterable[Item]) -> Iterator[Item]:
        return run_pipeline(predictor, items, finish, args.batch_size, lambda: interrupts.received)

    # This process's share: the images, then one video after the other.
    items = [
        Item(place, path, picture, records.get(path.resolve()))
        for place, (path, picture) in enumerate(zip(paths, output_names(paths), strict=True))
    ][processes.rank :: processes.world]
    stills = [item for item in items if item.path.suffix.lower() not in VIDEO_SUFFIXES]
    done: list[Item] = []
    bar = tqdm(total=len(stills), desc="predict", unit="image", disable=len(stills) < 2)
    with bar, closing(run_items(stills)) as finished:
        for item in finished:
            done.append(item)
            bar.update()
            if not item.error:
                tqdm.write(f"{item.path}: {item.count} {files.noun}")
    for item in items:
        if item.path.suffix.lower() in VIDEO_SUFFIXES and not interrupts.received:
            done += predict_video(item, output, run_items, files.noun, not args.no_pictures)
    seconds = time.perf_counter() - started

    # The file and the summary, by the first process.
    done = sorted(processes.joined(done), key=lambda item: (item.place, item.frame or 0))
    stopped = any(processes.joined([interrupts.received]))
    if not processes.leads:
        return 130 if stopped else 0
    content = {"model": predictor.name, "threshold": predictor.threshold}
    content |= predictions(done, files.categories)
    with write_whole(output / "predictions.json") as file:
        file.write(json.dumps(content, allow_nan=False).encode())
    images, count = len(content["images"]), sum(item.count for item in done)
    print(f"{count} {files.noun} in {images} images, written to {output}")
    print(f"{images / seconds:.1f} images/s in {seconds:.1f} s, reading and drawing included")
    if truth:
        drawn = sum(item.record is not None and not item.error for item in done)
        print(f"{drawn} of these images are in {truth.source}")
    errors = [item.error for item in done if item.error]
    for line in errors:
        print(f"skipped: {line}", file=sys.stderr)
    if stopped:
        print("interrupted; what is done is kept", file=sys.stderr)
    return 130 if stopped else 1 if errors else 0


@dataclass
class Item:
    """An image, or a frame of a video, on its way from its file to the results.

    place: of its file among the inputs
    picture: the name of what is drawn of its file
    record: its ground truth
    frame: its number, from 0, in a video
    pixels: uint8 [H, W, 3], as read, and for a frame then as drawn
    size: (height, width) of it
    annotations: what predictions.json says of it
    count: of what was found
    error: why there is nothing
    """

    place: int
    path: Path
    picture: str
    record: ImageRecord | None = None
    frame: int | None = None
    pixels: np.ndarray | None = None
    size: tuple[int, int] | None = None
    annotations: list[dict] = field(default_factory=list)
    count: int = 0
    error: str | None = None

    @property
    def name(self) -> str:
        """Of its results; those of a video's frames are in a folder."""
        name = self.picture.removesuffix(".jpg")
        return name if self.frame is None else f"{name}/{self.frame:06}"

    def __call__(self) -> np.ndarray:
        """Its pixels, read where they are not there."""
        if self.pixels is None:
            annotated = (self.record.height, self.record.width) if self.record else None
            self.pixels = read_image(self.path, annotated)
        self.size = self.pixels.shape[:2]
        return self.pixels


def predict_video(
    item: Item, output: Path, run_items: Callable, noun: str, draw: bool
) -> list[Item]:
    """The frames of a video with their results, and if it cannot be read to its end, why."""
    try:
        video = Video.open(item.path)
    except InputError as error:
        return [replace(item, error=str(error))]

    def frames() -> Iterator[Item]:
        for number, pixels in enumerate(video.frames()):
            yield replace(item, frame=number, pixels=pixels)

    done = []
    writer = VideoWriter(output / item.picture, video) if draw else nullcontext()
    with writer, closing(run_items(frames())) as finished:
        for frame in tqdm(finished, item.path.name, unit="frame"):
            if draw:
                writer.write(frame.pixels)
            frame.pixels = None
            done.append(frame)
    print(f"{item.path}: {sum(frame.count for frame in done)} {noun} in {len(done)} frames")
    if video.damage:
        done.append(replace(item, frame=len(done), error=video.damage))
    return done


def output_names(paths: list[Path]) -> Iterator[str]:
    """NAME.jpg, or NAME.mp4 for a video, or NAME-2.jpg and so on where several had that name."""
    taken = set()
    for path in paths:
        suffix = ".mp4" if path.suffix.lower() in VIDEO_SUFFIXES else ".jpg"
        name, count = path.stem + suffix, 1
        # Many file systems do not tell upper from lower case.
        while name.lower() in taken:
            count += 1
            name = f"{path.stem}-{count}{suffix}"
        taken.add(name.lower())
        yield name


def predictions(done: list[Item], categories: list[dict]) -> dict:
    """What predictions.json says of images, videos, categories and what was found."""
    images, annotations, videos = [], [], {}
    for item in done:
        if item.error:
            continue
        (height, width), image_id = item.size, len(images) + 1
        image = {"id": image_id, "file_name": str(item.path), "height": height, "width": width}
        if item.frame is not None:
            video = {"id": len(videos) + 1, "file_name": str(item.path), "picture": item.picture}
            video = videos.setdefault(item.place, video)
            image |= {"video_id": video["id"], "frame_id": item.frame}
        else:
            image["picture"] = item.picture
        images.append(image)
        for annotation in item.annotations:
            annotations.append({"id": len(annotations) + 1, **annotation, "image_id": image_id})
    content = {"images": images, "categories": categories, "annotations": annotations}
    return content | ({"videos": list(videos.values())} if videos else {})


if __name__ == "__main__":
    run(main)
