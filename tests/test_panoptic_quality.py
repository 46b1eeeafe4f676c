"""Panoptic quality, and the mean IoU of semantic segmentation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinst.metrics.panoptic_quality import PanopticQuality, compare, format_panoptic
from fastinst.metrics.semantic import SemanticEvaluator, format_semantic
from fastinst.segments import Segment, SegmentMap

DATA = Path(__file__).parent / "data"


def segment_map(ids, segments):
    return SegmentMap(torch.as_tensor(np.array(ids, np.int32), device="cpu"), tuple(segments))


def from_json(ids, rows):
    segments = (Segment(r["id"], r["category_id"], bool(r.get("iscrowd"))) for r in rows)
    return segment_map(ids, segments)


def as_fractions(numbers):
    return {name.lower(): numbers[name] / 100 for name in ("PQ", "SQ", "RQ")}


def test_the_numbers_are_the_coco_panoptic_api_s():
    facts = json.loads((DATA / "panoptic-quality.json").read_text())
    maps = np.load(DATA / "panoptic-quality.npz")
    quality = PanopticQuality([str(k) for k in range(8)], facts["isthing"])
    for i, image in enumerate(facts["images"]):
        quality.update(
            from_json(maps[f"gt{i}"], image["gt"]), from_json(maps[f"pred{i}"], image["pred"])
        )
    summary = quality.summarize()
    for expected, numbers in (
        (facts["all"], summary),
        (facts["things"], summary["things"]),
        (facts["stuff"], summary["stuff"]),
    ):
        assert as_fractions(numbers) == pytest.approx(
            {name: expected[name] for name in ("pq", "sq", "rq")}, rel=1e-12
        )
        assert numbers["classes"] == expected["n"]
    per_class = {name: as_fractions(numbers) for name, numbers in summary["per_class"].items()}
    for name, expected in facts["per_class"].items():
        assert per_class[name] == pytest.approx(expected, rel=1e-12)
    assert summary["images"] == len(facts["images"])


def test_the_numbers_of_the_model_s_segments():
    facts = json.loads((DATA / "unified.json").read_text())
    maps = np.load(DATA / "unified.npz")
    quality = PanopticQuality(
        [str(k) for k in range(80)], [k in facts["things"] for k in range(80)]
    )
    for i in range(2):
        quality.update(
            from_json(maps[f"pq.gt{i}"], facts["pq_gt_segments"][i]),
            from_json(maps[f"panoptic{i}"], facts["segments"][i]),
        )
    summary = quality.summarize()
    for expected, numbers in (
        (facts["pq"]["all"], summary),
        (facts["pq"]["things"], summary["things"]),
        (facts["pq"]["stuff"], summary["stuff"]),
    ):
        assert as_fractions(numbers) == pytest.approx(
            {name: expected[name] for name in ("pq", "sq", "rq")}, rel=1e-12
        )
        assert numbers["classes"] == expected["n"]


def definition(truth, found, num_classes):
    """Of each class the IoUs' sum, matches, false segments, missed segments, by plain loops."""
    counts = np.zeros((num_classes, 4))
    there, here = (segments.ids.numpy() for segments in (truth, found))
    matched = set()
    for a in truth.segments:
        if a.iscrowd:
            continue
        for b in found.segments:
            union = ((there == a.id) | ((here == b.id) & (there != 0))).sum()
            shared = ((there == a.id) & (here == b.id)).sum()
            if a.label == b.label and union and shared / union > 0.5:
                counts[a.label, :2] += shared / union, 1
                matched |= {("truth", a.id), ("found", b.id)}
        counts[a.label, 3] += ("truth", a.id) not in matched
    for b in found.segments:
        if ("found", b.id) not in matched:
            ids = [0] + [a.id for a in truth.segments if a.iscrowd and a.label == b.label]
            ignored = (np.isin(there, ids) & (here == b.id)).sum() / (here == b.id).sum()
            counts[b.label, 2] += ignored <= 0.5
    return counts


