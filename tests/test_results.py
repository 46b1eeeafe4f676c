"""From outputs to instances."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageDraw
from pycocotools import mask as rle
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastinst import Instances, postprocess
from fastinst.ops.read_out_masks import mask_boxes

PADDED = (64, 96)
QUERIES, CLASSES = 30, 5


def make_outputs(batch=2, queries=QUERIES, dtype=torch.float64):
    blobs = F.interpolate(torch.randn(batch, queries, 3, 4), (8, 12), mode="bicubic") - 0.3
    logits = 2 * torch.randn(batch, queries, CLASSES + 1)
    return {"pred_logits": logits.to(dtype), "pred_masks": blobs.to(dtype)}


IMAGES, OUTPUTS = [(64, 96), (61, 83)], [(128, 192), (45, 60)]


def definition(logits, masks, image_size, output_size, count):
    """(score, class, query, mask) of the best pairs, in loops."""
    pairs = [
        (p, q, k)
        for q, row in enumerate(logits.softmax(-1).tolist())
        for k, p in enumerate(row[:-1])
    ]
    resized = F.interpolate(masks[None], PADDED, mode="bilinear")[
        ..., : image_size[0], : image_size[1]
    ]
    resized = F.interpolate(resized, output_size, mode="bilinear")[0]
    instances = []
    for p, q, k in sorted(pairs, reverse=True)[:count]:
        mask = resized[q].sigmoid() > 0.5
        inside = (resized[q].sigmoid() * mask).sum() / (mask.sum().double() + 1e-6)
        instances.append((p * inside.item(), k, mask))
    return sorted(instances, key=lambda instance: -instance[0])


@pytest.mark.parametrize("count", [1, 7, 100])
def test_equals_the_definition(count):
    outputs = make_outputs()
    results = postprocess(outputs, IMAGES, OUTPUTS, max_instances=count)
    for i, result in enumerate(results):
        expected = definition(
            outputs["pred_logits"][i], outputs["pred_masks"][i], IMAGES[i], OUTPUTS[i], count
        )
        assert len(result) == count
        assert result.scores.tolist() == pytest.approx([score for score, _, _ in expected])
        filled = int((result.scores > 0).sum())
        assert result.labels.tolist()[:filled] == [label for _, label, _ in expected][:filled]
        for mask, (_, _, wanted) in zip(result.masks[:filled], expected, strict=False):
            assert torch.equal(mask, wanted)
        assert not result.masks[filled:].any()
        assert torch.equal(result.boxes, mask_boxes(result.masks).double())


def confident(*pairs, queries=QUERIES):
    """Outputs of one image in which only these (query, class, probability) are likely."""
    probability = torch.full((1, queries, CLASSES + 1), 1e-9, dtype=torch.float64)
    for query, label, p in pairs:
        probability[0, query, label] = p
    probability[..., -1] = 1 - probability[..., :-1].sum(-1)
    masks = torch.full((1, queries, 8, 12), -30.0, dtype=torch.float64)
    for n, query in enumerate({q: None for q, _, _ in pairs}):
        masks[0, query, n : n + 3, n : n + 4] = 30.0
    return {"pred_logits": probability.log(), "pred_masks": masks}


def test_a_query_may_appear_with_several_classes_and_one_mask():
    outputs = confident((3, 0, 0.5), (3, 4, 0.3), (11, 2, 0.4))
    (result,) = postprocess(outputs, [PADDED], [PADDED], max_instances=3)
    assert result.labels.tolist() == [0, 2, 4]
    assert torch.equal(result.masks[0], result.masks[2])
    assert torch.equal(result.boxes[0], result.boxes[2])
    assert not torch.equal(result.masks[0], result.masks[1])


def test_class_probabilities_are_not_renormalised():
    """0.3 of foreground beside 0.7 of no-object stays 0.3."""
    (result,) = postprocess(confident((3, 1, 0.3)), [PADDED], [PADDED], max_instances=1)
    assert result.scores.item() == pytest.approx(0.3, abs=1e-3)


def test_an_empty_mask_scores_exactly_zero_and_goes_last():
    outputs = confident((3, 1, 0.9), (4, 1, 0.2))
    outputs["pred_masks"][0, 3] = -1.0
    (result,) = postprocess(outputs, [PADDED], [PADDED], max_instances=2)
    assert result.scores[0] > 0.1 and result.scores[1] == 0
    assert result.masks[0].any() and not result.masks[1].any()
    assert result.boxes[1].tolist() == [0, 0, 0, 0]


def test_an_unsure_mask_loses_to_a_sure_one():
    outputs = confident((3, 1, 0.6), (4, 2, 0.5))
    outputs["pred_masks"][0, 3].clamp_(max=0.2)
    (result,) = postprocess(outputs, [PADDED], [PADDED], max_instances=2)
    assert result.labels.tolist() == [2, 1]
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)


def test_boxes_belong_to_the_masks():
    (result,) = postprocess(confident((3, 1, 0.9)), [PADDED], [PADDED], max_instances=1)
    left, top, right, bottom = (int(side) for side in result.boxes[0])
    inside = torch.zeros(PADDED, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    mask = result.masks[0]
    assert not (mask & ~inside).any()
    assert mask[top].any() and mask[bottom - 1].any()
    assert mask[:, left].any() and mask[:, right - 1].any()


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (1, 1), (100, 100), (1000, QUERIES * CLASSES)]
)
def test_at_most_so_many(count, expected):
    for result in postprocess(make_outputs(), IMAGES, OUTPUTS, max_instances=count):
        assert len(result) == expected
        assert len(result.masks) == len(result.boxes) == len(result.labels) == expected


def test_the_default_is_a_hundred():
    assert [len(r) for r in postprocess(make_outputs(), IMAGES, OUTPUTS)] == [100, 100]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_are_float32_or_wider(dtype):
    outputs = make_outputs(dtype=dtype)
    exact = {name: value.float() for name, value in outputs.items()}
    for result, wanted in zip(
        postprocess(outputs, IMAGES, OUTPUTS), postprocess(exact, IMAGES, OUTPUTS), strict=True
    ):
        assert result.scores.dtype == result.boxes.dtype == torch.float32
        assert result.labels.dtype == torch.int64 and result.masks.dtype == torch.bool
        assert torch.equal(result.scores, wanted.scores)
        assert torch.equal(result.masks, wanted.masks)


@pytest.mark.parametrize(
    ("images", "outputs"),
    [
        (IMAGES[:1], OUTPUTS),
        (IMAGES, OUTPUTS[:1]),
        (IMAGES[:1], OUTPUTS[:1]),
        (IMAGES * 2, OUTPUTS * 2),
    ],
)
def test_one_size_for_each_image(images, outputs):
    message = f"^2 images but {len(images)} image_sizes and {len(outputs)} output_sizes"
    with pytest.raises(ValueError, match=message):
        postprocess(make_outputs(), images, outputs)


def test_an_image_larger_than_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"^image_size \(65, 96\) is larger than padded_size"):
        postprocess(make_outputs(batch=1), [(65, 96)], [(65, 96)])


def test_a_threshold_leaves_out_what_is_below_it():
    outputs = make_outputs()
    everything = postprocess(outputs, IMAGES, OUTPUTS)
    for threshold in (0.0, 1e-3, 0.05, 0.2, 1.0):
        some = postprocess(outputs, IMAGES, OUTPUTS, threshold=threshold)
        for all_of_it, result in zip(everything, some, strict=True):
            expected = all_of_it[all_of_it.scores >= threshold]
            assert torch.equal(result.scores, expected.scores)
            assert torch.equal(result.labels, expected.labels)
            assert torch.equal(result.packed, expected.packed)
    assert 0 < sum((result.scores >= 0.05).sum() for result in everything) < 200


def test_without_a_threshold_no_shape_depends_on_the_outputs():
    """What waits for a GPU would have to look at values, which fake tensors do not have."""
    for queries, count in ((QUERIES, 7), (QUERIES, 100), (200, 100)):
        with FakeTensorMode() as mode:
            outputs = {k: mode.from_tensor(v) for k, v in make_outputs(queries=queries).items()}
            results = postprocess(outputs, IMAGES, OUTPUTS, max_instances=count)
            assert [len(result) for result in results] == [count, count]
            with pytest.raises(DataDependentOutputException):
                postprocess(outputs, IMAGES, OUTPUTS, max_instances=count, threshold=0.5)


def make_instances(count=3, size=(4, 37), class_names=("ant", "bee", "cat")):
    return Instances.from_masks(
        scores=torch.linspace(0.9, 0.3, count),
        labels=torch.arange(count).flip(0) % 3,
        masks=torch.rand(count, *size) < 0.5,
        class_names=class_names,
    )


def test_masks_are_held_as_bits():
    masks = torch.rand(3, 5, 70) < 0.5
    found = Instances.from_masks(torch.ones(3), torch.zeros(3, dtype=torch.int64), masks)
    assert found.packed.shape == (3, 5, 3) and found.packed.dtype == torch.int32
    assert found.size == (5, 70) and torch.equal(found.masks, masks)
    assert torch.equal(found.boxes, mask_boxes(masks).float())


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (slice(1, None), [1, 2]),
        (torch.zeros(3, dtype=torch.bool), []),
        (-1, [2]),
        (np.int64(1), [1]),
        (torch.tensor(1), [1]),
    ],
)
def test_picking_instances(keep, rows):
    instances = make_instances()
    picked = instances[keep]
    assert isinstance(picked, Instances) and len(picked) == len(rows)
    for name in ("scores", "labels", "boxes", "packed", "masks"):
        assert torch.equal(getattr(picked, name), getattr(instances, name)[rows])
    assert picked.size == instances.size and picked.class_names == instances.class_names


def test_going_through_instances():
    instances = make_instances()
    assert [one.names for one in instances] == [[name] for name in instances.names]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            instances[outside]


def test_moving_instances():
    moved = make_instances().to("meta")
    assert {moved.scores.device.type, moved.packed.device.type} == {"meta"}
    assert moved.boxes.shape == (3, 4) and moved.size == (4, 37)


def test_names():
    assert make_instances().names == ["cat", "bee", "ant"]
    assert make_instances(class_names=None).names == ["class 3", "class 2", "class 1"]
    assert repr(make_instances(2)) == "<2 Instances in 37 x 4 pixels: bee 0.90, ant 0.30>"


def test_postprocess_names_the_classes():
    names = tuple("abcde")
    for result in postprocess(make_outputs(), IMAGES, OUTPUTS, class_names=names):
        assert result.names == [names[label] for label in result.labels]


def test_run_length_codes_are_those_of_pycocotools():
    found = make_instances(5, (21, 70))
    for code, mask in zip(found.rle(), found.masks, strict=True):
        assert code == rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    assert found[[]].rle() == []


def test_coco_results_are_plain_json_with_the_original_ids():
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :8, 8:16] = True
    found = Instances.from_masks(torch.tensor([0.75, 0.0]), torch.tensor([1, 0]), masks)
    (result,) = found.to_coco(5, (3, 7, 20))
    assert set(result) == {"image_id", "category_id", "segmentation", "score"}
    assert (result["image_id"], result["category_id"], result["score"]) == (5, 7, 0.75)
    again = json.loads(json.dumps(result))["segmentation"]
    mask = rle.decode(again)
    assert mask.shape == (64, 96) and mask.sum() == 64 and mask[:8, 8:16].all()


def test_polygons_fill_to_the_masks():
    found = make_instances(3, (40, 50))
    for rings, mask in zip(found.polygons(), found.masks.numpy(), strict=True):
        picture = Image.new("1", (4 * 50, 4 * 40))
        # Outer rings and holes in turn, largest first: each flips what is inside.
        for ring in rings:
            one = Image.new("1", picture.size)
            ImageDraw.Draw(one).polygon([(4 * x - 1, 4 * y - 1) for x, y in ring.tolist()], fill=1)
            picture = ImageChops.logical_xor(picture, one)
        assert (np.array(picture)[2::4, 2::4] == mask).all()
    assert found[[]].polygons() == []
