"""Write a model to a file that runs without this package: ONNX, or a torch.export program.

python export.py runs/nuclei/best.pt --output nuclei.onnx --images nuclei/val
python export.py fastinst-d3-r50-640 --output model.pt2 --dynamic --dtype bfloat16

The file is run before it is put in place: where it does not find what the model finds, nothing is
written and the exit code is 1.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fastinst.config import ModelConfig
from fastinst.data.augment import shortest_edge_size
from fastinst.data.demo import draw
from fastinst.data.images import list_images, read_image
from fastinst.errors import InputError, run
from fastinst.export.artefact import read_onnx, read_program
from fastinst.export.gate import BEST, LIMITS, Drift, Limits, measure_drift
from fastinst.export.metadata import KEY, Metadata
from fastinst.export.onnx_file import FIRST_OPSET, KEPT, require, to_onnx
from fastinst.export.program import least_edge, to_bytes, trace
from fastinst.files import check_output_file, write_whole
from fastinst.targets import SIZE_DIVISOR, padded_size
from fastinst.weights import load_model

DTYPES = {".onnx": ("float32", "float16"), ".pt2": ("float32", "float16", "bfloat16")}


class DriftError(Exception):
    """The exported file does not find what the model finds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="a checkpoint, or the name of a released model")
    parser.add_argument("--output", type=Path, required=True, help="NAME.onnx or NAME.pt2")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images in the file, multiples of 32; by default the model's, landscape",
    )
    shape.add_argument("--dynamic", action="store_true", help="any size, any number of images")
    parser.add_argument("--batch-size", type=int, default=1, help="images in one run")
    parser.add_argument("--dtype", default="float32", help="float32, float16, or bfloat16 (.pt2)")
    parser.add_argument("--opset", type=int, default=FIRST_OPSET, help="of ONNX, 19 or later")
    parser.add_argument("--images", type=Path, help="a folder of images to check the file with")
    parser.add_argument("--max-images", type=int, default=8, help="of them, at most")
    args = parser.parse_args()
    check_arguments(args)

    # The model and the images that it is compared on.
    check_output_file(args.output)
    images = list(photographs(args.images, args.max_images))
    model, info = load_model(args.weights)
    shape = (args.batch_size, *(args.size or default_size(model.config)))
    if args.dynamic:
        shape = (None, *2 * (least_edge(model.config),))
    classes = info.class_names, info.category_ids
    metadata = Metadata(model.config, *classes, shape, args.dtype, info.is_thing)

    # The program, as bytes.
    start = time.perf_counter()
    is_onnx = args.output.suffix == ".onnx"
    program = trace(model, shape, getattr(torch, args.dtype), KEPT if is_onnx else ())
    texts = {KEY: metadata.to_json()}
    content = to_onnx(program, args.opset, texts) if is_onnx else to_bytes(program, texts)
    seconds = time.perf_counter() - start
    print(f"{args.output}: {len(content) / 1e6:.0f} MB, {describe(metadata)}, in {seconds:.0f} s")

    # The file, if it finds what the model finds.
    read = read_onnx if is_onnx else read_program
    try:
        with write_whole(args.output) as file:
            file.write(content)
            file.flush()
            written = Path(file.name).read_bytes()
            artefact = read(written, torch.device("cpu"), args.output)
            drift = measure_drift(model, artefact, images)
            limits = LIMITS[args.dtype]
            print(format_table(drift, limits, args.images, len(images)))
            if not drift.within(limits):
                raise DriftError
    except DriftError:
        print(
            f"error: it drifts too far from the model; {args.output} is not written",
            file=sys.stderr,
        )
        return 1
    if args.images and not args.dynamic:
        print(compare_padding(model.config, images, shape[1:]), end="")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raises InputError for what cannot be exported, before anything is computed."""
    suffix = args.output.suffix
    if suffix not in DTYPES:
        raise InputError(f"--output must end in .onnx or .pt2, got {args.output}")
    if args.dtype not in DTYPES[suffix]:
        raise InputError(f"--dtype for {suffix} is one of {', '.join(DTYPES[suffix])}")
    if args.size and any(side < SIZE_DIVISOR or side % SIZE_DIVISOR for side in args.size):
        raise InputError(f"--size must be multiples of {SIZE_DIVISOR}, got {args.size}")
    if min(args.batch_size, args.max_images) < 1:
        raise InputError("--batch-size and --max-images must be at least 1")
    if args.opset < FIRST_OPSET:
        raise InputError(f"--opset must be {FIRST_OPSET} or later: before it has no DeformConv")
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package)


def default_size(config: ModelConfig) -> tuple[int, int]:
    """Of the model's own resize and padding, for an image in landscape."""
    return padded_size(config.test_short_edge, config.test_max_edge)


def photographs(folder: Path | None, count: int) -> Iterator[np.ndarray]:
    """The first images of a folder, or generated ones."""
    if folder is None:
        yield from (draw(np.random.default_rng(number))[0] for number in range(count))
    else:
        yield from map(read_image, list_images(folder)[:count])


def compare_padding(config: ModelConfig, images: list[np.ndarray], size: tuple[int, int]) -> str:
    """What to export instead where the model, which pads each image no more than it must, would
    see images as the file does not: the gate compares both on the file's own batches."""
    edges = config.test_short_edge, config.test_max_edge
    sizes = [padded_size(*shortest_edge_size(*image.shape[:2], *edges)) for image in images]
    others = Counter(own for own in sizes if own != size)
    if not others:
        return ""
    ((height, width), count), *_ = others.most_common()
    return (
        f"note: the model itself pads {others.total()} of the {len(images)} images to another size "
        f"than this file's, with somewhat different results: --size {height} {width} is right for "
        f"{count} of them, --dynamic for all\n"
    )


def describe(metadata: Metadata) -> str:
    count, height, width = metadata.shape
    if metadata.dynamic:
        return f"{metadata.dtype}, for images of at least {height} x {width} (height x width)"
    return f"{metadata.dtype}, for {count} x 3 x {height} x {width} (height x width)"


def format_table(drift: Drift, limits: Limits, folder: Path | None, count: int) -> str:
    where = f"in {folder}" if folder else "generated; name yours with --images FOLDER"
    if not len(drift.ious):
        return f"neither the model nor the file finds anything in {count} images {where}"
    ious, scores = drift.ious, drift.scores
    return "\n".join(
        (
            f"{len(ious)} pairs of the model's best {BEST} and the file's, {count} images {where}",
            f"{'':22}{'mean':>9}{'99 of 100':>11}{'worst':>9}",
            f"{'IoU of masks':22}{ious.mean():9.5f}{np.quantile(ious, 0.01):11.5f}"
            f"{ious.min():9.5f}   limit: mean >= {limits.iou}",
            f"{'difference of scores':22}{scores.mean():9.5f}{drift.usual_score:11.5f}"
            f"{scores.max():9.5f}   limit: 99 of 100 <= {limits.score}",
        )
    )


if __name__ == "__main__":
    run(main)
