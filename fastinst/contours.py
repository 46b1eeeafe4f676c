"""Smooth lines along the borders of masks and segments."""

import math

import numpy as np


class Pen:
    """Draws borders, about as wide as `unit` pixels, as weights that fade out at their sides.

    reach: pixels that a line lies on at most beside a border
    """

    def __init__(self, unit: float):
        self._width = 2 * round(unit) + 1
        # At most 7, for the weights of larger ones exceed a byte.
        self._blur = min(7, 2 * round(1.2 * unit) + 1)
        self.reach = self._width // 2 + self._blur // 2

    def borders(self, values: np.ndarray) -> np.ndarray:
        """[H, W] integers to uint8 [H, W], 0 to 255: of the lines where neighbours differ.

        The array's own border is none: there everything goes on.
        """
        # What lies between an area grown and the area shrunk; this also holds for areas of a
        # single pixel, which are nothing but a border. The blur makes it smooth.
        padded = np.pad(values, self.reach, "edge")
        grown, shrunk = (slide(padded, self._width, f) for f in (np.maximum, np.minimum))
        whole = 4 ** math.ceil(math.log2(self._blur))
        return slide((grown != shrunk) * np.uint8(255 // whole), self._blur, np.add)


def slide(values: np.ndarray, size: int, combine: np.ufunc) -> np.ndarray:
    """What each window of size x size combines to: [H, W] to [H - size + 1, W - size + 1].

    Windows are doubled until they have that size, the last time with an overlap. It changes no
    maximum or minimum, and lets a sum of weights 2 ** (2 * ceil(log2(size))) in all favour the
    middle, as a blur should.
    """
    covered = 1
    while covered < size:
        step = min(covered, size - covered)
        values = combine(values[:, :-step], values[:, step:])
        values = combine(values[:-step], values[step:])
        covered += step
    return values
