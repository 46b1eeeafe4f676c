"""The arguments of train.py, and those of the run that --resume continues."""

import argparse
import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastinst.config import ModelConfig, list_models
from fastinst.data.augment import Augmentation
from fastinst.data.dataset import TASKS
from fastinst.data.fixed_crop import FixedCrop
from fastinst.data.large_scale_jitter import LargeScaleJitter
from fastinst.data.view import Views
from fastinst.errors import ArgumentParser, InputError
from fastinst.examination.report import MOST_IMAGES
from fastinst.training.interrupts import parse_duration
from fastinst.training.run_folder import RunFolder, resolve_resume
from fastinst.training.schedule import DROPS

# Of this process alone: a resumed run does not take them over.
_OF_THIS_PROCESS = ("resume", "device", "sanity", "time_limit", "workers", "check_all_images")
# Defaults of the options, under a name: the supplement's appendix B.
RECIPES = {
    "cityscapes": {
        "model": "fastinst-d3-r50-1024",
        "augmentation": "crop",
        "steps": 90_000,
        "batch_size": 16,
        "lr": 1e-4,
        "warmup": 10,
        "drops": [0.9, 0.95],
    },
}
# What a run's weights and its stream of batches are made of.
_FIXED = ("model", "set", "size", "weights", "batch_size", "batch_norm", "seed")


class Resumed(NamedTuple):
    """Where a run is taken up."""

    path: Path  # of the checkpoint
    training: dict[str, Any]  # its training state
    note: str | None  # what to tell the user about it


def parse_arguments(
    description: str, given: list[str] | None = None
) -> tuple[argparse.Namespace, Resumed | None]:
    """The arguments of the command line, and what they resume, if anything.

    A resumed run's own arguments are the defaults of the new ones.
    Raises InputError for arguments that argparse refuses, and for a run that cannot be resumed,
    or not like this.
    """
    parser = _make_parser(description)
    args = parser.parse_args(given)
    if args.recipe:
        parser.set_defaults(**RECIPES[args.recipe] | ({"steps": None} if args.epochs else {}))
        args = parser.parse_args(given)
    folder = args.output or f"runs/{args.model}"
    found = resolve_resume(args.resume, folder) if args.resume else None
    resumed = None
    if found:
        checkpoint, path, note = RunFolder(found).load()
        resumed = Resumed(path, checkpoint["training"], note)
        if "progress" not in resumed.training:
            raise InputError(
                f"{path} was saved by an earlier version, which cannot be resumed; start a new run "
                f"from its weights with --weights {shlex.quote(str(path))}"
            )
        folder = str(path.parent)
        saved = resumed.training["arguments"] | {"output": folder}
        if args.epochs or args.steps:
            saved |= {"epochs": None, "steps": None}
        parser.set_defaults(**saved)
        args = parser.parse_args(given)
        for name in _FIXED:
            if getattr(args, name) != saved[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} cannot change when resuming {path}: leave it out, "
                    f"or start a new run from its weights with --weights {shlex.quote(str(path))}"
                )
        if args.output != folder:
            raise InputError(
                f"--output cannot change when resuming {path}; move the folder itself, or start a "
                f"new run from its weights with --weights {shlex.quote(str(path))}"
            )
    args.output = folder
    if not args.data:
        parser.error("--data is needed")
    if args.sanity and resumed:
        parser.error("--sanity is for before a run, --resume for afterwards")
    if args.accumulate > args.batch_size:
        parser.error("--accumulate cannot be more than --batch-size")
    return args, resumed


def saved_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint keeps of the arguments, for the runs that resume it."""
    return {name: value for name, value in vars(args).items() if name not in _OF_THIS_PROCESS}


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """What --amp means on a device; None for 32 bits."""
    if amp == "auto":
        amp = "float16" if device.type == "cuda" else "off"
    return None if amp == "off" else getattr(torch, amp)


def training_views(augmentation: str, config: ModelConfig) -> Views:
    """What --augmentation means at a model's size."""
    edges = (config.train_short_edge, config.train_max_edge)
    if augmentation == "jitter":
        return LargeScaleJitter(max(edges))
    if augmentation == "crop":
        return FixedCrop.for_size(config.train_short_edge)
    return {"release": Augmentation.for_size, "flip": Augmentation.flip_only}[augmentation](*edges)


