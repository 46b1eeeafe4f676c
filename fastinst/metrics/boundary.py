"""Boundary IoU: how well the outlines of two masks agree, however large their insides.

Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation", CVPR 2021.
"""

import math

import numpy as np
from pycocotools import mask as rle

from fastinst.data.segmentation import run_lengths

DILATION_RATIO = 0.02  # of the image's diagonal


def boundary_width(height: int, width: int) -> int:
    """In pixels, of an image's size."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def boundary(code: dict) -> dict:
    """The part of a mask that lies within `boundary_width` of its outside.

    Distances are in king's moves, and whatever lies beyond the image's border is outside. Works on
    the object's window alone, so that it takes neither the memory nor the time of a whole image.

    code: a compressed run-length code; the result is one, of the same size
    """
    height, width = code["size"]
    left, top, columns, rows = rle.toBbox(code).astype(int).tolist()
    if columns == 0:
        return code
    counts = code["counts"]
    runs = run_lengths(counts.decode() if isinstance(counts, bytes) else counts)
    ends = np.cumsum(runs)
    # The runs go down the columns. Decode those of the window, without what is before and after.
    first, last = left * height, (left + columns) * height
    lengths = np.diff(np.clip(ends, first, last), prepend=first)
    strip = np.repeat(np.arange(len(runs)) % 2 == 1, lengths).reshape(columns, height)
    window = strip[:, top : top + rows]
    window &= ~_eroded(window, boundary_width(height, width))
    flat = strip.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1 + first
    # The first run is of zeros, if need be of none; the window's last pixel may be set.
    edges = [0, *([first] if flat[0] else []), *changes.tolist()]
    edges += [last] if flat[-1] else []
    edges += [height * width] if edges[-1] < height * width else []
    counts = np.diff(edges).tolist()
    return rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """Where a bool [h, w] mask and all pixels around it up to `distance` away are set.

    All around the mask are zeros.
    """
    result = np.zeros_like(mask)
    length = 2 * distance + 1
    if min(mask.shape) >= length:
        inside = _all_in_a_row(_all_in_a_row(mask, length).T, length).T
        result[distance:-distance, distance:-distance] = inside
    return result


def _all_in_a_row(mask: np.ndarray, length: int) -> np.ndarray:
    """[n, m] to [n - length + 1, m]: whether `length` pixels from each on along axis 0 are set."""
    done = 1
    while done < length:
        step = min(done, length - done)
        mask = mask[:-step] & mask[step:]
        done += step
    return mask
