"""All objects of a data set as columns of numbers, measured without drawing a mask."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from pycocotools import mask as mask_utils

from fastinst.data.augment import shortest_edge_size
from fastinst.data.dataset import Annotation, Dataset


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """The annotations of a data set in its order, crowds included.

    annotations: [N]
    image: int64 [N], which of the data set's images
    label: int64 [N]
    crowd: bool [N]
    area: float64 [N] in pixels of the image as stored; of polygons the sum over the parts, with
        what lies outside the image
    box: float64 [N, 4], left, top, right, bottom in these pixels, outside the image as well
    """

    annotations: list[Annotation]
    image: np.ndarray
    label: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    box: np.ndarray

    def areas_at(self, dataset: Dataset, short_edge: int, max_edge: int) -> np.ndarray:
        """float64 [N], areas once the images are resized to these edges."""
        scales = [
            shortest_edge_size(record.height, record.width, short_edge, max_edge)[0] / record.height
            for record in dataset.images
        ]
        return self.area * np.array(scales)[self.image] ** 2

    def per_image(self, dataset: Dataset) -> np.ndarray:
        """int64 [number of images], objects that are no crowds."""
        return np.bincount(self.image[~self.crowd], minlength=len(dataset.images))


def measure_objects(dataset: Dataset) -> ObjectTable:
    """Areas and boxes of all annotations; COCO's 860,000 take some seconds."""
    annotations = [a for record in dataset.images for a in record.annotations]
    counts = [len(record.annotations) for record in dataset.images]
    shapes = [a.segmentation for a in annotations]
    area, box = np.zeros(len(shapes)), np.zeros((len(shapes), 4))
    # An object may be an empty list of polygons: nothing, which 0 says well.
    polygons = [i for i, shape in enumerate(shapes) if isinstance(shape, list) and shape]
    if polygons:
        area[polygons], box[polygons] = _measure_polygons([shapes[i] for i in polygons])
    rles = [i for i, shape in enumerate(shapes) if isinstance(shape, dict)]
    if rles:
        encoded = [
            mask_utils.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
            for rle in (shapes[i] for i in rles)
        ]
        left, top, width, height = mask_utils.toBbox(encoded).T
        area[rles] = [mask_utils.area(rle) for rle in encoded]  # a list of 256 overflows in it
        box[rles] = np.stack([left, top, left + width, top + height], axis=1)
    return ObjectTable(
        annotations,
        np.repeat(np.arange(len(counts)), counts),
        np.array([a.label for a in annotations], np.int64),
        np.array([a.iscrowd for a in annotations], bool),
        area,
        box,
    )


def _measure_polygons(objects: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Areas [N] and boxes [N, 4] of objects, each of one polygon or several."""
    parts = [np.asarray(part, float) for part in chain.from_iterable(objects)]
    x, y = np.concatenate(parts).reshape(-1, 2).T
    ends = np.cumsum([len(part) // 2 for part in parts])
    starts = np.concatenate(([0], ends[:-1]))
    following = np.arange(1, len(x) + 1)
    following[ends - 1] = starts
    doubled = np.add.reduceat(x * y[following] - y * x[following], starts)

    first = np.cumsum([0] + [len(polygons) for polygons in objects[:-1]])
    sides = [
        extreme.reduceat(extreme.reduceat(values, starts), first)
        for extreme, values in ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))
    ]
    return np.add.reduceat(np.abs(doubled) / 2, first), np.stack(sides, axis=1)
