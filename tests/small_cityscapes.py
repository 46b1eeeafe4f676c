"""A small generated folder in the shape of Cityscapes."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 128)
CITIES = ("aachen", "ulm")


def write_cityscapes(root: Path, split: str = "val", images: int = 3, seed: int = 0) -> Path:
    """Street scenes with leftImg8bit, and gtFine's labelIds and instanceIds; returns the root.

    Sky above, a building and vegetation, road below; some cars (of which some are a group) and
    people, a traffic sign, a caravan, and the car's own hood as void.
    """
    rng = np.random.default_rng(seed)
    for number in range(images):
        ids = _scene(rng)
        city = CITIES[number % len(CITIES)]
        name = f"{city}_{number:06}_000019"
        image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
        truth = root / "gtFine" / split / city
        image.parent.mkdir(parents=True, exist_ok=True)
        truth.mkdir(parents=True, exist_ok=True)
        label_ids = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
        noise = rng.integers(0, 40, (*SIZE, 3))
        colours = label_ids[..., None] * np.array([5, 3, 1]) + noise
        Image.fromarray(colours.astype(np.uint8)).save(image)
        Image.fromarray(label_ids).save(truth / f"{name}_gtFine_labelIds.png")
        Image.fromarray(ids.astype(np.uint16)).save(truth / f"{name}_gtFine_instanceIds.png")
    return root


def _scene(rng: np.random.Generator) -> np.ndarray:
    """The pixels of *_instanceIds.png."""
    height, width = SIZE
    ids = np.full(SIZE, 23)
    ids[12:40, : rng.integers(20, 60)] = 11
    ids[16:40, rng.integers(70, 100) :] = 21
    ids[40:] = 7

    def place(value: int, h: int, w: int) -> None:
        top, left = rng.integers(25, height - 8 - h), rng.integers(0, width - w)
        ids[top : top + h, left : left + w] = value

    place(26, 12, 24)
    place(29000, 10, 20)
    for number in range(rng.integers(1, 4)):
        place(26000 + number, rng.integers(8, 16), rng.integers(14, 30))
    for number in range(rng.integers(0, 3)):
        place(24000 + number, 18, 7)
    place(20, 6, 6)
    ids[-6:] = 1
    return ids
