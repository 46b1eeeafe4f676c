"""Examines this machine or, given a data set, what would spoil a training on it.

    python -m fastinst.doctor
    python -m fastinst.doctor DATA --model fastinst-d3-r50-640 --batch-size 8

Of the machine: what it has, which kernel serves each operator, and how to mend what is wrong. Of
a data set, in any format that train.py takes: counts, findings that name images and annotations,
a forecast of steps and memory, and a picture of augmented images with their masks.
Leaves with exit code 1 if the machine has something to mend, or the data set something fatal;
with 0 if not.
"""

import argparse
import os
import sys

from fastinst.config import image_size, list_models, make_config
from fastinst.data.augment import Augmentation
from fastinst.data.formats import load_splits
from fastinst.data.loader import TrainingImages
from fastinst.device import choose_device
from fastinst.errors import run
from fastinst.examination.contact_sheet import contact_sheet
from fastinst.examination.report import MOST_IMAGES, examine
from fastinst.files import make_output_folder
from fastinst.machine_doctor import examine_machine
from fastinst.visualize import save_jpeg


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastinst.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", nargs="?", help="data set: its folder, or its file of annotations [the machine]")
    add("--val", help="validation set [found in DATA]")
    add("--images", help="folder of the images, for a COCO JSON elsewhere")
    add("--model", default="fastinst-d3-r50-640", help=", ".join(list_models()))
    add("--size", type=int, help="shorter image edge, for training and testing [the model's]")
    add("--batch-size", type=int, default=16, help="of one process")
    add("--device", default="auto", help="whose memory the forecast is compared with")
    add("--output", default="runs/doctor", help="folder of contact_sheet.jpg")
    few = f"examine every image, not only {MOST_IMAGES} of each split"
    add("--check-all-images", action="store_true", help=few)
    args = parser.parse_args()
    for name in ("size", "batch_size"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    return args


def examine_data(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    train, val, without_val = load_splits(args.data, args.val, args.images)
    size = image_size(args.size) if args.size else {}
    config = make_config(args.model, num_classes=len(train.class_names), **size)
    report = examine(
        train,
        val,
        config,
        args.batch_size,
        device=device,
        amp=device.type == "cuda",  # as train.py has it by default
        most_images=None if args.check_all_images else MOST_IMAGES,
    )
    report.show(print)
    if val is None:
        print(f"No validation set was examined: {without_val}")
    if report.fatal:
        return 1
    settings = Augmentation.for_size(config.train_short_edge, config.train_max_edge)
    sheet = contact_sheet(TrainingImages(train, settings, seed=0), train.class_names)
    path = make_output_folder(args.output) / "contact_sheet.jpg"
    save_jpeg(path, sheet)
    print(f"See {path}: what the model will be trained on.")
    return 0


def main() -> int:
    args = parse_arguments()
    try:
        code = examine_data(args) if args.data else min(1, examine_machine())
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read this has seen enough, `head` for one; nor may the interpreter's end flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    run(main)
