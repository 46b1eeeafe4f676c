"""Crops of one size from an image at a random scale, as Cityscapes is trained with."""

from dataclasses import dataclass

import numpy as np

from fastinst.data.augment import shortest_edge_size
from fastinst.data.view import View, random_window, snapped_view


@dataclass(frozen=True)
class FixedCrop:
    """Random views of `size` pixels; the defaults are those of the supplement's appendix B.

    The image is scaled to a shortest edge out of `short_edges` and cropped to `size`, (height,
    width), or less where it is smaller.
    """

    size: tuple[int, int] = (512, 1024)
    short_edges: tuple[int, ...] = tuple(range(800, 1025, 32))
    flip_probability: float = 0.5

    @classmethod
    def for_size(cls, short_edge: int) -> "FixedCrop":
        """For a model whose largest shortest edge is `short_edge` instead of 1024."""
        scaled = [max(1, round(edge * short_edge / 1024)) for edge in cls.short_edges]
        return cls((max(1, short_edge // 2), short_edge), tuple(scaled))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> View:
        """A random view of an image of this size."""
        scaled = shortest_edge_size(height, width, int(rng.choice(self.short_edges)))
        size = tuple(min(sides) for sides in zip(scaled, self.size, strict=True))
        window = random_window((height, width), scaled, size, rng)
        flip = bool(rng.random() < self.flip_probability)
        return snapped_view((height, width), window, size, flip)
