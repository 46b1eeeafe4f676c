"""A small model, a network that finds colours, and images for a Predictor of either."""

from types import SimpleNamespace

import numpy as np
import torch

from fastinst import Instances, create_model

TINY = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "test_short_edge": 64, "test_max_edge": 96}
# Padded to 64 x 96, 96 x 64, 64 x 64, 64 x 96 again, 32 x 96 and 64 x 96.
SIZES = [(50, 70), (90, 60), (64, 64), (30, 44), (8, 30), (100, 150)]


def tiny_model(**overrides):
    model = create_model("fastinst-d1-r18-192", num_classes=5, **TINY | overrides)
    torch.nn.init.normal_(model.positions.weight)
    return model


def random_images(sizes=SIZES):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_same(one: Instances, other: Instances, tolerance=0.0):
    """With a tolerance, of the scores, instances of nearly one score may change places."""
    assert one.size == other.size and len(one) == len(other)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=tolerance)
    if tolerance == 0:
        assert torch.equal(one.labels, other.labels) and torch.equal(one.packed, other.packed)
        assert torch.equal(one.boxes, other.boxes)
        return
    masks, others = (found.masks.flatten(1).float() for found in (one, other))
    shared = masks @ others.T
    overlap = shared / (masks.sum(1)[:, None] + others.sum(1) - shared).clamp(min=1)
    empty = one.boxes.sum(1) == 0
    same = (one.labels[:, None] == other.labels) & (
        (one.scores[:, None] - other.scores).abs() <= 2 * tolerance
    )
    assert (((overlap > 0.99) & same).any(1) | empty).all()


class Colours:
    """A network that finds what is red, green or blue; notes the shapes of its batches, and has
    memory for so many pixels."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(
        name="colours",
        test_short_edge=64,
        test_max_edge=96,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(255.0, 255.0, 255.0),
    )

    def __init__(self, memory=float("inf"), error=None):
        self.shapes, self.memory = [], memory
        self.error = error or RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory"
        )

    def __call__(self, batch):
        self.shapes.append(tuple(batch.shape))
        if batch[:, 0].numel() > self.memory:
            raise self.error
        masks = 40 * torch.nn.functional.avg_pool2d(batch, 8) - 20
        logits = torch.full((len(batch), 3, 4), -9.0)
        for i in range(3):
            logits[:, i, i] = 3.0 - i
        return {"pred_logits": logits, "pred_masks": masks}


def patch(size, colour):
    image = np.zeros((*size, 3), np.uint8)
    image[: size[0] // 2, : size[1] // 2, colour] = 255
    return image


def colour_of(found):
    """The colour of `patch` of what was found in it, and its size."""
    best = found.scores.argmax()
    height, width = found.size
    assert found.masks[best, height // 4, width // 4] and not found.masks[best, -1, -1]
    return int(found.labels[best]), found.size


PATCHES = [(size, i % 3) for i, size in enumerate(SIZES * 3)]
EXPECTED = [(colour, size) for size, colour in PATCHES]


def patches():
    return [patch(size, colour) for size, colour in PATCHES]
