"""Panoptic and semantic segmentation from a model's outputs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parity import Case

from fastinst.ops import read_out_masks
from fastinst.panoptic import panoptic, semantic
from fastinst.segments import Segment, SegmentMap

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def release():
    """The outputs that the fixture was made from, their sizes, the arrays and the facts."""
    case = Case("fastinst-d3-r50-640", "fastinst-d3-r50-640")
    sizes = [tuple(case.arrays[f"output_size{i}"].tolist()) for i in range(2)]
    facts = json.loads((DATA / "unified.json").read_text())
    return case.outputs(), case.sizes, sizes, dict(np.load(DATA / "unified.npz")), facts


def test_semantic_is_the_release_s(release):
    outputs, image_sizes, output_sizes, arrays, _ = release
    for i, scores in enumerate(semantic(outputs, image_sizes, output_sizes)):
        largest, labels = scores.cpu().max(dim=0)
        assert (labels.numpy() == arrays[f"semantic{i}.argmax"]).all()
        expected = torch.as_tensor(arrays[f"semantic{i}.max"]).double()
        assert (largest - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_panoptic_is_the_release_s(release):
    outputs, image_sizes, output_sizes, arrays, facts = release
    is_thing = [label in facts["things"] for label in range(80)]
    thresholds = facts["object_mask_threshold"], facts["overlap_threshold"]
    found = panoptic(outputs, image_sizes, output_sizes, is_thing, *thresholds)
    for i, segment_map in enumerate(found):
        assert (segment_map.ids.cpu().numpy() == arrays[f"panoptic{i}"]).all()
        assert [(s.id, s.label, is_thing[s.label]) for s in segment_map.segments] == [
            (s["id"], s["category_id"], s["isthing"]) for s in facts["segments"][i]
        ]


def panoptic_definition(logits, masks, padded, image, output, is_thing, score_threshold, overlap):
    """Query by query and pixel by pixel."""
    masks = F.interpolate(masks[None], size=padded, mode="bilinear")
    masks = masks[:, :, : image[0], : image[1]]
    probability = F.interpolate(masks, size=output, mode="bilinear")[0].sigmoid().tolist()
    queries = []
    for query, row in enumerate(logits.softmax(-1).tolist()):
        label = row.index(max(row))
        if label < len(is_thing) and row[label] > score_threshold:
            queries.append((query, label, row[label]))
    ids = np.zeros(output, int)
    if not queries:
        return ids, []
    pixels = [(y, x) for y in range(output[0]) for x in range(output[1])]
    winner = {}
    for y, x in pixels:
        worth = [score * probability[query][y][x] for query, _, score in queries]
        winner[y, x] = queries[worth.index(max(worth))][0]
    segments, stuff = [], {}
    for query, label, _ in queries:
        won = [p for p in pixels if winner[p] == query]
        mask = [(y, x) for y, x in pixels if probability[query][y][x] >= 0.5]
        written = [p for p in won if p in set(mask)]
        if not won or not mask or not written or len(won) / len(mask) < overlap:
            continue
        if not is_thing[label] and label in stuff:
            id_ = stuff[label]
        else:
            id_ = stuff[label] = len(segments) + 1
            segments.append((id_, label))
        for y, x in written:
            ids[y, x] = id_
    return ids, segments


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.sampled_from([0, 0.5, 0.8]),
    st.sampled_from([1, 2, 100]),
)
def test_panoptic_is_its_definition(seed, score_threshold, overlap_threshold, masks_at_once):
    rng = np.random.default_rng(seed)
    logits = torch.as_tensor(rng.normal(0, 3, (2, 7, 4)))
    masks = torch.as_tensor(rng.normal(0, 4, (2, 7, 2, 3)))
    sizes, outputs = [(13, 20), (16, 24)], [(9, 7), (16, 24)]
    is_thing = (True, False, False)
    thresholds = score_threshold, overlap_threshold
    batch = {"pred_logits": logits, "pred_masks": masks}
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["fastinst.ops.read_out_masks"]
        patch.setattr(module, "CHUNK_ELEMENTS", masks_at_once * 16 * 24)
        found = panoptic(batch, sizes, outputs, is_thing, *thresholds)
    for i, segment_map in enumerate(found):
        ids, segments = panoptic_definition(
            logits[i], masks[i], (16, 24), sizes[i], outputs[i], is_thing, *thresholds
        )
        np.testing.assert_array_equal(segment_map.ids.cpu().numpy(), ids)
        assert [(s.id, s.label) for s in segment_map.segments] == segments


def flat_outputs(classes, masks):
    """One image of 16 x 16 pixels whose query q has a class and a constant mask probability."""
    logits = torch.full((1, len(classes), 4), -20.0)
    logits[0, range(len(classes)), classes] = 20
    masks = torch.tensor(masks).logit().view(1, -1, 1, 1).repeat(1, 1, 2, 2)
    return {"pred_logits": logits, "pred_masks": masks}, [(16, 16)], [(16, 16)]


def test_nothing_sure_is_all_void():
    outputs, *sizes = flat_outputs([3, 3], [0.9, 0.9])
    (found,) = panoptic(outputs, *sizes, (True, False, False))
    assert not found.segments and not found.ids.any() and found.ids.shape == (16, 16)
    assert (found.labels() == 255).all()


def test_a_pixel_that_its_query_is_unsure_of_is_void():
    outputs, *sizes = flat_outputs([0, 1], [0.45, 0.4])
    (found,) = panoptic(outputs, *sizes, (True, False, False))
    assert not found.segments and not found.ids.any()


def test_a_query_that_another_one_covers_is_left_out():
    outputs, *sizes = flat_outputs([0, 1, 0], [0.7, 0.9, 0.6])
    (found,) = panoptic(outputs, *sizes, (True, False, False))
    assert [s[:2] for s in found.segments] == [(1, 1)] and (found.ids == 1).all()


def test_a_query_with_just_the_part_that_it_needs_stays():
    outputs, *sizes = flat_outputs([0, 1], [0.9, 0.9])
    outputs["pred_masks"] = torch.tensor([[[[3.0, 3], [3, 3]], [[-9, -9], [-9, 90]]]])
    probability = F.interpolate(outputs["pred_masks"][0][None], size=(16, 16), mode="bilinear")
    first, second = probability[0].sigmoid()
    part = float((first >= second).sum() / (first >= 0.5).sum())
    assert 0.5 < part < 1
    (found,) = panoptic(outputs, *sizes, (True, False, False), overlap_threshold=part)
    assert [segment.label for segment in found.segments] == [0, 1]
    (found,) = panoptic(outputs, *sizes, (True, False, False), overlap_threshold=part + 1e-9)
    assert [segment.label for segment in found.segments] == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_out_in_float32(dtype):
    outputs = {"pred_logits": torch.randn(1, 5, 4), "pred_masks": torch.randn(1, 5, 2, 2)}
    half = {name: tensor.to(dtype) for name, tensor in outputs.items()}
    same = {name: tensor.float() for name, tensor in half.items()}
    sizes = [(16, 16)], [(16, 16)]
    (a,), (b,) = semantic(half, *sizes), semantic(same, *sizes)
    assert a.dtype == torch.float32 and torch.equal(a, b)


def test_masks_are_those_of_the_instances():
    """Of one sure query alone, the panoptic segment is its mask as `read_out_masks` has it."""
    logits = torch.tensor([[[20.0, 0]]])
    masks = torch.randn(1, 1, 4, 4)
    sizes = (30, 25), (41, 37)
    (found,) = panoptic({"pred_logits": logits, "pred_masks": masks}, *([s] for s in sizes), [True])
    mask = read_out_masks(masks[0], (32, 32), *sizes).masks[0]
    assert torch.equal(found.ids > 0, mask)
    assert found.segments == (Segment(1, 0, score=pytest.approx(1)),)


def test_what_does_not_fit_is_said():
    outputs, *sizes = flat_outputs([0, 1], [0.9, 0.8])
    with pytest.raises(ValueError, match="is_thing has 2 entries for 3 classes"):
        panoptic(outputs, *sizes, (True, False))
    with pytest.raises(ValueError, match="1 images but 2 image_sizes and 1 output_sizes"):
        semantic(outputs, 2 * sizes[0], sizes[1])


def test_labels_of_a_map():
    ids = torch.tensor([[0, 4, 4], [9, 0, 4]], dtype=torch.int32)
    segment_map = SegmentMap(ids, (Segment(4, 2), Segment(9, 0)))
    assert segment_map.labels().tolist() == [[255, 2, 2], [0, 255, 2]]
    assert segment_map.labels().dtype == torch.uint8
