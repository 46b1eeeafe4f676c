"""From outputs to instances."""

import pytest
import torch
import torch.nn.functional as F

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


def make_instances():
    return Instances(
        scores=torch.tensor([0.9, 0.6, 0.3]),
        labels=torch.tensor([2, 0, 1]),
        masks=torch.rand(3, 4, 5) < 0.5,
        boxes=torch.rand(3, 4),
    )


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (slice(1, None), [1, 2]),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_picking_instances(keep, rows):
    instances = make_instances()
    picked = instances[keep]
    assert isinstance(picked, Instances) and len(picked) == len(rows)
    for name in ("scores", "labels", "masks", "boxes"):
        assert torch.equal(getattr(picked, name), getattr(instances, name)[rows])


def test_moving_instances():
    moved = make_instances().to("meta")
    assert {moved.scores.device.type, moved.masks.device.type} == {"meta"}
    assert moved.boxes.shape == (3, 4)
