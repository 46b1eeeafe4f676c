"""The matching costs in loops, and assignments against all permutations."""

import itertools
import math

import pytest
import torch

from fastinst.config import make_config
from fastinst.decoder import Prediction
from fastinst.matcher import Target, match_pixels, match_queries, sample_points

HEIGHT, WIDTH = 32, 48  # of the padded batch; p4 is 2x3, p3 is 4x6
CLASSES = 3


def config(**overrides):
    return make_config("fastinst-d1-r18-192", num_classes=CLASSES, **overrides)


def make_target(count, labels=None):
    """Random rectangles, one of a single pixel."""
    masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.float64)
    for i, mask in enumerate(masks):
        top, left = torch.randint(HEIGHT, ()).item(), torch.randint(WIDTH, ()).item()
        bottom, right = (top + 1, left + 1) if i == 1 else (top + 17, left + 21)
        mask[top:bottom, left:right] = 1
    labels = torch.randint(CLASSES, (count,)) if labels is None else torch.tensor(labels)
    return Target(labels, masks)


def make_prediction(batch, queries):
    return Prediction(
        2 * torch.randn(batch, queries, CLASSES + 1, dtype=torch.float64),
        3 * torch.randn(batch, queries, HEIGHT // 8, WIDTH // 8, dtype=torch.float64),
    )


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


def query_costs(logits, masks, locations, target, points, config):
    """[Q][N], as the specification words it."""
    costs = []
    for values, mask, (x, y) in zip(
        logits.tolist(), masks.tolist(), locations.tolist(), strict=True
    ):
        costs.append([])
        for label, truth in zip(target.labels.tolist(), target.masks.tolist(), strict=True):
            predicted = [1 / (1 + math.exp(-bilinear(mask, *p))) for p in points]
            wanted = [bilinear(truth, *p) for p in points]
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


def pixel_costs(class_logits, target, config):
    """[h * w][N]."""
    _, height, width = class_logits.shape
    costs = []
    for row, column in itertools.product(range(height), range(width)):
        rows = slice(row * HEIGHT // height, -(-(row + 1) * HEIGHT // height))
        columns = slice(column * WIDTH // width, -(-(column + 1) * WIDTH // width))
        probability = softmax(class_logits[:, row, column].tolist())
        costs.append(
            [
                -config.class_weight * probability[label]
                - config.location_weight * bool(mask[rows, columns].any())
                for label, mask in zip(target.labels.tolist(), target.masks, strict=True)
            ]
        )
    return costs


def check_optimal(match, costs):
    """No one-to-one assignment is cheaper; there is one only, but for equal targets."""
    sources, targets = len(costs), len(costs[0])
    assert len(match.source) == len(match.target) == min(sources, targets)
    assert len(set(match.source.tolist())) == len(set(match.target.tolist())) == len(match.source)
    pairs = zip(match.source.tolist(), match.target.tolist(), strict=True)
    actual = sum(costs[s][t] for s, t in pairs)
    if targets <= sources:
        ways = (
            [(s, t) for t, s in enumerate(chosen)]
            for chosen in itertools.permutations(range(sources), targets)
        )
    else:
        ways = (
            list(enumerate(chosen)) for chosen in itertools.permutations(range(targets), sources)
        )
    assert actual == pytest.approx(min(sum(costs[s][t] for s, t in way) for way in ways))


# Each weight alone, so that a wrong term cannot hide behind a larger one, then all together.
NONE = {"class_weight": 0, "mask_weight": 0, "dice_weight": 0, "location_weight": 0}
WEIGHTS = [
    *({**NONE, name: 3.0} for name in NONE),
    {},
    {"location_weight": 0.5},
    {"class_weight": 7.0, "mask_weight": 0.3, "dice_weight": 1.7, "location_weight": 0.9},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_queries_are_matched_at_least_cost(weights):
    chosen = config(**weights)
    for counts in ((3, 2), (1, 4), (4, 5)):
        prediction = make_prediction(2, queries=4)
        locations = torch.rand(2, 4, 2, dtype=torch.float64)
        locations[0, 0], locations[1, 1] = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
        targets = [make_target(count) for count in counts]
        points = torch.rand(1, 9, 2, dtype=torch.float64)
        matches = match_queries(prediction, locations, targets, chosen, points)
        for i, match in enumerate(matches):
            costs = query_costs(
                prediction.logits[i],
                prediction.masks[i],
                locations[i],
                targets[i],
                points[0].tolist(),
                chosen,
            )
            check_optimal(match, costs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("size", [(2, 3), (1, 4), (2, 2)])
def test_pixels_are_matched_at_least_cost(weights, size):
    chosen = config(**weights)
    for counts in ((3, 1), (2, 5)):
        class_logits = 2 * torch.randn(2, CLASSES + 1, *size, dtype=torch.float64)
        targets = [make_target(count) for count in counts]
        matches = match_pixels(class_logits, targets, chosen)
        for logits, match, target in zip(class_logits, matches, targets, strict=True):
            check_optimal(match, pixel_costs(logits, target, chosen))


def test_samples_are_bilinear_with_zeros_outside():
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    points = torch.rand(2, 11, 2, dtype=torch.float64)
    points[:, :4] = torch.tensor([[0, 0], [1, 1], [0.5, 0.5], [0.99, 0.01]])
    actual = sample_points(maps, points)
    for n, c, p in itertools.product(range(2), range(3), range(11)):
        expected = bilinear(maps[n, c].tolist(), *points[n, p].tolist())
        assert actual[n, c, p].item() == pytest.approx(expected)


@pytest.mark.parametrize("counts", [(0, 2), (0, 0)])
def test_images_without_targets_match_nothing(counts):
    targets = [make_target(count) for count in counts]
    by_pixel = match_pixels(torch.randn(2, CLASSES + 1, 2, 3).double(), targets, config())
    locations = torch.rand(2, 4, 2, dtype=torch.float64)
    by_query = match_queries(make_prediction(2, 4), locations, targets, config(), None)
    for matches in (by_pixel, by_query):
        for match, count in zip(matches, counts, strict=True):
            assert len(match.source) == len(match.target) == count
            assert match.source.dtype == match.target.dtype == torch.int64


def test_equal_targets_take_different_queries():
    target = make_target(1)
    double = Target(target.labels.repeat(2), target.masks.repeat(2, 1, 1))
    locations = torch.rand(1, 4, 2, dtype=torch.float64)
    (match,) = match_queries(make_prediction(1, 4), locations, [double], config(), None)
    assert sorted(match.target.tolist()) == [0, 1] and len(set(match.source.tolist())) == 2
    (match,) = match_pixels(torch.randn(1, CLASSES + 1, 2, 3).double(), [double], config())
    assert sorted(match.target.tolist()) == [0, 1] and len(set(match.source.tolist())) == 2


def test_a_query_inside_its_target_is_worth_more_than_any_mask():
    """The second query has the perfect class and mask, the first only the place."""
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.float64)
    masks[:, :16, :16] = 1
    small = 20 * (masks[:, ::8, ::8] - 0.5)
    logits = torch.tensor([[[0.0, 0, 0, 9], [9, 0, 0, 0]]], dtype=torch.float64)
    prediction = Prediction(logits, torch.stack([-small, small], dim=1))
    locations = torch.tensor([[[0.1, 0.1], [0.9, 0.9]]], dtype=torch.float64)
    targets = [Target(torch.tensor([0]), masks)]
    (match,) = match_queries(prediction, locations, targets, config(), None)
    assert match.source.tolist() == [0]
    (match,) = match_queries(prediction, locations, targets, config(location_weight=0), None)
    assert match.source.tolist() == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_prediction_that_overflowed_is_still_matched(value):
    """The loss must show it, the matching may not stop."""
    prediction = make_prediction(1, 4)
    prediction.masks[0, 1:3] = value
    prediction.logits[0, 3] = math.nan
    locations = torch.rand(1, 4, 2, dtype=torch.float64)
    (match,) = match_queries(prediction, locations, [make_target(3)], config(), None)
    assert sorted(match.target.tolist()) == [0, 1, 2]
    class_logits = torch.full((1, CLASSES + 1, 2, 3), value)
    (match,) = match_pixels(class_logits, [make_target(3)], config())
    assert sorted(match.target.tolist()) == [0, 1, 2]


def as_lists(matches):
    return [(match.source.tolist(), match.target.tolist()) for match in matches]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_matched_in_float32(dtype):
    """1000 for the place must not round the class probabilities away."""
    targets = [Target(t.labels, t.masks.float()) for t in (make_target(3), make_target(2))]
    class_logits = torch.randn(2, CLASSES + 1, 4, 6).to(dtype)
    expected = match_pixels(class_logits.float(), targets, config())
    assert as_lists(match_pixels(class_logits, targets, config())) == as_lists(expected)

    prediction = Prediction(*(x.to(dtype) for x in make_prediction(2, 9)))
    exact = Prediction(*(x.float() for x in prediction))
    locations, points = torch.rand(2, 9, 2), torch.rand(1, 50, 2)
    expected = match_queries(exact, locations, targets, config(), points)
    actual = match_queries(prediction, locations, targets, config(), points)
    assert as_lists(actual) == as_lists(expected)


def test_autocast_does_not_overflow_the_sums_over_points():
    """A mask of logits of 20 sums to 250,000 over 12,544 points; float16 ends at 65,504."""
    target = Target(torch.tensor([0]), torch.ones(1, HEIGHT, WIDTH))
    masks = torch.full((1, 2, 4, 6), 20.0)
    masks[0, 1] = 0.1
    prediction = Prediction(torch.zeros(1, 2, CLASSES + 1), masks)
    chosen = config(num_points=12544, location_weight=0)
    with torch.autocast("cpu", torch.float16):
        (match,) = match_queries(prediction, torch.rand(1, 2, 2), [target], chosen, None)
    assert match.source.tolist() == [0]
