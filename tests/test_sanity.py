"""The check before a long run: what it says about good data, bad data and too little time."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from small_coco import write_coco

import fastinst.training.sanity
import fastinst.training.verdict
from fastinst.config import make_config
from fastinst.data.coco import load_coco
from fastinst.data.demo import write_demo
from fastinst.errors import InputError
from fastinst.metrics.label_agreement import LabelAgreement
from fastinst.model import FastInst
from fastinst.training.sanity import sanity_check, small_model
from fastinst.training.verdict import FEWEST_OBJECTS, SIGMAS, Evidence, judge

GOOD = {
    "learned": 12,
    "object_edge": 40.0,
    "alignment": 0.99,
    "losses": [40.0] * 100 + [4.0] * 200,
    "ap": 55.0,
    "ap50": 81.0,
    "unseen_ap50": 30.0,
    "classes": LabelAgreement(60, 0.85, 0.3),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = write_demo(tmp_path_factory.mktemp("sanity") / "demo", train=14, val=1)
    return load_coco(folder / "annotations" / "instances_train.json", folder / "train")


@pytest.fixture
def few(monkeypatch):
    """Fewer images and steps, for tests of what does not depend on their number."""
    for name, number in {"LEARNED": 4, "UNSEEN": 2, "DRAWN": 2, "MOST_STEPS": 2}.items():
        monkeypatch.setattr(fastinst.training.sanity, name, number)


def tiny_model(dataset, short=64):
    torch.manual_seed(0)
    return FastInst(
        make_config(
            "fastinst-d1-r18-192",
            num_classes=len(dataset.class_names),
            test_short_edge=short,
            test_max_edge=short * 4 // 3,
            hidden_dim=64,
            ffn_dim=32,
            num_points=64,
        )
    )


def test_good_evidence_passes_and_is_told():
    verdict = judge(Evidence(**GOOD))
    assert verdict.passed and str(verdict) == (
        "PASS: learnt 12 images by heart in 300 steps: AP50 81.0, AP 55.0, loss 40.0 -> 4.0; "
        "the masks fit their images (alignment 0.99); AP50 30.0 on images that it was not trained "
        "on; 85% of the objects found there have the right class"
    )


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"alignment": 0.51, "losses": []}, "masks do not fit their images: alignment 0.51"),
        ({"not_finite": "step 3: loss nan on the images 7, 9"}, "loss nan on the images 7, 9"),
        ({"ap50": 3.0, "losses": [24.1] * 100 + [23.0] * 100}, "loss did not fall: 24.1 -> 23.0"),
        ({"ap50": 3.0}, "AP50 3.0 on the 12 images that it was trained on"),
        ({"ap50": 3.0, "object_edge": 9.4}, "about 9 pixels long at this size"),
        ({"ap50": 3.0, "losses": [30.0] * 12}, "time was over at step 12,"),
        ({"classes": LabelAgreement(60, 0.31, 0.3)}, "60 objects .* 31% .* guessing has 30%"),
    ],
)
def test_each_fault_alone_fails_with_its_reason(bad, words):
    verdict = judge(Evidence(**GOOD | bad))
    assert not verdict.passed and re.search(words, verdict.reason), verdict.reason
    assert str(verdict).startswith("FAIL: ")


@pytest.mark.parametrize(
    "fine",
    [
        {"alignment": None},
        {"losses": [40.0] * 5 + [4.0] * 5},  # few steps, but they were enough
        {"classes": LabelAgreement(FEWEST_OBJECTS - 1, 0.3, 0.3)},  # too few to tell
        {"classes": LabelAgreement(60, 1.0, 1.0)},  # a single class
        {"classes": LabelAgreement(0, 0.0, 0.0), "unseen_ap50": float("nan")},
    ],
)
def test_what_cannot_be_judged_is_no_fault(fine):
    verdict = judge(Evidence(**GOOD | fine))
    assert verdict.passed and "nan" not in verdict.reason


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_guessed_classes_pass_about_once_in_a_hundred_times(classes):
    rng = np.random.default_rng(0)
    for objects in (FEWEST_OBJECTS, 100):
        right = (rng.integers(0, classes, (5000, objects)) == 0).mean(axis=1)
        sigmas = [LabelAgreement(objects, share, 1 / classes).sigmas for share in right]
        assert np.mean(np.array(sigmas) >= SIGMAS) < 0.02


def test_a_model_learns_coloured_rectangles_by_heart(few, tmp_path, monkeypatch):
    """The whole check with nothing replaced but its lengths."""
    for name, number in {"LEARNED": 8, "MOST_STEPS": 60, "CHECK_EVERY": 20}.items():
        monkeypatch.setattr(fastinst.training.sanity, name, number)
    rng = np.random.default_rng(0)
    rectangles = [[] for _ in range(10)]
    for objects in rectangles:
        for half in (0, 48):
            width, height = (8 * int(side) for side in rng.integers(3, 6, 2))
            left = half + 8 * int(rng.integers((48 - width) // 8 + 1))
            top = 8 * int(rng.integers((64 - height) // 8 + 1))
            objects.append((int(rng.integers(3)), left, top, left + width, top + height))
    path = write_coco(tmp_path, rectangles)
    dataset = load_coco(path, path.parent / "val")
    lines = []
    verdict = sanity_check(dataset, "cpu", model=tiny_model(dataset), say=lines.append)
    evidence = verdict.evidence
    assert verdict.passed and evidence.alignment > 0.8
    assert evidence.ap50 >= 50 and evidence.unseen_ap50 > 0
    assert len(lines) == 2 + len(evidence.curve) and lines[-1].startswith("  step ")


def test_masks_of_other_images_fail_before_any_training(demo, few, tmp_path, monkeypatch):
    monkeypatch.setattr(FastInst, "loss", lambda *_: pytest.fail("a step was made"))
    records = [
        dataclasses.replace(r, annotations=tuple(_laid_on(r, a, other) for a in other.annotations))
        for r, other in zip(demo.images, demo.images[1:] + demo.images[:1], strict=True)
    ]
    wrong = dataclasses.replace(demo, images=tuple(records))
    picture = tmp_path / "check.jpg"
    verdict = sanity_check(wrong, "cpu", model=tiny_model(demo), picture=picture, say=lambda _: 0)
    assert not verdict.passed and "masks do not fit" in verdict.reason
    assert Image.open(picture).width < 2 * 225 + 20  # annotations alone


def _laid_on(record, annotation, source):
    """An annotation of `source` in a corner of another image."""
    height, width = min(record.height, source.height), min(record.width, source.width)
    mask = np.zeros((record.height, record.width), np.uint8, order="F")
    mask[:height, :width] = annotation.mask(source.height, source.width)[:height, :width]
    code = mask_utils.encode(mask)
    segmentation = {"size": list(mask.shape), "counts": code["counts"].decode()}
    return dataclasses.replace(annotation, segmentation=segmentation)


def test_a_check_that_has_no_time_says_so_and_leaves_a_picture(demo, few, tmp_path):
    lines = []
    picture = tmp_path / "check.jpg"
    model = tiny_model(demo)
    verdict = sanity_check(
        demo, "cpu", model=model, max_minutes=0, picture=picture, say=lines.append
    )
    assert not verdict.passed and "time was over at step 1," in verdict.reason
    assert len(verdict.evidence.losses) == 1 and model.training
    assert "learn 4 images by heart" in lines[0] and lines[1].count(".jpg") == 4
    assert Image.open(picture).width > 4 * 160  # annotations beside predictions, in two columns


def test_a_loop_that_does_not_train_is_found_out(demo, few, monkeypatch):
    monkeypatch.setattr(fastinst.training.sanity, "LR", 0.0)
    monkeypatch.setattr(fastinst.training.verdict, "FEWEST_STEPS", 2)
    verdict = sanity_check(demo, "cpu", model=tiny_model(demo), say=lambda _: 0)
    assert not verdict.passed and "loss did not fall" in verdict.reason


def test_the_seed_decides_the_result(demo, few):
    first, again, other = (
        sanity_check(demo, "cpu", model=tiny_model(demo), seed=seed, say=lambda _: 0).evidence
        for seed in (1, 1, 2)
    )
    assert len(first.losses) == 2 and first == again
    assert first.losses != other.losses


def test_a_loss_that_is_not_finite_names_the_images(demo, few):
    model = tiny_model(demo)
    with torch.no_grad():
        model.queries.aux_features.fill_(float("nan"))
    verdict = sanity_check(demo, "cpu", model=model, say=lambda _: 0)
    assert re.search(r"step 1: loss nan .* on the images \d+, \d+, \d+, \d+", verdict.reason)
    assert not verdict.passed


def test_a_data_set_without_objects_is_an_error(demo):
    empty = tuple(dataclasses.replace(record, annotations=()) for record in demo.images)
    with pytest.raises(InputError, match="instances_train.json: no image has an object"):
        sanity_check(dataclasses.replace(demo, images=empty), "cpu")


def test_the_small_model_shows_small_objects_larger(demo):
    config = small_model(demo).config
    assert (config.test_short_edge, config.test_max_edge) == (192, 256)
    assert config.num_classes == 4 and not config.frozen_batch_norm
    halves = [
        dataclasses.replace(r, height=2 * r.height, width=2 * r.width) for r in demo.images
    ]  # of the images' length
    config = small_model(dataclasses.replace(demo, images=tuple(halves))).config
    assert 192 < config.test_short_edge <= 320
    assert small_model(demo, 100).config.test_short_edge == 100