def _make_parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("data").add_argument
    add("--data", help="folder or file to train on")
    tasks = "learn objects, objects and stuff, or stuff alone: each class all there is [instance]"
    add("--task", choices=TASKS, default="instance", help=tasks)
    add("--val", help="folder or file to evaluate on [found in --data]")
    add("--images", help="folder of the images, for a COCO JSON that lies elsewhere")
    add(
        "--augmentation",
        choices=("release", "flip", "jitter", "crop"),
        default="release",
        help="the release's crops, sizes and flips; flips alone; large-scale jitter; or crops of "
        "one size, half as high as wide [release]",
    )
    few = f"examine every image, not only {MOST_IMAGES} of each split"
    add("--check-all-images", action="store_true", help=few)
    add(
        "--sanity",
        action="store_true",
        help="only try, within minutes, whether a few of the images can be learnt: by a small "
        "model or, with --weights, by the chosen one",
    )

    add = parser.add_argument_group("model").add_argument
    add("--model", default="fastinst-d3-r50-640", help=", ".join(list_models()))
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of ModelConfig")
    edge = "shorter image edge in pixels, for training and testing [the model's]"
    add("--size", type=_positive(int), metavar="N", help=edge)
    start = "start from a checkpoint, a release .pth, a model name or an ImageNet backbone"
    add("--weights", help=start)
    add(
        "--batch-norm",
        choices=("auto", "frozen", "train"),
        default="auto",
        help="auto: frozen with --weights, unless 32 images share statistics [auto]",
    )

    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--output", help="its folder [runs/MODEL]")
    add(
        "--resume",
        metavar="RUN",
        help="continue a run: its folder, a checkpoint, or auto for the one in --output if there "
        "is one; other options override",
    )
    recipe = "defaults of all options for a data set: cityscapes, as in the paper's supplement"
    add("--recipe", choices=RECIPES, help=recipe)
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=_positive(float), metavar="N", help="[50, but at least 2000 steps]"
    )
    length.add_argument("--steps", type=_positive(int), metavar="N", help="instead of --epochs")
    pause = "steps between evaluations and saves [an epoch, but at most 50 times]"
    add("--eval-every", type=_positive(int), metavar="N", help=pause)
    patience = "stop after so many evaluations without a better result [never]"
    add("--patience", type=_positive(int), metavar="N", help=patience)
    limit = "save and stop before it is over: 55m, 2h, 1h30m"
    add("--time-limit", type=_duration, metavar="TIME", help=limit)
    add("--seed", type=_not_negative(int), default=0, metavar="N", help="of all that is random [0]")

    add = parser.add_argument_group("a step").add_argument
    batch = "images of a step, over all processes [16]"
    add("--batch-size", type=_positive(int), default=16, metavar="N", help=batch)
    parts = "compute a step's batch in so many parts, to save memory [1]"
    add("--accumulate", type=_positive(int), default=1, metavar="N", help=parts)
    rate = "learning rate [1e-4 x sqrt(batch size / 16)]"
    add("--lr", type=_positive(float), metavar="X", help=rate)
    backbone = "factor of --lr for the backbone [0.1; from scratch 1]"
    add("--backbone-lr", type=_not_negative(float), metavar="X", help=backbone)
    decay = "AdamW's, but for norms and embeddings [0.05]"
    add("--weight-decay", type=_not_negative(float), default=0.05, metavar="X", help=decay)
    drops = "where the learning rate is multiplied by 0.1, as fractions of the run [0.889 0.963]"
    add("--drops", type=_fraction, nargs="*", default=list(DROPS), metavar="X", help=drops)
    rise = "steps over which the learning rate rises [a fiftieth of all, 10 to 1000]"
    add("--warmup", type=_not_negative(int), metavar="N", help=rise)
    clip = "largest gradient norm [0: any]"
    add("--clip", type=_not_negative(float), default=0.0, metavar="X", help=clip)
    ema = "decay of the weights' moving average, which is then evaluated, as 0.999 [0: none]"
    add("--ema", type=_decay, default=0.0, metavar="X", help=ema)

    add = parser.add_argument_group("the machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... [auto]")
    add(
        "--amp",
        choices=("auto", "off", "float16", "bfloat16"),
        default="auto",
        help="16 bits where that is safe; auto: float16 on a GPU, off on a CPU [auto]",
    )
    workers = "processes that load images, for each process that trains [up to 4]"
    few = min(4, os.cpu_count() or 1)
    add("--workers", type=_not_negative(int), default=few, metavar="N", help=workers)
    return parser


def _positive(kind: type) -> Callable[[str], float]:
    return lambda text: _number(kind, text, "must be positive", lambda value: value > 0)


def _not_negative(kind: type) -> Callable[[str], float]:
    return lambda text: _number(kind, text, "must not be negative", lambda value: value >= 0)


def _decay(text: str) -> float:
    return _number(float, text, "must be at least 0 and less than 1", lambda value: 0 <= value < 1)


def _fraction(text: str) -> float:
    return _number(float, text, "must be from 0 to 1", lambda value: 0 <= value <= 1)


def _number(kind: type, text: str, rule: str, follows: Callable[[float], bool]) -> float:
    try:
        value = kind(text)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None
    if not (math.isfinite(value) and follows(value)):
        raise argparse.ArgumentTypeError(f"{rule}, not {text}")
    return value


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
