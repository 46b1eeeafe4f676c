"""The losses against their definitions in loops, and what feeds them."""

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from test_matcher import (
    CLASSES,
    HEIGHT,
    WIDTH,
    bilinear,
    config,
    make_prediction,
    make_target,
    softmax,
)

from fastinst import criterion
from fastinst.criterion import (
    count_masks,
    dice_loss,
    draw_points,
    guidance,
    pad_targets,
    prediction_losses,
    proposal_loss,
)
from fastinst.decoder import Prediction
from fastinst.errors import InputError
from fastinst.matcher import Match, Target

QUERIES = 5


def make_match(source, target):
    return Match(torch.tensor(source, dtype=torch.int64), torch.tensor(target, dtype=torch.int64))


def make_case():
    """Two images of 2 and 3 targets, matched to queries out of order; some queries are free."""
    targets = [make_target(2), make_target(3)]
    matches = [make_match([1, 4], [1, 0]), make_match([0, 2, 3], [2, 0, 1])]
    prediction = make_prediction(2, QUERIES)
    for tensor in prediction:
        tensor.requires_grad_()
    return prediction, matches, targets


def losses_definition(prediction, matches, targets, num_masks, config, points):
    cross_entropy, weights, entropy, dice = 0.0, 0.0, 0.0, 0.0
    for i, (match, target) in enumerate(zip(matches, targets, strict=True)):
        pairs = dict(zip(match.source.tolist(), match.target.tolist(), strict=True))
        for q, logits in enumerate(prediction.logits[i].tolist()):
            label = target.labels[pairs[q]].item() if q in pairs else CLASSES
            weight = 1.0 if q in pairs else config.no_object_weight
            cross_entropy -= weight * math.log(softmax(logits)[label])
            weights += weight
        for q, t in pairs.items():
            plane, truth = prediction.masks[i, q].tolist(), target.masks[t].tolist()
            s = [1 / (1 + math.exp(-bilinear(plane, x, y))) for x, y in points]
            g = [bilinear(truth, x, y) for x, y in points]
            both = list(zip(s, g, strict=True))
            entropy -= sum(b * math.log(a) + (1 - b) * math.log(1 - a) for a, b in both) / len(both)
            dice += 1 - (2 * sum(a * b for a, b in both) + 1) / (sum(s) + sum(g) + 1)
    return {
        "loss_ce": config.class_weight * cross_entropy / weights,
        "loss_mask": config.mask_weight * entropy / num_masks,
        "loss_dice": config.dice_weight * dice / num_masks,
    }


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"class_weight": 3.5, "mask_weight": 0.7, "dice_weight": 1.3, "no_object_weight": 0.4},
        {"no_object_weight": 0.0},
    ],
)
def test_prediction_losses_equal_the_definition(overrides):
    prediction, matches, targets = make_case()
    points = torch.rand(1, 13, 2, dtype=torch.float64)
    arguments = (prediction, matches, targets, 5.0, config(**overrides))
    losses = prediction_losses(*arguments, points)
    expected = losses_definition(*arguments, points[0].tolist())
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


def test_given_points_serve_every_mask():
    """[1, P, 2] is the same as these points repeated for each of the five masks."""
    prediction, matches, targets = make_case()
    points = torch.rand(1, 13, 2, dtype=torch.float64)
    once = prediction_losses(prediction, matches, targets, 5.0, config(), points)
    repeated = points.expand(5, -1, -1)
    assert once == prediction_losses(prediction, matches, targets, 5.0, config(), repeated)


def test_masks_are_supervised_at_the_drawn_points(monkeypatch):
    """Without given points every mask has its own."""
    prediction, matches, targets = make_case()
    drawn = torch.rand(5, 13, 2, dtype=torch.float64)
    monkeypatch.setattr(criterion, "draw_points", lambda masks, config: drawn)
    losses = prediction_losses(prediction, matches, targets, 5.0, config(), None)
    expected = {"loss_mask": 0.0, "loss_dice": 0.0}
    pairs = [(i, *pair) for i, m in enumerate(matches) for pair in zip(*m, strict=True)]
    for points, (i, q, t) in zip(drawn, pairs, strict=True):
        one = losses_definition(
            Prediction(*(x[i : i + 1, q : q + 1] for x in prediction)),
            [make_match([0], [t])],
            [targets[i]],
            5.0,
            config(),
            points.tolist(),
        )
        expected = {name: value + one[name] for name, value in expected.items()}
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected)


