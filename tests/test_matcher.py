"""The matching costs in loops, and assignments against all permutations."""

import itertools
import math
from collections import namedtuple

import pytest
import torch

from fastinst import ops
from fastinst.config import make_config
from fastinst.matcher import match, pixel_costs, query_costs
from fastinst.step_timing import DownloadCounter
from fastinst.targets import pad_targets

HEIGHT, WIDTH = 32, 64  # of the padded batch; p4 is 2x4, p3 is 4x8
P3, P4 = (HEIGHT // 8, WIDTH // 8), (HEIGHT // 16, WIDTH // 16)
CLASSES = 3
# What the matcher reads of `fastinst.queries.Queries`.
Proposals = namedtuple("Proposals", "locations class_logits")


def config(**overrides):
    return make_config("fastinst-d1-r18-192", num_classes=CLASSES, **overrides)


def make_target(count):
    """Random rectangles, the second of a single pixel."""
    masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.bool)
    for i, mask in enumerate(masks):
        top, left = torch.randint(HEIGHT, ()).item(), torch.randint(WIDTH, ()).item()
        bottom, right = (top + 1, left + 1) if i == 1 else (top + 17, left + 21)
        mask[top:bottom, left:right] = True
    labels = torch.randint(CLASSES, (count,))
    return {"labels": labels, "masks": masks, "seed": torch.randint(2**62, ()).item()}


def pad(targets):
    return pad_targets(targets, torch.zeros(len(targets), 3, HEIGHT, WIDTH), CLASSES)


def make_heads(heads, batch, queries, dtype=torch.float64):
    """Class logits and mask logits, a list of heads each."""
    logits = 2 * torch.randn(heads, batch, queries, CLASSES + 1, dtype=torch.float64)
    masks = 3 * torch.randn(heads, batch, queries, *P3, dtype=torch.float64)
    return list(logits.to(dtype)), list(masks.to(dtype))


def make_proposals(batch, queries, dtype=torch.float64):
    class_logits = 2 * torch.randn(batch, CLASSES + 1, *P4, dtype=torch.float64)
    locations = torch.rand(batch, queries, 2, dtype=torch.float64)
    exact = torch.promote_types(dtype, torch.float32)
    return Proposals(locations.to(exact), class_logits.to(dtype))


def softmax(values):
    weights = [math.exp(v) for v in values]
    return [w / sum(weights) for w in weights]


def bilinear(plane, x, y):
    """`plane` (nested lists) at (x, y) in [0, 1], zeros outside."""
    height, width = len(plane), len(plane[0])
    x, y, total = x * width - 0.5, y * height - 0.5, 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row][column]
    return total


def query_costs_by_loops(logits, masks, locations, target, points, config):
    """[N][Q], as the specification words it."""
    costs = []
    for label, truth in zip(
        target["labels"].tolist(), target["masks"].double().tolist(), strict=True
    ):
        wanted = [bilinear(truth, *p) for p in points]
        costs.append([])
        for values, mask, (x, y) in zip(
            logits.tolist(), masks.tolist(), locations.tolist(), strict=True
        ):
            predicted = [1 / (1 + math.exp(-bilinear(mask, *p))) for p in points]
            pairs = list(zip(predicted, wanted, strict=True))
            entropy = -sum(t * math.log(s) + (1 - t) * math.log(1 - s) for s, t in pairs)
            overlap = sum(s * t for s, t in pairs)
            dice = 1 - (2 * overlap + 1) / (sum(predicted) + sum(wanted) + 1)
            costs[-1].append(
                -config.class_weight * softmax(values)[label]
                + config.mask_weight * entropy / len(pairs)
                + config.dice_weight * dice
                - config.location_weight * (bilinear(truth, x, y) > 0)
            )
    return costs


