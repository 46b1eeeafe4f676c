"""Labels on the instances of a picture: what they look like, and where there is room for them."""

import functools
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

# How much of a label may lie on small instances.
HIDING = 0.1
# The deepest point of a mask is looked for on a grid of at most this many points per side.
COARSE = 64

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive
Colour = tuple[int, int, int]


class Labels:
    """The labels of one picture. Those added first get the places that several want.

    A label lies on its instance if that is large, else beside it; never on another label, and
    hardly on a small instance, of which nothing would be seen. Where that cannot be, it is left
    out.

    image_size: (height, width)
    size: of the font, in pixels
    """

    def __init__(self, image_size: tuple[int, int], size: int):
        self.size = size
        self._added: list[tuple[Image.Image, Box, np.ndarray, bool]] = []
        self._taken = np.zeros(image_size, dtype=bool)  # by labels
        self._small = np.zeros(image_size, dtype=bool)  # instances with no room for a label

    def add(
        self, text: str, colour: Colour, box: Box, mask: np.ndarray, beside: bool = True
    ) -> None:
        """box: of the instance, in the picture; mask: bool or 0 and 1, the part in the box; beside:
        False leaves the label out where most of it would not lie on the mask"""
        label = draw_label(text, colour, self.size)
        self._added.append((label, box, mask, beside))
        if not _has_room(box, label.size):
            left, top, right, bottom = box
            self._small[top:bottom, left:right] |= mask.view(bool)

    def placed(self) -> Iterator[tuple[Image.Image, Box]]:
        """The labels that have a place, each an RGBA picture, and where."""
        for label, box, mask, beside in self._added:
            for left, top in _places(mask, box, label.size, self._taken.shape):
                place = (left, top, left + label.width, top + label.height)
                if self._is_free(place) and (beside or _share(mask, box, place) > 0.5):
                    self._taken[place[1] : place[3], left : place[2]] = True
                    yield label, place
                    break

    def _is_free(self, place: Box) -> bool:
        left, top, right, bottom = place
        height, width = self._taken.shape
        if left < 0 or top < 0 or right > width or bottom > height:
            return False
        window = (slice(top, bottom), slice(left, right))
        return not self._taken[window].any() and self._small[window].mean() <= HIDING


@functools.lru_cache(maxsize=512)
def draw_label(text: str, colour: Colour, size: int) -> Image.Image:
    """The text in a font of `size` pixels on a rounded field of the colour, RGBA."""
    font = ImageFont.load_default(size)
    pad = max(2, round(size / 5))
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    label = Image.new("RGBA", (math.ceil(right - left) + 2 * pad, ascent + descent + pad))
    draw = ImageDraw.Draw(label)
    draw.rounded_rectangle((0, 0, label.width - 1, label.height - 1), radius=pad, fill=colour)
    # Black on colours of more than this relative luminance (WCAG) contrasts better than white.
    luminance = np.dot((0.2126, 0.7152, 0.0722), (np.array(colour) / 255) ** 2.2)
    ink = (0, 0, 0) if luminance > 0.18 else (255, 255, 255)
    draw.text((pad - left, pad // 2), text, ink, font)
    return label


def _has_room(box: Box, size: tuple[int, int]) -> bool:
    """Whether enough of an instance is seen beside a label of (width, height) that lies on it."""
    return box[2] - box[0] >= size[0] and box[3] - box[1] >= 2 * size[1]


def _share(mask: np.ndarray, box: Box, place: Box) -> float:
    """How much of a place lies on the mask in a box."""
    x, y = box[:2]
    left, top, right, bottom = place
    on = mask[max(top - y, 0) : max(bottom - y, 0), max(left - x, 0) : max(right - x, 0)]
    return np.count_nonzero(on) / ((right - left) * (bottom - top))


def _places(
    mask: np.ndarray, box: Box, size: tuple[int, int], image_size: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Top-left corners for a label of (width, height), best first; they may leave the image."""
    left, top, right, bottom = box
    width, height = size
    if _has_room(box, size):
        x, y = _deepest(mask)
        yield left + x - width // 2, top + y - height // 2
        yield left, top
        yield right - width, top
        yield left, bottom - height
        yield right - width, bottom - height
    else:
        # Labels slide along the image's border instead of leaving it.
        x = min(max(left, 0), image_size[1] - width)
        y = min(max(top, 0), image_size[0] - height)
        yield x, top - height
        yield x, bottom
        yield right, y
        yield left - width, y


def _deepest(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the point of a mask that is about farthest from all that is not mask."""
    step = math.ceil(max(mask.shape) / COARSE)
    depth = ndimage.distance_transform_cdt(np.pad(mask[::step, ::step], 1))
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return step * (int(column) - 1), step * (int(row) - 1)
