"""Ragged, packed targets against the masks that they hold."""

import pytest
import torch
import torch.nn.functional as F
from test_matcher import CLASSES, HEIGHT, WIDTH, make_target, pad

from fastinst.errors import InputError
from fastinst.ops import pack_bits, unpack_bits
from fastinst.targets import nearest, pad_targets, reaches_p4

SIZES = ((9, 13), (32, 64), (5, 6), (31, 33))
COUNTS = (2, 3, 0, 1)


def make_batch():
    batch = torch.zeros(len(SIZES), 3, HEIGHT, WIDTH)
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,)),
            "masks": torch.rand(count, *size) < 0.5,
            "seed": 2**62 + 10 * i,
        }
        for i, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True))
    ]
    return batch, targets


@pytest.mark.parametrize("packed", [False, True])
def test_instances_follow_each_other_padded_to_the_right_and_bottom(packed):
    batch, targets = make_batch()
    given = [t | {"masks": pack_bits(t["masks"])} if packed else t for t in targets]
    padded = pad_targets(given, batch, CLASSES)
    assert padded.counts == list(COUNTS)
    assert padded.labels.tolist() == [i for t in targets for i in t["labels"].tolist()]
    assert padded.images.tolist() == [0, 0, 1, 1, 1, 3]
    assert padded.slots.tolist() == [[0, 1, 0], [2, 3, 4], [0, 0, 0], [5, 0, 0]]
    assert padded.masks.dtype == torch.int32 and padded.labels.dtype == torch.int64
    expected = torch.cat(
        [
            F.pad(t["masks"], (0, WIDTH - w, 0, HEIGHT - h))
            for t, (h, w) in zip(targets, SIZES, strict=True)
        ]
    )
    assert torch.equal(unpack_bits(padded.masks, WIDTH), expected)


def test_random_streams_follow_from_the_image_and_the_place_in_it():
    """So that they are the same however a batch is split."""
    batch, targets = make_batch()
    together = pad_targets(targets, batch, CLASSES)
    assert together.image_seeds.tolist() == [t["seed"] for t in targets]
    assert len(set(together.mask_seeds.tolist())) == sum(COUNTS)
    alone = [pad_targets([t], batch[:1], CLASSES).mask_seeds for t in targets]
    assert torch.equal(torch.cat(alone), together.mask_seeds)


def test_without_seeds_they_are_drawn_from_torch():
    batch, targets = make_batch()
    unseeded = [{k: v for k, v in t.items() if k != "seed"} for t in targets]
    seeds = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seeds.append(pad_targets(unseeded, batch, CLASSES).image_seeds.tolist())
    assert seeds[0] == seeds[1] != seeds[2] and len(set(seeds[0])) == len(COUNTS)
    state = torch.get_rng_state()
    pad_targets(targets, batch, CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    mixed = pad_targets([targets[0], unseeded[1]], batch[:2], CLASSES)
    assert mixed.image_seeds[0] == targets[0]["seed"]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_masks_on_smaller_maps_are_those_of_a_nearest_resize(stride):
    targets = [make_target(3), make_target(4)]
    masks = torch.cat([target["masks"] for target in targets])
    size = (HEIGHT // stride, WIDTH // stride)
    expected = F.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0] > 0
    assert torch.equal(nearest(pad(targets).masks, stride), expected)
    noise = torch.rand(5, HEIGHT, WIDTH) < 0.5
    assert torch.equal(nearest(pack_bits(noise), stride), noise[:, ::stride, ::stride])


def test_pixels_of_p4_are_reached_by_any_pixel_of_their_block():
    masks = torch.rand(50, HEIGHT, WIDTH) < 0.002
    expected = F.max_pool2d(masks[:, None].float(), 16)[:, 0] > 0
    assert 0.2 < expected.double().mean() < 0.8
    assert torch.equal(reaches_p4(pack_bits(masks)), expected)


def test_a_batch_without_instances():
    targets = pad([make_target(0), make_target(0)])
    assert targets.counts == [0, 0] and targets.slots.shape == (2, 0)
    assert targets.masks.shape == (0, HEIGHT, WIDTH // 32)
    assert nearest(targets.masks, 8).shape == (0, HEIGHT // 8, WIDTH // 8)
    assert reaches_p4(targets.masks).shape == (0, HEIGHT // 16, WIDTH // 16)


GOOD = {"labels": torch.tensor([0, 1]), "masks": torch.ones(2, 9, 13, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, r"^target 1: labels must be \[N\] and masks"),
        ({"labels": torch.tensor([[0], [1]])}, r"^target 1: labels must be \[N\]"),
        ({"masks": torch.ones(2, 9).bool()}, r"^target 1: labels must be \[N\] and masks"),
        (
            {"masks": torch.ones(2, 33, 13).bool()},
            "^target 1: masks of 33x13 exceed the batch of 32x64",
        ),
        ({"masks": torch.ones(2, 9, 65).bool()}, "^target 1: masks of 9x65 exceed"),
        ({"masks": torch.ones(2, 9, 3).int()}, "^target 1: masks of 9x96 exceed"),
        ({"labels": torch.tensor([0, 3])}, r"^target 1: labels must be in 0\.\.2"),
        ({"labels": torch.tensor([-1, 0])}, r"^target 1: labels must be in 0\.\.2"),
        ({"labels": torch.tensor([0.0, 1.0])}, "^target 1: labels must be integers and masks bool"),
        ({"masks": 255 * torch.ones(2, 9, 13).byte()}, "^target 1: labels must be integers"),
    ],
)
def test_targets_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        pad_targets([GOOD, GOOD | change], torch.zeros(2, 3, HEIGHT, WIDTH), CLASSES)


def test_a_target_needs_labels_and_masks():
    with pytest.raises(InputError, match="^target 0 needs labels and masks, it has labels"):
        pad_targets([{"labels": torch.tensor([0])}], torch.zeros(1, 3, HEIGHT, WIDTH), CLASSES)


def test_one_target_for_each_image():
    with pytest.raises(InputError, match="^2 images but 1 targets"):
        pad_targets([GOOD], torch.zeros(2, 3, HEIGHT, WIDTH), CLASSES)


def test_a_batch_that_is_not_padded():
    with pytest.raises(InputError, match="^a batch must be padded to multiples of 32.* 32x48"):
        pad_targets([GOOD], torch.zeros(1, 3, 32, 48), CLASSES)