def test_unmatched_queries_have_no_mask_loss():
    prediction, matches, targets = make_case()
    losses = prediction_losses(prediction, matches, targets, 5.0, config(), None)
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    used = prediction.masks.grad.flatten(2).any(-1)
    assert used.tolist() == [[q in m.source for q in range(QUERIES)] for m in matches]


def test_without_any_object_the_mask_losses_are_exactly_zero():
    prediction = make_prediction(2, QUERIES)
    for tensor in prediction:
        tensor.requires_grad_()
    targets, matches = [make_target(0)] * 2, [make_match([], [])] * 2
    for points in (None, torch.rand(1, 13, 2)):
        losses = prediction_losses(prediction, matches, targets, 1.0, config(), points)
        assert losses["loss_mask"].item() == 0 and losses["loss_dice"].item() == 0
        assert losses["loss_ce"].item() > 0
        sum(losses.values()).backward()
        assert not prediction.masks.grad.any() and prediction.logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_have_float32_losses(dtype):
    prediction, matches, targets = make_case()
    half = Prediction(*(x.detach().to(dtype) for x in prediction))
    exact = Prediction(*(x.float() for x in half))
    targets = [Target(t.labels, t.masks.float()) for t in targets]
    points = torch.rand(1, 13, 2)
    actual = prediction_losses(half, matches, targets, 5.0, config(), points)
    expected = prediction_losses(exact, matches, targets, 5.0, config(), points)
    for name, loss in actual.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])
    class_logits = torch.randn(2, CLASSES + 1, 2, 3).to(dtype)
    pixels = [make_match([1, 4], [1, 0]), make_match([0, 5, 3], [2, 0, 1])]
    torch.testing.assert_close(
        proposal_loss(class_logits, pixels, targets, config()),
        proposal_loss(class_logits.float(), pixels, targets, config()),
    )


