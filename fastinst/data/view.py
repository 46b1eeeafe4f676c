"""A view of an image: a window of it, scaled, perhaps mirrored, perhaps on a larger canvas.

Whatever an augmentation crops, resizes and crops again is one window here, so that pixels are
interpolated once. Polygons are moved as coordinates and filled at the final size.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_utils
from torch import Tensor

from fastinst.data.objects import Objects
from fastinst.ops.bits import packed_length

# The mean of ImageNet's pixels, about 0 for the model, as the padding of a batch is.
PADDING = (124, 116, 104)


@dataclass(frozen=True)
class View:
    """All lengths in pixels.

    window: (left, top, right, bottom) in the image
    height, width: what the window is scaled to
    flip: mirror left and right
    canvas: (height, width) of the result, to whose top left corner the view goes; its own size
        if None
    reduction: 1, 2, 4 or 8: the image may be made so much smaller before, as the window's edges
        are multiples of it
    """

    window: tuple[int, int, int, int]
    height: int
    width: int
    flip: bool = False
    canvas: tuple[int, int] | None = None
    reduction: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return self.canvas or (self.height, self.width)

    def render(self, image: np.ndarray, reduction: int = 1) -> Tensor:
        """uint8 [3, h, w] of an RGB image uint8 [H, W, 3], with the filter of Pillow's bilinear.

        In torch's arithmetic of 8 bits, which is 3 times faster than Pillow's and differs by a
        grey level or two.

        reduction: how much smaller than the window's coordinates the image is
        """
        left, top, right, bottom = (edge // reduction for edge in self.window)
        source = torch.from_numpy(image[top:bottom, left:right]).permute(2, 0, 1)
        if source.shape[1:] != (self.height, self.width):
            source = F.interpolate(
                source[None], (self.height, self.width), mode="bilinear", antialias=True
            )[0]
        if self.flip:
            source = source.flip(2)
        if self.size == (self.height, self.width):
            return source.contiguous()
        result = torch.tensor(PADDING, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
        result[:, : self.height, : self.width] = source
        return result

    def masks(self, objects: Objects) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 [N] and masks int32 [N, h, ceil(w / 32)] of the objects that have a pixel.

        The masks are in the bits of `fastinst.ops.pack_bits`. Polygons are filled by pycocotools,
        of an RLE the nearest pixels are taken.
        """
        left, top, right, bottom = self.window
        scale = (self.width / (right - left), self.height / (bottom - top))
        windows = self._windows((objects.boxes - (left, top)) * scale)
        seen = np.flatnonzero((windows[:, 0] < windows[:, 1]).all(axis=1))
        points = (objects.points - (left, top)) * scale
        if self.flip:
            points[:, 0] = self.width - points[:, 0]

        height, width = self.size
        words = np.zeros((len(seen), height, packed_length(width)), "<i4")
        filled = np.zeros(len(seen), bool)
        for k, (i, ((x0, y0), (x1, y1))) in enumerate(
            zip(seen.tolist(), windows[seen].tolist(), strict=True)
        ):
            if i in objects.rles:
                mask = self._sample(mask_utils.decode(objects.rles[i]), x0, y0, x1, y1)
            else:
                polygons = [(points[a:b] - (x0, y0)).ravel() for a, b in objects.polygons[i]]
                rles = mask_utils.frPyObjects(polygons, y1 - y0, x1 - x0)
                mask = mask_utils.decode(rles[0] if len(rles) == 1 else mask_utils.merge(rles))
            packed = np.packbits(np.ascontiguousarray(mask), axis=1, bitorder="little")
            words[k].view(np.uint8)[y0:y1, x0 // 8 : x0 // 8 + packed.shape[1]] = packed
            filled[k] = packed.any()
        if not filled.all():
            seen, words = seen[filled], words[filled]
        return objects.labels[seen], words.astype(np.int32, copy=False)

    def _windows(self, boxes: np.ndarray) -> np.ndarray:
        """Scaled boxes [N, 2, 2] to the pixels int64 [N, 2, 2] of the view that they may touch.

        Decoding costs as much as its window has pixels, and most objects are small. The left edge
        is a multiple of 8, where a byte of the mask begins.
        """
        if self.flip:
            boxes = np.stack((boxes[:, ::-1, 0], boxes[:, :, 1]), axis=2)
            boxes[:, :, 0] = self.width - boxes[:, :, 0]
        size = (self.width, self.height)
        first = np.clip(np.floor(boxes[:, 0]), 0, size).astype(np.int64)
        end = np.clip(np.ceil(boxes[:, 1]), 0, size).astype(np.int64)
        visible = (first < end).all(axis=1)
        first[:, 0] -= first[:, 0] % 8
        return np.where(visible[:, None, None], np.stack((first, end), axis=1), 0)

    def _sample(self, source: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The pixels of `source` [H, W] that are nearest to those of a part of the view."""
        left, top, right, bottom = self.window
        rows = top + (np.arange(y0, y1) + 0.5) * (bottom - top) / self.height
        columns = np.arange(x0, x1)
        if self.flip:
            columns = self.width - 1 - columns
        columns = left + (columns + 0.5) * (right - left) / self.width
        return source[np.ix_(rows.astype(int), columns.astype(int))]


class Views(Protocol):
    """Settings of random views."""

    def draw(self, height: int, width: int, rng: np.random.Generator) -> View:
        """A random view of an image of this size."""


def random_window(
    image_size: tuple[int, int],
    scaled_size: tuple[int, int],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """The window in the image that is a random crop of `size` from the image at `scaled_size`.

    All sizes are (height, width).
    """
    (height, width), (scaled_height, scaled_width) = image_size, scaled_size
    top = int(rng.integers(scaled_height - size[0], endpoint=True))
    left = int(rng.integers(scaled_width - size[1], endpoint=True))
    return (
        left * width / scaled_width,
        top * height / scaled_height,
        (left + size[1]) * width / scaled_width,
        (top + size[0]) * height / scaled_height,
    )


def snapped_view(
    image_size: tuple[int, int],
    window: tuple[float, float, float, float],
    size: tuple[int, int],
    flip: bool,
    canvas: tuple[int, int] | None = None,
) -> View:
    """The view with the window's edges moved to whole pixels of the image, of which it keeps one.

    The image may be reduced as long as the window stays twice the view's size: nearer to it,
    a JPEG that is decoded at a fraction of its size shows. Edges move by less than half a pixel
    of the view then, and without reduction by half a pixel of the image.

    image_size, size, canvas: (height, width)
    """
    left, top, right, bottom = window
    ratio = min((bottom - top) / size[0], (right - left) / size[1])
    step = next(step for step in (8, 4, 2, 1) if step == 1 or ratio >= 2 * step)

    def snap(first: float, end: float, length: int) -> tuple[int, int]:
        length //= step
        low = min(round(first / step), length - 1)
        high = min(max(round(end / step), low + 1), length)
        return low * step, high * step

    (left, right), (top, bottom) = (
        snap(left, right, image_size[1]),
        snap(top, bottom, image_size[0]),
    )
    return View((left, top, right, bottom), *size, flip, canvas, step)
