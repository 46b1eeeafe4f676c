"""The losses against their definitions in loops, and what they are divided by."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_matcher import CLASSES, HEIGHT, P3, P4, WIDTH, bilinear, config, make_target, pad, softmax

from fastinst import ops
from fastinst.criterion import (
    Totals,
    count_totals,
    guidance,
    prediction_losses,
    proposal_loss,
)
from fastinst.heads import Output
from fastinst.matcher import Matches

QUERIES, DIM, LAYERS = 5, 4, 1
SIZE = (HEIGHT, WIDTH)
# Of two heads and two images, {query: place of the target in its image}, out of order; some
# queries are free.
MATCHES = (({1: 1, 4: 0}, {0: 2, 2: 0, 3: 1}), ({0: 0, 3: 1}, {4: 0, 1: 1, 2: 2}))
PIXELS = ({1: 1, 6: 0}, {0: 2, 5: 0, 3: 1})


def make_matches(by_head, by_pixel, counts):
    """`Matches` from dicts {source: place}."""
    first = [sum(counts[:image]) for image in range(len(counts))]
    most = max(len(pairs) for pairs in by_head[0])
    by_query = torch.full((len(by_head), len(counts), QUERIES), sum(counts))
    queries = torch.zeros(len(by_head), len(counts), most, dtype=torch.int64)
    instances, places = [[] for _ in by_head], []
    for head, images in enumerate(by_head):
        for image, pairs in enumerate(images):
            for slot, (query, place) in enumerate(sorted(pairs.items(), key=lambda p: p[1])):
                by_query[head, image, query] = first[image] + place
                queries[head, image, slot] = query
                instances[head].append(first[image] + place)
                places += [image * most + slot] if head == 0 else []
    pixels = torch.full((len(counts), P4[0] * P4[1]), sum(counts))
    for image, pairs in enumerate(by_pixel):
        for pixel, place in pairs.items():
            pixels[image, pixel] = first[image] + place
    places = torch.tensor(places, dtype=torch.int64)
    instances = torch.tensor(instances, dtype=torch.int64)
    return Matches(by_query, queries, places, instances, pixels)


def make_output(dtype=torch.float64):
    shapes = ((QUERIES, CLASSES + 1), (QUERIES, DIM), (QUERIES, 1), (P3[0] * P3[1], DIM))
    tensors = [1.5 * torch.randn(2, *shape, dtype=torch.float64) for shape in shapes]
    return Output(*(tensor.to(dtype).requires_grad_() for tensor in tensors))


def make_case(dtype=torch.float64):
    """One guided output and two ordinary ones of two images with 2 and 3 targets."""
    targets = [make_target(2), make_target(3)]
    outputs = [make_output(dtype) for _ in range(3)]
    return targets, make_matches(MATCHES, PIXELS, (2, 3)), outputs


def losses_of(targets, matches, outputs, chosen, points=None, totals=None):
    # p4 of this size would have 8.
    totals = totals or count_totals(targets, SIZE, replace(chosen, num_queries=QUERIES))
    return prediction_losses(
        outputs[:LAYERS], outputs[LAYERS:], P3, matches, pad(targets), totals, chosen, points
    )


def losses_by_loops(output, pairs_of_images, targets, num_masks, config, points_of):
    """points_of(image, query, place): where this mask is compared."""
    cross_entropy, weights, entropy, dice = 0.0, 0.0, 0.0, 0.0
    masks = output.masks().unflatten(2, P3)
    for image, (pairs, target) in enumerate(zip(pairs_of_images, targets, strict=True)):
        for q, logits in enumerate(output.logits[image].tolist()):
            label = target["labels"][pairs[q]].item() if q in pairs else CLASSES
            weight = 1.0 if q in pairs else config.no_object_weight
            cross_entropy -= weight * math.log(softmax(logits)[label])
            weights += weight
        for q, place in pairs.items():
            plane, truth = masks[image, q].tolist(), target["masks"][place].double().tolist()
            points = points_of(image, q, place)
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


def check(losses, outputs, targets, chosen, points_of):
    """Guided outputs have the last head's matching, and come first."""
    assert len(losses) == 9
    for number, head in enumerate((1, 0, 1)):
        expected = losses_by_loops(
            *(outputs[number], MATCHES[head], targets, 5.0, chosen),
            lambda *pair, number=number: points_of(number, *pair),
        )
        suffix = ("_0", "_1", "")[number]
        actual = {name: losses[name + suffix].item() for name in expected}
        assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"class_weight": 3.5, "mask_weight": 0.7, "dice_weight": 1.3, "no_object_weight": 0.4},
        {"no_object_weight": 0.0},
    ],
)
def test_losses_equal_the_definition(overrides):
    targets, matches, outputs = make_case()
    points, chosen = torch.rand(1, 13, 2, dtype=torch.float64), config(**overrides)
    losses = losses_of(targets, matches, outputs, chosen, points)
    check(losses, outputs, targets, chosen, lambda *_: points[0].tolist())


