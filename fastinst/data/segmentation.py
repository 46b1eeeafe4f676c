"""Checks of COCO segmentations: polygons and run-length encodings (RLE)."""

import math
from itertools import chain

import numpy as np
from pycocotools import mask as mask_utils

OUTSIDE = "it lies outside the image"
FAR = "a point lies far outside the image"
NO_AREA = "its area is zero"
# Why a well-formed segmentation is left out: it has no mask, and the evaluation misses it.
INVISIBLE = (OUTSIDE, FAR, NO_AREA)


def check_segmentations(
    annotations: list[dict], sizes: list[tuple[int, int]]
) -> list[list[np.ndarray] | dict | str]:
    """Per annotation its polygons or RLE, or the reason why it has none.

    All polygons are measured in one go, since COCO has a million of them, and are kept as slices
    of one array, a quarter of the memory that lists of floats take.
    """
    result, parts, owners = [], [], []
    for i, annotation in enumerate(annotations):
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            result.append(_checked_rle(segmentation, sizes[i]))
        elif not isinstance(segmentation, list) or not segmentation:
            result.append("it has no segmentation")
        else:
            reasons = [_polygon_fault(part) for part in segmentation]
            kept = [part for part, reason in zip(segmentation, reasons, strict=True) if not reason]
            parts += kept
            owners += [i] * len(kept)
            result.append(reasons[0])  # replaced below if any part is good
    if not parts:
        return result

    lengths = np.array([len(part) for part in parts])
    ends = np.cumsum(lengths)
    flat = np.fromiter(chain.from_iterable(parts), np.float64, ends[-1])
    x, y = flat[0::2], flat[1::2]
    starts = (ends - lengths) // 2
    following = np.arange(1, len(x) + 1)
    following[ends // 2 - 1] = starts
    with np.errstate(over="ignore", invalid="ignore"):  # far points, which are dropped below
        area = np.add.reduceat(x * y[following] - y * x[following], starts)
    height, width = np.array([sizes[i] for i in owners]).T
    left, right = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    top, bottom = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    outside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    # pycocotools walks along every edge: it would run out of memory on the way to a far point.
    reach = 10 * np.maximum(height, width)
    far = (np.minimum(left, top) < -reach) | (np.maximum(right, bottom) > reach)
    flat_or_line = np.abs(area) < 1e-6
    suspects = (outside | far | flat_or_line).tolist()
    for k, (i, suspect) in enumerate(zip(owners, suspects, strict=True)):
        polygon = flat[ends[k] - lengths[k] : ends[k]]
        fault = ""
        if suspect:
            if outside[k]:
                fault = OUTSIDE
            elif far[k]:
                fault = FAR
            elif not _covers_a_pixel(polygon, sizes[i]):
                fault = NO_AREA
        if isinstance(result[i], str):
            result[i] = fault or [polygon]
        elif not fault:
            result[i].append(polygon)
    return result


def _polygon_fault(part: object) -> str:
    if not isinstance(part, list):
        return "its segmentation is not a list of polygons"
    if part and isinstance(part[0], list):
        return "its polygon is a list of points, and COCO's is x0, y0, x1, y1, ..."
    if len(part) < 6:
        return "its polygon has fewer than 3 points"
    if len(part) % 2:
        return "its polygon has an odd number of coordinates"
    try:
        return "" if math.isfinite(sum(part)) else "its polygon has a coordinate that is not finite"
    except (TypeError, OverflowError):
        return "its polygon has a coordinate that is not a number"


def _covers_a_pixel(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    """Settles a signed area of zero, which a figure of eight can have too."""
    return mask_utils.area(mask_utils.frPyObjects([polygon], *size)).any()


def _checked_rle(rle: dict, size: tuple[int, int]) -> dict | str:
    if rle.get("size") != list(size):
        return f"its RLE has the size {rle.get('size')}, its image {list(size)}"
    try:
        runs = run_lengths(rle.get("counts"))
    except (ValueError, TypeError, OverflowError) as error:
        return f"its RLE is corrupt: {error}"
    pixels = size[0] * size[1]
    if runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        return "its RLE is corrupt: its runs do not add up to the image"
    return {"size": list(size), "counts": rle["counts"]} if runs[1::2].any() else NO_AREA


def run_lengths(counts: object) -> np.ndarray:
    """Run lengths of an RLE. pycocotools trusts the string and reads past the end of a bad one.

    Each number is a group of 5-bit digits, the lowest first, with a flag for "more" (32) and the
    sign in the last one's bit 16; from the fourth on, numbers are differences to the last but one.
    Raises ValueError, TypeError or OverflowError for what is no such string or list.
    """
    if isinstance(counts, list):
        if not counts or not set(map(type, counts)) <= {int}:
            raise TypeError("its counts are not integers")
        return np.array(counts, np.int64)
    if not isinstance(counts, str) or not counts:
        raise TypeError("it has no counts")
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("its counts are not an RLE string")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > 7:
        raise ValueError("a run of more than 32 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= ((codes[ends - 1] & 16) > 0) * (1 << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