def random_map(rng, shape, num_classes, crowds):
    """Segments, of which most are like blocks, with ids in any order."""
    coarse = rng.integers(0, 5, (-(-shape[0] // 3), -(-shape[1] // 3)))
    places = np.kron(coarse, np.ones((3, 3), int))[: shape[0], : shape[1]]
    noise = rng.random(shape) < 0.15
    places[noise] = rng.integers(0, 5, noise.sum())
    ids = np.array([0, *(1 + rng.permutation(300)[:4])])
    segments = [
        Segment(int(ids[k]), int(rng.integers(num_classes)), bool(crowds and rng.random() < 0.4))
        for k in rng.permutation([k for k in range(1, 5) if (places == k).any()])
    ]
    return segment_map(ids[places], segments)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_compare_is_its_definition(seed, alike):
    """Several crowds of a class in one image included."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 13, 2))
    truth, found = (random_map(rng, shape, 2, crowds) for crowds in (True, False))
    if alike:  # the same regions but for a few pixels, so that some match
        ids = truth.ids.clone()
        ids[torch.as_tensor(rng.random(shape) < 0.3)] = 0
        left = set(ids.unique().tolist())
        found = SegmentMap(
            ids, tuple(s._replace(iscrowd=False) for s in truth.segments if s.id in left)
        )
    np.testing.assert_allclose(compare(truth, found, 2), definition(truth, found, 2), rtol=1e-12)


@pytest.mark.parametrize("length, matches", [(4, 0), (5, 1)])
def test_an_iou_of_exactly_one_half_is_no_match(length, matches):
    truth = segment_map([[1] * 8], [Segment(1, 0)])
    found = segment_map([[7] * length + [0] * (8 - length)], [Segment(7, 0)])
    expected = [[length / 8 * matches, matches, 1 - matches, 1 - matches]]
    assert compare(truth, found, 1).tolist() == expected


def test_void_and_crowds_of_the_class_excuse_more_than_a_half():
    segments = [Segment(4, 0, True), Segment(5, 1, True), Segment(6, 1)]
    truth = segment_map([[0, 0, 4, 5, 6, 6]], segments)

    def false(ids, label):
        return compare(truth, segment_map([ids], [Segment(1, label)]), 2)[label, 2]

    assert false([1, 1, 1, 1, 0, 0], 0) == 0  # 3 of 4 in void and its own crowd
    assert false([0, 1, 1, 1, 1, 0], 0) == 1  # 2 of 4
    assert false([0, 0, 1, 1, 1, 1], 0) == 1  # 1 of 4: the other crowd's class is not its own
    assert false([0, 1, 0, 1, 1, 0], 1) == 0  # 2 of 3
    segments = [Segment(4, 0, True), Segment(5, 0, True), Segment(6, 1)]
    two_crowds = segment_map([[4, 4, 5, 5, 6, 6]], segments)
    found = segment_map([[0, 1, 1, 1, 1, 0]], [Segment(1, 0)])
    assert compare(two_crowds, found, 2)[0, 2] == 0


def test_void_takes_no_part_in_the_union():
    truth = segment_map([[1, 1, 0, 0, 0, 0]], [Segment(1, 0)])
    found = segment_map([[1, 1, 1, 1, 1, 1]], [Segment(1, 0)])
    assert compare(truth, found, 1).tolist() == [[1, 1, 0, 0]]


def test_nothing_there_and_nothing_found():
    quality = PanopticQuality(["cat", "sky"], [True, False])
    nothing = segment_map([[0, 0]], [])
    quality.update(nothing, nothing)
    summary = quality.summarize()
    assert math.isnan(summary["PQ"]) and summary["classes"] == 0 and summary["images"] == 1
    quality.update(segment_map([[3, 3]], [Segment(3, 0)]), nothing)
    quality.update(nothing, nothing)
    summary = quality.summarize()
    assert summary["things"] == {"PQ": 0, "SQ": 0, "RQ": 0, "classes": 1}
    assert summary["PQ"] == 0 and math.isnan(summary["per_class"]["sky"]["PQ"])
    text = format_panoptic(summary).splitlines()
    assert text[1].split() == ["all", "0.0", "0.0", "0.0", "1"]
    assert text[3].split() == ["stuff", "-", "-", "-", "0"]
    assert text[5].split() == ["sky", "-", "-", "-"]


@pytest.mark.parametrize(
    "ids, segments, message",
    [
        ([[1, 2, 2]], [Segment(2, 0)], "segment 1, which is not listed"),
        ([[1, 1, 1]], [Segment(1, 0), Segment(1, 1)], "two segments have one id"),
        ([[1, 1, 1]], [Segment(1, 2)], "segment 1 has the label 2"),
        ([[1, 1, 1]], [Segment(1, 0), Segment(5, 1)], "segment 5 has no pixel"),
        ([[1, 1]], [Segment(1, 0)], r"a map of \(1, 2\) for ground truth of \(1, 3\)"),
    ],
)
def test_maps_that_do_not_fit(ids, segments, message):
    truth = segment_map([[1, 1, 0]], [Segment(1, 0)])
    with pytest.raises(ValueError, match=message):
        compare(truth, segment_map(ids, segments), 2)


def test_a_segment_of_the_ground_truth_without_a_pixel_is_missed():
    truth = segment_map([[0, 0]], [Segment(1, 0)])
    assert compare(truth, segment_map([[0, 0]], []), 1).tolist() == [[0, 0, 0, 1]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_mean_iou_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    evaluator = SemanticEvaluator(["a", "b", "c"])
    pairs = []
    for _ in range(rng.integers(1, 4)):
        shape = tuple(rng.integers(1, 7, 2))
        pair = [rng.choice([0, 1, 2, 255], shape, p=[0.4, 0.4, 0.05, 0.15]) for _ in range(2)]
        pairs.append(pair)
        evaluator.update(*(torch.as_tensor(x.astype(np.uint8), device="cpu") for x in pair))
    summary = evaluator.summarize()
    there, found = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(2))
    found, there = found[there != 255], there[there != 255]
    ious = {}
    for label, name in enumerate("abc"):
        union = ((there == label) | (found == label)).sum()
        both = ((there == label) & (found == label)).sum()
        ious[name] = 100 * both / union if union else math.nan
    assert summary["per_class"] == pytest.approx(ious, nan_ok=True)
    counting = [iou for iou in ious.values() if not math.isnan(iou)]
    mean = sum(counting) / len(counting) if counting else math.nan
    assert summary["mIoU"] == pytest.approx(mean, nan_ok=True)
    right = 100 * (there == found).mean() if len(there) else math.nan
    assert summary["accuracy"] == pytest.approx(right, nan_ok=True)
    assert summary["images"] == len(pairs)


def test_semantic_maps_that_do_not_fit():
    evaluator = SemanticEvaluator(["a", "b"])
    maps = [torch.tensor([row], dtype=torch.uint8) for row in ([0, 1], [0, 2], [0])]
    with pytest.raises(ValueError, match="neither below 2 nor 255"):
        evaluator.update(maps[0], maps[1])
    with pytest.raises(ValueError, match=r"a map of \(1, 1\) for truth of \(1, 2\)"):
        evaluator.update(maps[0], maps[2])
    assert evaluator.images == 0 and not evaluator.confusion.any()
    evaluator.update(maps[0], maps[0])
    assert "mIoU 100.0" in format_semantic(evaluator.summarize())
