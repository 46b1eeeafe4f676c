"""Large-scale jitter (Ghiasi et al., "Simple Copy-Paste", CVPR 2021, section 3)."""

from dataclasses import dataclass

import numpy as np

from fastinst.data.view import View, random_window, snapped_view


@dataclass(frozen=True)
class LargeScaleJitter:
    """Random views on a square canvas of `size` pixels, for long schedules and large data sets.

    The image is scaled to fit `scale_range` times the canvas. What is larger is cropped at random,
    what is smaller leaves the right and the bottom of the canvas empty.
    """

    size: int
    scale_range: tuple[float, float] = (0.1, 2.0)
    flip_probability: float = 0.5

    def draw(self, height: int, width: int, rng: np.random.Generator) -> View:
        """A random view of an image of this size."""
        scale = rng.uniform(*self.scale_range) * self.size / max(height, width)
        scaled = tuple(max(1, round(side * scale)) for side in (height, width))
        size = tuple(min(side, self.size) for side in scaled)
        window = random_window((height, width), scaled, size, rng)
        flip = bool(rng.random() < self.flip_probability)
        return snapped_view((height, width), window, size, flip, (self.size, self.size))
