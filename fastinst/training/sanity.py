"""Before a long run: can a model learn a few images of this data set by heart, and if not, why?

Data that a model cannot learn, and a training loop that does not train, show within minutes on a
few images. Wrong annotations need not: a model learns any masks by heart, given time. Those show by
outlines that do not follow the images (`fastinst.examination.alignment`), and by the classes that
it gives to objects in images that it was not trained on (`fastinst.metrics.label_agreement`).
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import nn
from tqdm import tqdm

from fastinst.config import image_size, make_config
from fastinst.data.augment import Augmentation
from fastinst.data.dataset import Dataset
from fastinst.data.images import read_image
from fastinst.data.loader import EpochSampler, TrainingImages
from fastinst.errors import InputError
from fastinst.examination.alignment import measure_alignment
from fastinst.metrics.coco import CocoEvaluator
from fastinst.metrics.evaluate import evaluate
from fastinst.metrics.label_agreement import label_agreement
from fastinst.model import FastInst
from fastinst.predictor import Predictor
from fastinst.results import Instances
from fastinst.training.optimizer import parameter_groups, scale_learning_rates
from fastinst.training.typical_images import object_length, typical_images
from fastinst.training.verdict import Evidence, Verdict, judge
from fastinst.visualize import grid, ground_truth_instances, overlay, save_jpeg, side_by_side

LEARNED, UNSEEN, DRAWN = 8, 24, 6  # images
BATCH_SIZE, LR, CLIP = 4, 5e-4, 1.0
MOST_STEPS, CHECK_EVERY, WARMUP = 400, 25, 10
GOAL = 80.0  # AP50 on the learned images, with which there is nothing more to show
THRESHOLD = 0.5  # score of what is drawn
# The small model sees objects at about this size, within what a CPU can afford; all in pixels.
OBJECT_EDGE, SHORT_EDGES = 32, (192, 320)


def sanity_check(
    dataset: Dataset,
    device: torch.device | str,
    *,
    model: FastInst | None = None,
    size: int | None = None,
    max_minutes: float = 5.0,
    seed: int = 0,
    picture: Path | str | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> Verdict:
    """Train a model on a few images of a data set and judge whether it could learn them.

    model: what to train, on the device; it is changed. None: `small_model`, from scratch
    size: shorter image edge of the small model, in pixels [one that shows its objects well]
    max_minutes: of training. It ends sooner once the images have been learnt, and after
        `MOST_STEPS`; where the time does for all of these, the verdict does not depend on it.
    picture: a JPEG to write, the annotations of learned images beside what was found in them
    say: takes the lines that tell how it goes
    Raises InputError if no image has an object, one cannot be read, or the picture not be written.
    """
    records = typical_images(dataset, LEARNED + UNSEEN, seed)
    if not records:
        raise InputError(f"{dataset.source}: no image has an object to learn")
    learned = dataclasses.replace(dataset, images=records[:LEARNED])
    unseen = dataclasses.replace(dataset, images=records[LEARNED:])
    name = "the chosen model"
    if model is None:
        torch.manual_seed(seed)
        model, name = small_model(learned, size).to(device), "a small model from scratch"
    model.to(memory_format=torch.channels_last)
    short, longest = model.config.test_short_edge, model.config.test_max_edge
    augmentation = Augmentation(short_edges=(short,), max_edge=longest, crop_probability=0.0)
    images = TrainingImages(learned, augmentation, seed)
    say(
        f"sanity check: {name} ({model.config.name}, shorter edge {short}) is to learn "
        f"{len(images)} images by heart, in at most {MOST_STEPS} steps or {max_minutes:g} minutes"
    )
    say(f"  {', '.join(record.path.name for record in learned.images)}")

    aligned = measure_alignment(dataset, seed=seed)
    evidence = Evidence(
        learned=len(images),
        object_edge=short * _usual_length(learned),
        alignment=aligned.score if aligned else None,
    )
    results = None
    if not evidence.misaligned:
        _learn(model, images, learned, evidence, max_minutes, seed, say)
    if evidence.losses and not evidence.not_finite:
        evaluator = _evaluate(model, learned)
        results, summary = evaluator.results(), evaluator.summarize()
        evidence.ap, evidence.ap50 = summary["AP"], summary["AP50"]
        if len(unseen):
            evaluator = _evaluate(model, unseen)
            evidence.unseen_ap50 = evaluator.summarize()["AP50"]
            evidence.classes = label_agreement(unseen, evaluator.results())
    if picture is not None:
        _draw(learned, results, picture)
    return judge(evidence)


def small_model(dataset: Dataset, short: int | None = None) -> FastInst:
    """fastinst-d1-r18-192 with random weights.

    short: its shorter image edge, by default one that shows these images' objects well
    """
    if short is None:
        smallest, largest = SHORT_EDGES
        short = round(OBJECT_EDGE / _usual_length(dataset) / 32) * 32
        short = min(max(short, smallest), largest)
    classes = len(dataset.class_names)
    return FastInst(make_config("fastinst-d1-r18-192", num_classes=classes, **image_size(short)))


def _usual_length(dataset: Dataset) -> float:
    return float(np.median([object_length(record) for record in dataset.images]))


def _learn(
    model: FastInst,
    images: TrainingImages,
    learned: Dataset,
    evidence: Evidence,
    max_minutes: float,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Train, and note the losses and what comes of it in `evidence`.

    The learning rate follows half a cosine, to 0 at the last step that the time will allow.
    """
    # As in the release; a frozen batch norm tells that the backbone is pretrained.
    backbone_lr = 0.1 * LR if model.config.frozen_batch_norm else LR
    optimizer = torch.optim.AdamW(parameter_groups(model, LR, backbone_lr, weight_decay=0.05))
    total, allowed, started = MOST_STEPS, 60 * max_minutes, time.monotonic()
    model.train()
    with tqdm(total=total, unit="step", dynamic_ncols=True, disable=None, leave=False) as bar:
        for step, keys in enumerate(EpochSampler(len(images), BATCH_SIZE, seed), start=1):
            factor = min(1.0, step / WARMUP) * (1 + math.cos(math.pi * (step - 1) / total)) / 2
            scale_learning_rates(optimizer, factor)
            samples = [images[key] for key in keys]
            batch, _ = model.preprocess([sample["image"] for sample in samples])
            batch = batch.to(memory_format=torch.channels_last)
            losses = model.loss(batch, [sample["target"] for sample in samples])
            optimizer.zero_grad()
            loss = sum(losses.values())
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            evidence.losses.append(loss.item())
            if not math.isfinite(norm + evidence.losses[-1]):
                names = ", ".join(str(sample["image_id"]) for sample in samples)
                evidence.not_finite = f"step {step}: loss {loss:g} and gradient {norm:g}"
                evidence.not_finite += f" on the images {names}"
                return
            optimizer.step()
            bar.set_postfix(loss=f"{evidence.losses[-1]:.2f}", refresh=False)
            bar.update()

            # Planned anew only now and then, so that small delays change nothing.
            spent = time.monotonic() - started
            if step % CHECK_EVERY == 0 or spent >= allowed:
                affordable = int(step * allowed / spent)
                bar.total = total = min(MOST_STEPS, max(step, affordable))
            if step == total:
                return
            if step % CHECK_EVERY == 0:
                evaluator = _evaluate(model, learned)
                ap50 = evaluator.summarize()["AP50"]
                mean = np.mean(evidence.losses[-CHECK_EVERY:])
                say(f"  step {step}: loss {mean:.2f}, AP50 {ap50:.1f}, {spent:.0f} s")
                evidence.curve.append((step, ap50))
                if ap50 >= GOAL:
                    return


