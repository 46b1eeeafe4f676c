"""Examines a data set before a model is trained on it, and forecasts the training.

report = examine(train, val, config, batch_size)
report.show(print)
if report.fatal:
    raise InputError(...)
"""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastinst.config import ModelConfig
from fastinst.data.augment import Augmentation
from fastinst.data.dataset import Dataset
from fastinst.data.layouts import is_for_testing
from fastinst.data.loader import TrainingImages
from fastinst.data.view import Views
from fastinst.examination import annotation_checks, class_checks, image_checks
from fastinst.examination.alignment import ABOVE_CHANCE, measure_alignment
from fastinst.examination.findings import Finding, counted, place
from fastinst.examination.forecast import Forecast, forecast
from fastinst.examination.object_table import ObjectTable, measure_objects

MOST_IMAGES = 2000  # of a split that are opened, if not all
SEVERITIES = ("fatal", "warning", "note")
WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}
SMALL, MEDIUM = 32**2, 96**2  # pixels, as COCO's AP has them


@dataclass(frozen=True)
class Report:
    """What was found, the fatal first, and what was counted, as lines of text."""

    findings: list[Finding]
    facts: list[str]

    @property
    def fatal(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "fatal"]

    def show(self, say: Callable[[str], None] = print, most_places: int = 3) -> None:
        """Say everything line by line, of each finding the first places."""
        for line in self.facts:
            say(line)
        for finding in self.findings:
            say("")
            for line in finding.lines(most_places):
                indent = " " * 10
                say(textwrap.fill(line, 100, subsequent_indent=indent, **WHOLE_WORDS))
        say("")
        counts = [sum(f.severity == severity for f in self.findings) for severity in SEVERITIES]
        named = [counted(n, name) for n, name in zip(counts, SEVERITIES, strict=True) if n]
        say(f"{', '.join(named)}." if named else "Nothing to complain about.")


def examine(
    train: Dataset,
    val: Dataset | None,
    config: ModelConfig,
    batch_size: int,
    *,
    parts: int = 1,
    settings: Views | None = None,
    device: torch.device | None = None,
    amp: bool = False,
    most_images: int | None = MOST_IMAGES,
) -> Report:
    """Look for everything that is known to spoil a training, in seconds.

    config, batch_size: of the model and of a step
    parts: how many the step is computed in, by several processes or one after the other
    settings: of the augmentation [the release's, at the model's size]
    device: to compute on [the CPU]; amp: whether in 16 bits
    most_images: of each split that are opened; None for all, minutes with COCO
    Nothing raises: what is wrong is in the report, whose `fatal` findings should stop a training.
    """
    splits = [("train", train, config.train_short_edge, config.train_max_edge)]
    if val is not None:
        splits.append(("val", val, config.test_short_edge, config.test_max_edge))
    findings: list[Finding] = []
    facts, tables, contents = [], {}, {}
    for split, dataset, short, longest in splits:
        objects = tables[split] = measure_objects(dataset)
        facts += _describe(split, dataset, objects)
        records = image_checks.sample_records(dataset, most_images)
        contents[split] = image_checks.read_contents(records, split)
        if len(records) < len(dataset):
            facts.append(f"         {len(records):,} of them opened, chosen at random")
        findings += image_checks.unreadable_images(split, contents[split])
        findings += annotation_checks.nothing_to_learn(split, dataset, objects)
        findings += annotation_checks.duplicate_annotations(split, dataset)
        findings += annotation_checks.outside_objects(split, dataset, objects)
        findings += annotation_checks.tiny_objects(split, dataset, objects, short, longest)
        findings += annotation_checks.more_than_queries(split, dataset, objects, config.num_queries)
        findings += annotation_checks.many_crowds(split, objects)
        findings += annotation_checks.boxes_as_masks(split, objects)
        findings += image_checks.duplicate_images(split, contents[split])
        aligned, found = _check_alignment(split, dataset)
        facts.append(f"         {aligned}")
        findings += found
    findings += class_checks.id_gaps(train)
    if val is not None:
        findings += _for_testing(val)
        findings += class_checks.different_classes(train, val)
        findings += image_checks.leaked_images(contents["train"], contents["val"])
    same_classes = val is not None and val.class_names == train.class_names
    in_train = class_checks.class_counts(train, tables["train"])
    in_val = class_checks.class_counts(val, tables["val"]) if same_classes else None
    findings += class_checks.class_frequencies(train, in_train, in_val)
    facts += ["", *_class_table(train, tables["train"], in_val, config)]
    if in_train.any():
        settings = settings or Augmentation.for_size(config.train_short_edge, config.train_max_edge)
        images = TrainingImages(train, settings, seed=0)
        device = device or torch.device("cpu")
        expected = forecast(images, config, batch_size, device, amp, parts)
        facts += ["", *_describe_forecast(expected, images, batch_size)]
        findings += _too_little_memory(expected, device)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(findings, facts)