def test_every_mask_has_its_own_points_by_importance():
    targets, matches, outputs = make_case()
    chosen = config(num_points=12, oversample_ratio=2.5, importance_ratio=0.5)

    def points_of(number, image, query, place):
        seed = targets[image]["seed"] + (place + 1 << 32) + (number << 48)
        seed = torch.tensor([(seed + 2**63) % 2**64 - 2**63])
        logits = outputs[number].masks().unflatten(2, P3)[image, query, None]
        return ops.uncertain_points(logits, seed, 12, 30, 6)[0].tolist()

    losses = losses_of(targets, matches, outputs, chosen)
    check(losses, outputs, targets, chosen, points_of)


def test_unmatched_queries_have_no_mask_loss():
    targets, matches, outputs = make_case()
    losses = losses_of(targets, matches, outputs, config())
    sum(loss for name, loss in losses.items() if "loss_ce" not in name).backward()
    for output, head in zip(outputs, (1, 0, 1), strict=True):
        expected = [[q in pairs for q in range(QUERIES)] for pairs in MATCHES[head]]
        assert output.keys.grad.any(-1).tolist() == expected
        assert output.offsets.grad.squeeze(2).bool().tolist() == expected
        assert output.pixels.grad.any() and output.logits.grad is None


def test_without_any_object_the_mask_losses_are_exactly_zero():
    outputs, targets = [make_output() for _ in range(3)], [make_target(0)] * 2
    matches = make_matches(((({}),) * 2,) * 2, ({}, {}), (0, 0))
    for points in (None, torch.rand(1, 13, 2)):
        losses = losses_of(targets, matches, outputs, config(), points)
        for name, loss in losses.items():
            assert (loss.item() == 0) == ("loss_ce" not in name)
        sum(losses.values()).backward()
        for output in outputs:
            assert not any(x.grad.any() for x in output[1:]) and output.logits.grad.any()