def test_the_proposal_loss_is_the_plain_mean_over_pixels():
    class_logits = torch.randn(2, CLASSES + 1, 2, 3, dtype=torch.float64)
    targets = [make_target(2), make_target(0)]
    matches = [make_match([5, 2], [0, 1]), make_match([], [])]
    total = 0.0
    for image, classes in enumerate(({5: targets[0].labels[0], 2: targets[0].labels[1]}, {})):
        for pixel in range(6):
            probability = softmax(class_logits[image, :, pixel // 3, pixel % 3].tolist())
            total -= math.log(probability[classes.get(pixel, CLASSES)])
    loss = proposal_loss(class_logits, matches, targets, config(proposal_weight=7.0))
    assert loss.item() == pytest.approx(7.0 * total / 12)


def test_dice_of_equal_and_of_opposite_masks():
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    logits = 100 * (mask - 0.5)
    assert dice_loss(logits, mask).item() == pytest.approx(0.0)
    assert dice_loss(-logits, mask).item() == pytest.approx(1 - 1 / 5)
    nothing = torch.zeros(1, 4)
    assert dice_loss(torch.full((1, 4), -100.0), nothing).item() == pytest.approx(0.0)


def test_points_are_the_most_uncertain_of_the_candidates_and_random_ones():
    """The draw repeated with the same seed; uncertainty by loops."""
    masks = 5 * torch.randn(3, 1, 4, 6, dtype=torch.float64)
    chosen = config(num_points=20, oversample_ratio=2.5, importance_ratio=0.6)
    torch.manual_seed(1)
    points = draw_points(masks, chosen)
    assert points.shape == (3, 20, 2) and points.dtype == torch.float64
    torch.manual_seed(1)
    candidates = torch.rand(3, 50, 2).double()
    random = torch.rand(3, 8, 2).double()
    for mask, mine, drawn, others in zip(masks, points, candidates, random, strict=True):
        drawn = sorted(drawn.tolist(), key=lambda p: abs(bilinear(mask[0].tolist(), *p)))  # noqa: B023
        assert sorted(mine[:12].tolist()) == sorted(drawn[:12])
        assert mine[12:].tolist() == others.tolist()


@pytest.mark.parametrize("important", [0.0, 0.75, 1.0])
def test_points_gather_where_the_logit_is_nearest_zero(important):
    """In the left half; half of the random ones lie there too."""
    masks = torch.full((2, 1, 8, 8), -9.0)
    masks[..., :4] = 0.1
    points = draw_points(masks, config(num_points=1000, importance_ratio=important))
    assert points.shape == (2, 1000, 2) and points.min() >= 0 and points.max() <= 1
    left = (points[..., 0] < 0.5).double().mean().item()
    assert left == pytest.approx(important + (1 - important) / 2, abs=0.05)


def test_points_of_no_masks():
    assert draw_points(torch.empty(0, 1, 4, 6), config()).shape == (0, config().num_points, 2)


def test_guidance_is_the_matched_masks_at_p3():
    prediction, matches, targets = make_case()
    attend = guidance(matches, targets, prediction)
    assert attend.shape == prediction.masks.shape and attend.dtype == torch.bool
    for i, (match, target) in enumerate(zip(matches, targets, strict=True)):
        pairs = dict(zip(match.source.tolist(), match.target.tolist(), strict=True))
        for q in range(QUERIES):
            # Nearest: pixel (y, x) of p3 shows pixel (8 y, 8 x) of the input.
            expected = target.masks[pairs[q], ::8, ::8] > 0 if q in pairs else torch.ones(4, 6) > 0
            assert torch.equal(attend[i, q], expected)


def test_a_target_that_vanishes_at_p3_lets_its_query_look_nowhere():
    """No True at all, which the attention takes for everywhere."""
    masks = torch.zeros(1, HEIGHT, WIDTH)
    masks[0, 9:15, 9:15] = 1  # between the pixels 8 and 16 that survive
    prediction = make_prediction(1, QUERIES)
    attend = guidance([make_match([2], [0])], [Target(torch.tensor([0]), masks)], prediction)
    assert not attend[0, 2].any()
    assert attend[0, [0, 1, 3, 4]].all()


def test_guidance_without_targets_is_everywhere():
    assert guidance([make_match([], [])], [make_target(0)], make_prediction(1, 5)).all()


def test_masks_are_counted_over_the_batch_but_never_below_one():
    assert count_masks([make_target(2), make_target(3)]) == 5
    assert count_masks([make_target(0), make_target(1)]) == 1
    assert count_masks([make_target(0), make_target(0)]) == 1


def _count_on_one_rank(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    counts = [count_masks([make_target(n)]) for n in ((1, 0), (4, 0))[rank]]
    (folder / str(rank)).write_text(str(counts))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a normal end: pytorch/pytorch#179291


def test_masks_are_averaged_over_the_processes(tmp_path):
    mp.spawn(_count_on_one_rank, (tmp_path,), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["[2.5, 1.0]"] * 2


def test_targets_are_padded_with_zeros_to_the_right_and_bottom():
    batch = torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.bfloat16)
    masks = torch.rand(2, 9, 13) < 0.5
    targets = [
        {"labels": torch.tensor([2, 2]), "masks": masks},
        {"labels": torch.empty(0, dtype=torch.int64), "masks": torch.empty(0, 5, 6).bool()},
    ]
    first, second = pad_targets(targets, batch, CLASSES)
    assert first.labels.tolist() == [2, 2] and first.masks.dtype == torch.float32
    assert torch.equal(first.masks, F.pad(masks.float(), (0, WIDTH - 13, 0, HEIGHT - 9)))
    assert second.masks.shape == (0, HEIGHT, WIDTH)


GOOD = {"labels": torch.tensor([0, 1]), "masks": torch.ones(2, 9, 13, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, r"^target 1: labels must be \[N\] and masks"),
        ({"labels": torch.tensor([[0], [1]])}, r"^target 1: labels must be \[N\]"),
        ({"masks": torch.ones(2, 9).bool()}, r"^target 1: labels must be \[N\] and masks"),
        (
            {"masks": torch.ones(2, 33, 13).bool()},
            "^target 1: masks of 33x13 exceed the batch of 32x48",
        ),
        ({"masks": torch.ones(2, 9, 49).bool()}, "^target 1: masks of 9x49 exceed"),
        ({"labels": torch.tensor([0, 3])}, r"^target 1: labels must be in 0\.\.2"),
        ({"labels": torch.tensor([-1, 0])}, r"^target 1: labels must be in 0\.\.2"),
        ({"labels": torch.tensor([0.0, 1.0])}, "^target 1: labels must be integers and masks bool"),
        (
            {"masks": 255 * torch.ones(2, 9, 13).byte()},
            "^target 1: labels must be integers",
        ),
    ],
)
def test_targets_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        pad_targets([GOOD, GOOD | change], torch.zeros(2, 3, HEIGHT, WIDTH), CLASSES)


def test_one_target_for_each_image():
    with pytest.raises(InputError, match="^2 images but 1 targets"):
        pad_targets([GOOD], torch.zeros(2, 3, HEIGHT, WIDTH), CLASSES)
