"""The resize of testing, and the release's training augmentation: crop, multi-scale, flip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastinst.data.view import View, random_window, snapped_view


@dataclass(frozen=True)
class Augmentation:
    """Settings of random views; all lengths in pixels, the defaults being the release's.

    With `crop_probability` the image is first scaled to a shortest edge out of `crop_resize` and
    cropped to sides from `crop_range`, both ends included. It is then scaled to a shortest edge
    out of `short_edges`, or less where the longest edge would pass `max_edge`.
    """

    short_edges: tuple[int, ...] = tuple(range(416, 641, 32))
    max_edge: int = 853
    crop_probability: float = 0.5
    crop_resize: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    flip_probability: float = 0.5

    @classmethod
    def release(cls) -> "Augmentation":
        """What the release trained all its models with."""
        return cls()

    @classmethod
    def for_size(cls, short_edge: int, max_edge: int) -> "Augmentation":
        """The release's, for a model whose shortest edge is `short_edge` instead of 640."""
        release = cls()

        def scaled(lengths: Sequence[int]) -> tuple[int, ...]:
            return tuple(max(1, round(length * short_edge / 640)) for length in lengths)

        return cls(
            short_edges=scaled(release.short_edges),
            max_edge=max_edge,
            crop_resize=scaled(release.crop_resize),
            crop_range=scaled(release.crop_range),
        )

    @classmethod
    def flip_only(cls, short_edge: int, max_edge: int) -> "Augmentation":
        """One size and no crop."""
        return cls(short_edges=(short_edge,), max_edge=max_edge, crop_probability=0.0)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> View:
        """A random view of an image of this size."""
        window = (0, 0, width, height)
        crop_height, crop_width = height, width
        if rng.random() < self.crop_probability:
            scaled = shortest_edge_size(height, width, int(rng.choice(self.crop_resize)))
            low, high = self.crop_range
            crop_height, crop_width = (
                int(rng.integers(min(side, low), min(side, high), endpoint=True)) for side in scaled
            )
            window = random_window((height, width), scaled, (crop_height, crop_width), rng)
        size = shortest_edge_size(
            crop_height, crop_width, int(rng.choice(self.short_edges)), self.max_edge
        )
        flip = bool(rng.random() < self.flip_probability)
        return snapped_view((height, width), window, size, flip)


def shortest_edge_size(
    height: int, width: int, short: int, maximum: float = float("inf")
) -> tuple[int, int]:
    """(height, width) with the shortest edge `short`, unless the longest would pass `maximum`.

    In the order of operations of detectron2's ResizeShortestEdge, whose rounding decides the size.
    """
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > maximum:
        scale = maximum / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_shortest_edge(image: np.ndarray, short: int, maximum: int) -> np.ndarray:
    """The test resize of a uint8 [H, W, 3] image, to the size of `shortest_edge_size`."""
    height, width = shortest_edge_size(*image.shape[:2], short, maximum)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