def pixel_costs_by_loops(class_logits, target, config):
    """[N][h * w]."""
    costs = []
    for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
        costs.append([])
        for row, column in itertools.product(range(P4[0]), range(P4[1])):
            block = mask[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            probability = softmax(class_logits[:, row, column].tolist())
            costs[-1].append(
                -config.class_weight * probability[label]
                - config.location_weight * bool(block.any())
            )
    return costs


def check_close(actual, rows):
    expected = torch.tensor(rows, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual, expected)


def check_optimal(pairs, costs):
    """{source: target}: no one-to-one assignment is cheaper."""
    targets, sources = len(costs), len(costs[0]) if costs else 0
    assert len(pairs) == len(set(pairs.values())) == min(sources, targets)
    actual = sum(costs[t][s] for s, t in pairs.items())
    if targets <= sources:
        ways = (enumerate(chosen) for chosen in itertools.permutations(range(sources), targets))
    else:
        ways = (
            ((t, s) for s, t in enumerate(chosen))
            for chosen in itertools.permutations(range(targets), sources)
        )
    assert actual == pytest.approx(min(sum(costs[t][s] for t, s in way) for way in ways))


def pairs_of(row, targets, image):
    """{source: instance of the image} from a row of `by_query` or `by_pixel`."""
    first, none = sum(targets.counts[:image]), sum(targets.counts)
    return {s: t - first for s, t in enumerate(row.tolist()) if t != none}


# Each weight alone, so that a wrong term cannot hide behind a larger one, then all together.
NONE = {"class_weight": 0, "mask_weight": 0, "dice_weight": 0, "location_weight": 0}
WEIGHTS = [
    *({**NONE, name: 3.0} for name in NONE),
    {},
    {"location_weight": 0.5},
    {"class_weight": 7.0, "mask_weight": 0.3, "dice_weight": 1.7, "location_weight": 0.9},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_costs_and_matches_are_those_of_the_definition(weights):
    chosen = config(**weights)
    for counts in ((3, 2), (1, 0), (4, 5)):
        made = [make_target(count) for count in counts]
        targets = pad(made)
        logits, masks = make_heads(2, 2, queries=4)
        proposals = make_proposals(2, 4)
        proposals.locations[0, 0], proposals.locations[1, 1] = 1.0, 0.0
        points = torch.rand(1, 9, 2, dtype=torch.float64)
        by_query = query_costs(logits, masks, proposals.locations, targets, chosen, points)
        by_pixel = pixel_costs(proposals.class_logits, targets, chosen)
        matches = match(logits, masks, proposals, targets, chosen, points)
        for image, (count, target) in enumerate(zip(counts, made, strict=True)):
            for head in range(2):
                costs = query_costs_by_loops(
                    *(logits[head][image], masks[head][image], proposals.locations[image]),
                    *(target, points[0].tolist(), chosen),
                )
                check_close(by_query[head, image, :count], costs)
                pairs = pairs_of(matches.by_query[head, image], targets, image)
                check_optimal(pairs, costs)
            costs = pixel_costs_by_loops(proposals.class_logits[image], target, chosen)
            check_close(by_pixel[image, :count], costs)
            check_optimal(pairs_of(matches.by_pixel[image], targets, image), costs)


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (6, 1)])
def test_the_forms_of_a_matching_agree(counts):
    targets = pad([make_target(count) for count in counts])
    matches = match(*make_heads(3, 2, 4), make_proposals(2, 4), targets, config(), None)
    matched = sum(min(count, 4) for count in counts)
    assert matches.queries.shape == (3, 2, min(max(counts), 4))
    assert matches.pairs.shape == (matched,) and matches.instances.shape == (3, matched)
    assert matches.by_pixel.shape == (2, 8)
    assert all(tensor.dtype == torch.int64 for tensor in matches)
    for head in range(3):
        found = {
            (int(pair) // matches.queries.shape[2], q): t
            for pair, t in zip(matches.pairs, matches.instances[head].tolist(), strict=True)
            for q in [matches.queries[head].flatten()[pair].item()]
        }
        expected = {
            (image, q): t
            for image in range(2)
            for q, t in enumerate(matches.by_query[head, image].tolist())
            if t != sum(counts)
        }
        assert found == expected
        assert list(found.values()) == sorted(found.values())


def test_an_images_own_points_follow_from_its_seed_alone():
    made = [make_target(2), make_target(3)]
    logits, masks = make_heads(2, 2, 4)
    locations, chosen = make_proposals(2, 4).locations, config(num_points=50)
    together = query_costs(logits, masks, locations, pad(made), chosen, None)
    for image, target in enumerate(made):
        points = ops.random_points(torch.tensor([target["seed"]]), 50)
        alone = [x[image : image + 1] for x in logits], [x[image : image + 1] for x in masks]
        alone = query_costs(*alone, locations[image : image + 1], pad([target]), chosen, points)
        count = len(target["labels"])
        torch.testing.assert_close(together[:, image : image + 1, :count], alone)


def test_all_costs_leave_the_device_in_one_copy():
    targets = pad([make_target(3), make_target(0), make_target(2)])
    with DownloadCounter() as downloads:
        match(*make_heads(4, 3, 4), make_proposals(3, 4), targets, config(), None)
    assert downloads.calls == 1
    with DownloadCounter() as downloads:
        empty = pad([make_target(0)] * 3)
        match(*make_heads(4, 3, 4), make_proposals(3, 4), empty, config(), None)
    assert downloads.calls == 0


def test_equal_targets_take_different_queries():
    target = make_target(1)
    double = {"labels": target["labels"].repeat(2), "masks": target["masks"].repeat(2, 1, 1)}
    targets = pad([double])
    matches = match(*make_heads(1, 1, 4), make_proposals(1, 4), targets, config(), None)
    for row in (matches.by_query[0, 0], matches.by_pixel[0]):
        assert sorted(pairs_of(row, targets, 0).values()) == [0, 1]


def test_a_query_inside_its_target_is_worth_more_than_any_mask():
    """The second query has the perfect class and mask, the first only the place."""
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, :16, :16] = True
    small = 20 * (masks[:, ::8, ::8].double() - 0.5)
    logits = [torch.tensor([[[0.0, 0, 0, 9], [9, 0, 0, 0]]], dtype=torch.float64)]
    maps = [torch.stack([-small, small], dim=1)]
    locations = torch.tensor([[[0.1, 0.1], [0.9, 0.9]]], dtype=torch.float64)
    proposals = make_proposals(1, 2)._replace(locations=locations)
    targets = pad([{"labels": torch.tensor([0]), "masks": masks}])
    for chosen, query in ((config(), 0), (config(location_weight=0), 1)):
        assert match(logits, maps, proposals, targets, chosen, None).queries.item() == query


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_prediction_that_overflowed_is_still_matched(value):
    """The loss must show it, the matching may not stop."""
    logits, masks = make_heads(2, 1, 4)
    masks[0][0, 1:3] = value
    logits[0][0, 3] = math.nan
    proposals = make_proposals(1, 4)._replace(class_logits=torch.full((1, 4, *P4), value))
    targets = pad([make_target(3)])
    matches = match(logits, masks, proposals, targets, config(), None)
    for row in (*matches.by_query[:, 0], matches.by_pixel[0]):
        assert sorted(pairs_of(row, targets, 0).values()) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_matched_in_float32(dtype):
    """1000 for the place must not round the class probabilities away."""
    targets = pad([make_target(3), make_target(2)])
    logits, masks = make_heads(2, 2, 9, dtype)
    proposals, points = make_proposals(2, 9, dtype), torch.rand(1, 50, 2)
    exact = proposals._replace(class_logits=proposals.class_logits.float())
    expected = match(
        [x.float() for x in logits], [x.float() for x in masks], exact, targets, config(), points
    )
    actual = match(logits, masks, proposals, targets, config(), points)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_autocast_does_not_overflow_the_sums_over_points():
    """A mask of logits of 20 sums to 250,000 over 12,544 points; float16 ends at 65,504."""
    targets = pad(
        [{"labels": torch.tensor([0]), "masks": torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)}]
    )
    masks = torch.full((1, 2, *P3), 20.0)
    masks[0, 1] = 0.1
    chosen = config(num_points=12544, location_weight=0)
    with torch.autocast("cpu", torch.float16):
        matches = match(
            [torch.zeros(1, 2, CLASSES + 1)],
            [masks],
            make_proposals(1, 2, torch.float32),
            targets,
            chosen,
            None,
        )
    assert matches.queries.item() == 0