def test_nothing_with_a_weight_is_a_loss_of_zero():
    """No objects, and no weight of no-object: not 0 / 0."""
    outputs, targets = [make_output() for _ in range(3)], [make_target(0)] * 2
    matches = make_matches((({}, {}),) * 2, ({}, {}), (0, 0))
    losses = losses_of(targets, matches, outputs, config(no_object_weight=0.0))
    assert all(loss.item() == 0 for loss in losses.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_have_float32_losses(dtype):
    targets, matches, outputs = make_case(dtype)
    exact = [Output(*(x.detach().float() for x in output)) for output in outputs]
    points, chosen = torch.rand(1, 13, 2), config()
    actual = losses_of(targets, matches, outputs, chosen, points)
    expected = losses_of(targets, matches, exact, chosen, points)
    for name, loss in actual.items():
        assert loss.dtype == torch.float32
        # Of the product of keys and pixels, which is rounded before the losses are taken.
        tolerance = 0 if "loss_ce" in name else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(loss, expected[name], rtol=max(tolerance, 1e-6), atol=1e-6)
    class_logits = torch.randn(2, CLASSES + 1, *P4).to(dtype)
    totals = count_totals(targets, SIZE, chosen)
    half, full = (
        proposal_loss(x, matches, pad(targets), totals, chosen)
        for x in (class_logits, class_logits.float())
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full)


def test_the_proposal_loss_is_the_plain_mean_over_pixels():
    class_logits = torch.randn(2, CLASSES + 1, *P4, dtype=torch.float64)
    targets, chosen = [make_target(2), make_target(0)], config(proposal_weight=7.0)
    matches = make_matches((({0: 0, 1: 1}, {}),), ({5: 0, 2: 1}, {}), (2, 0))
    total = 0.0
    for image, pairs in enumerate(({5: 0, 2: 1}, {})):
        for pixel in range(8):
            logits = class_logits[image].flatten(1)[:, pixel].tolist()
            label = targets[0]["labels"][pairs[pixel]] if pixel in pairs else CLASSES
            total -= math.log(softmax(logits)[label])
    totals = count_totals(targets, SIZE, chosen)
    loss = proposal_loss(class_logits, matches, pad(targets), totals, chosen)
    assert loss.item() == pytest.approx(7.0 * total / 16)


def test_guidance_is_the_last_heads_matched_masks_at_p3():
    targets, matches, _ = make_case()
    attend = ops.unpack_bits(guidance(matches, pad(targets), 8), P3[0] * P3[1]).unflatten(2, P3)
    assert attend.shape == (2, QUERIES, *P3)
    for image, (pairs, target) in enumerate(zip(MATCHES[-1], targets, strict=True)):
        for q in range(QUERIES):
            # Nearest: pixel (y, x) of p3 shows pixel (8 y, 8 x) of the input.
            shown = target["masks"][pairs[q], ::8, ::8] if q in pairs else torch.ones(P3) > 0
            assert torch.equal(attend[image, q], shown)


def test_a_target_that_vanishes_at_p3_lets_its_query_look_nowhere():
    """No bit at all, which the attention takes for everywhere."""
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 9:15, 9:15] = True  # between the pixels 8 and 16 that survive
    targets = pad([{"labels": torch.tensor([0]), "masks": masks}])
    attend = guidance(make_matches((({2: 0},),), ({},), (1,)), targets, 8)
    assert not attend[0, 2].any()
    assert ops.unpack_bits(attend[0, [0, 1, 3, 4]], P3[0] * P3[1]).all()


def test_guidance_without_targets_is_everywhere():
    attend = guidance(make_matches((({},),), ({},), (0,)), pad([make_target(0)]), 8)
    assert ops.unpack_bits(attend, P3[0] * P3[1]).all()


def totals_of(*counts, size=SIZE, chosen=None):
    return count_totals([make_target(n) for n in counts], size, chosen or config())


def test_totals_count_masks_weights_and_pixels():
    """A padded 32x64 has 8 queries, of which 2 + 8 are matched."""
    totals = totals_of(2, 10, chosen=config(no_object_weight=0.5))
    assert totals.sums.tolist() == [12, 10 + 0.5 * 6, 16]
    assert totals_of(2, size=(320, 640), chosen=config(num_queries=7)).sums.tolist() == [
        2,
        pytest.approx(2 + 0.1 * 5),
        800,
    ]
    assert totals_of(0, size=(64, 64)).sums.tolist() == [0, pytest.approx(0.1 * 16), 16]


def test_at_least_one_mask_is_divided_by():
    for count, expected in ((0, 1), (1, 1), (5, 5)):
        assert totals_of(count).divisors(torch.float32)[0] == expected
    nothing = Totals(torch.zeros(3, dtype=torch.float64), processes=4)
    assert nothing.divisors(torch.float64)[0] == 0.25


def _sum_on_one_rank(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    totals = totals_of(*((2, 1), (0,))[rank]).over_processes(torch.device("cpu"))
    divisors = [x.item() for x in totals.divisors(torch.float64)]
    (folder / str(rank)).write_text(json.dumps(divisors))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads can abort a normal end: pytorch/pytorch#179291


def test_totals_are_summed_over_the_processes(tmp_path):
    """Divided by their number, as the mean over processes is taken of what is divided by them."""
    mp.spawn(_sum_on_one_rank, (tmp_path,), nprocs=2)
    expected = [x.item() / 2 for x in totals_of(2, 1, 0).divisors(torch.float64)]
    for rank in (0, 1):
        assert json.loads((tmp_path / str(rank)).read_text()) == pytest.approx(expected)
