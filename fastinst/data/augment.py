"""Resizing, and the training augmentation: flip, crop, multi-scale.

The crop and both resizes of the release are done as one resize of a window of the image, and
polygons are moved as coordinates and filled at the final size, so nothing is interpolated twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from fastinst.data.dataset import Annotation


@dataclass(frozen=True)
class Augmentation:
    """Settings of `augment`; all lengths in pixels, the defaults being the release's.

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


def augment(
    image: np.ndarray,
    annotations: Sequence[Annotation],
    rng: np.random.Generator,
    settings: Augmentation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random view of a training image; it depends on nothing but the arguments.

    image: uint8 [H, W, 3]
    Returns image uint8 [h, w, 3], labels int64 [N], masks bool [N, h, w]. Crowds and objects of
    which no pixel is left are dropped, so N may be 0.
    """
    height, width = image.shape[:2]
    window = (0.0, 0.0, float(width), float(height))
    view_height, view_width = height, width
    if rng.random() < settings.crop_probability:
        scaled_height, scaled_width = shortest_edge_size(
            height, width, int(rng.choice(settings.crop_resize))
        )
        low, high = settings.crop_range
        view_height, view_width = (
            int(rng.integers(min(side, low), min(side, high), endpoint=True))
            for side in (scaled_height, scaled_width)
        )
        top = rng.integers(scaled_height - view_height, endpoint=True)
        left = rng.integers(scaled_width - view_width, endpoint=True)
        window = (
            left * width / scaled_width,
            top * height / scaled_height,
            min((left + view_width) * width / scaled_width, width),
            min((top + view_height) * height / scaled_height, height),
        )
    new_height, new_width = shortest_edge_size(
        view_height, view_width, int(rng.choice(settings.short_edges)), settings.max_edge
    )
    flip = bool(rng.random() < settings.flip_probability)

    view = Image.fromarray(image).resize(
        (new_width, new_height), Image.Resampling.BILINEAR, box=window
    )
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    targets = [annotation for annotation in annotations if not annotation.iscrowd]
    labels = np.array([annotation.label for annotation in targets], np.int64)
    masks = np.zeros((len(targets), new_height, new_width), bool)
    for annotation, mask in zip(targets, masks, strict=True):
        if isinstance(annotation.segmentation, list):
            _fill_polygons(mask, annotation.segmentation, window, flip)
        else:
            _sample_mask(mask, annotation.mask(height, width), window, flip)
    visible = masks.any(axis=(1, 2))
    if not visible.all():
        labels, masks = labels[visible], masks[visible]
    return np.array(view), labels, masks


def _fill_polygons(
    mask: np.ndarray,
    polygons: list[np.ndarray],
    window: tuple[float, float, float, float],
    flip: bool,
) -> None:
    """Fill `mask` [h, w], a view of `window` (left, top, right, bottom), from the polygons."""
    height, width = mask.shape
    left, top, right, bottom = window
    scale = np.array([width / (right - left), height / (bottom - top)])
    polygons = [(np.reshape(p, (-1, 2)) - (left, top)) * scale for p in polygons]
    if flip:
        polygons = [(width, 0) - p * (1, -1) for p in polygons]

    # Decoding costs as much as its window has pixels, and most objects are small.
    points = np.concatenate(polygons)
    x0, y0 = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(int)
    if x0 < x1 and y0 < y1:
        rles = mask_utils.frPyObjects(
            [(p - (x0, y0)).ravel() for p in polygons], int(y1 - y0), int(x1 - x0)
        )
        mask[y0:y1, x0:x1] = mask_utils.decode(mask_utils.merge(rles))


def _sample_mask(
    mask: np.ndarray, source: np.ndarray, window: tuple[float, float, float, float], flip: bool
) -> None:
    """Fill `mask` [h, w], a view of `window` of `source` [H, W], with the nearest pixels."""
    height, width = mask.shape
    left, top, right, bottom = window
    rows = (top + (np.arange(height) + 0.5) * (bottom - top) / height).astype(int)
    columns = (left + (np.arange(width) + 0.5) * (right - left) / width).astype(int)
    if flip:
        columns = columns[::-1]
    inside_rows = np.flatnonzero(source.any(axis=1)[rows])
    inside_columns = np.flatnonzero(source.any(axis=0)[columns])
    mask[np.ix_(inside_rows, inside_columns)] = source[
        np.ix_(rows[inside_rows], columns[inside_columns])
    ]