def _evaluate(model: FastInst, dataset: Dataset) -> CocoEvaluator:
    predictor = Predictor(model, model.device, torch.float32)
    return evaluate(predictor, dataset, workers=0, progress=False)


def _draw(dataset: Dataset, results: list[dict] | None, path: Path | str) -> None:
    """Annotations beside results; alone if there are none."""
    pictures = []
    for record in dataset.images[:DRAWN]:
        image = read_image(record.path, (record.height, record.width))
        truth = ground_truth_instances(record)
        left = overlay(image, truth, dataset.class_names, show_scores=False)
        if results is None:
            pictures.append(left)
            continue
        found = _instances(dataset, results, record.id)
        right = overlay(image, found, dataset.class_names)
        pictures.append(side_by_side(left, right, ("ground truth", "prediction")))
    save_jpeg(path, grid(pictures, columns=2))


def _instances(dataset: Dataset, results: list[dict], image_id: int) -> Instances:
    """What COCO results say of an image, those of at least `THRESHOLD`, best first."""
    kept = [r for r in results if r["image_id"] == image_id and r["score"] >= THRESHOLD]
    kept.sort(key=lambda result: -result["score"])
    labels = {category: label for label, category in enumerate(dataset.category_ids)}
    (record,) = (record for record in dataset.images if record.id == image_id)
    masks = np.zeros((len(kept), record.height, record.width), bool)
    for mask, result in zip(masks, kept, strict=True):
        mask[:] = mask_utils.decode(result["segmentation"])
    return Instances.from_masks(
        torch.tensor([result["score"] for result in kept]),
        torch.tensor([labels[result["category_id"]] for result in kept], dtype=torch.int64),
        torch.from_numpy(masks),
    )