def _describe(split: str, dataset: Dataset, objects: ObjectTable) -> Iterator[str]:
    crowds = int(objects.crowd.sum())
    yield f"{split:9}{dataset.source}"
    counts = objects.per_image(dataset)
    yield "         " + ", ".join(
        [
            counted(len(dataset), "image"),
            counted(int(counts.sum()), "object"),
            *([counted(crowds, "crowd")] if crowds else []),
            counted(len(dataset.class_names), "class", "classes"),
            f"{np.median(counts):.0f} objects in the median image and {counts.max()} at most",
        ]
    )


def _for_testing(val: Dataset) -> Iterator[Finding]:
    if is_for_testing(val.source):
        yield Finding(
            "note",
            f"The test set {val.source} stands in for a validation set. The best model is chosen "
            "by it, so its AP there will be flattering",
            fix="name another set with --val, and keep this one for evaluate.py",
        )


def _check_alignment(split: str, dataset: Dataset) -> tuple[str, list[Finding]]:
    measured = measure_alignment(dataset)
    if measured is None:
        return "alignment of masks and images: too few images to tell", []
    fact = (
        f"alignment of masks and images {measured.score:.2f} "
        f"(0.50 is chance, 1.00 the best), on {counted(measured.compared, 'image')}"
    )
    misfits = tuple(map(place, measured.misfits))
    if measured.score < ABOVE_CHANCE:
        what = f"The masks of {split} fit their images hardly better than any others"
        fix = "look at the contact sheet: are masks of one image on another, shifted or mirrored?"
        return fact, [Finding("warning", what, misfits, fix)]
    if misfits:
        what = (
            f"{counted(len(misfits), 'image')} of {split} with masks that fit other images as well"
        )
        fix = "look whether these masks belong to these images"
        return fact, [Finding("warning", what, misfits, fix)]
    return fact, []


def _class_table(
    train: Dataset, objects: ObjectTable, in_val: np.ndarray | None, config: ModelConfig
) -> Iterator[str]:
    """Objects of each class and their sizes in training, the most frequent classes first."""
    most = 20
    areas = objects.areas_at(train, config.train_short_edge, config.train_max_edge)
    size = np.digitize(areas, (SMALL, MEDIUM))
    real = ~objects.crowd
    counts = np.zeros((len(train.class_names), 3), np.int64)
    np.add.at(counts, (objects.label[real], size[real]), 1)
    width = max(5, *(len(name) for name in train.class_names))
    tail = "" if in_val is None else f"{'val':>10}"
    yield f"{'class':{width}}{'train':>10}{'small':>8}{'medium':>8}{'large':>8}{tail}"
    for label in np.argsort(-counts.sum(axis=1), kind="stable")[:most].tolist():
        total = counts[label].sum()
        shares = "".join(f"{n / total:>8.0%}" if total else f"{'-':>8}" for n in counts[label])
        tail = "" if in_val is None else f"{in_val[label]:>10,}"
        yield f"{train.class_names[label]:{width}}{total:>10,}{shares}{tail}"
    if len(counts) > most:
        yield f"and {len(counts) - most} rarer classes"
    yield (
        f"small: less than 32 x 32 pixels at a shorter edge of {config.train_short_edge}; "
        "large: from 96 x 96 on"
    )


def _describe_forecast(
    expected: Forecast, images: TrainingImages, batch_size: int
) -> Iterator[str]:
    yield (
        f"An epoch is {counted(expected.steps_per_epoch, 'step')}: "
        f"{counted(len(images), 'image')} with objects in batches of {batch_size}."
    )
    yield (
        f"Training takes about {expected.memory / 2**30:.1f} GiB in each process, for batches of "
        f"up to {expected.height} x {expected.width} pixels (estimated)."
    )


def _too_little_memory(expected: Forecast, device: torch.device) -> Iterator[Finding]:
    if expected.available is not None and expected.memory > expected.available:
        yield Finding(
            "warning",
            f"Training may run out of memory: about {expected.memory / 2**30:.1f} GiB are needed, "
            f"{expected.available / 2**30:.1f} GiB are there on {device}",
            fix="a smaller --batch-size or --size, or for training a larger --accumulate",
        )
