"""The objects of an image as a few arrays, which a view moves all at once."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils

from fastinst.data.dataset import Annotation


class Objects:
    """The annotations of one image other than crowds, in their order.

    labels: int64 [N]
    boxes: float64 [N, 2, 2], the (left, top) and (right, bottom) of each object in pixels
    points: float64 [P, 2], (x, y) of the corners of all polygons, one after the other
    polygons: per object the (first, end) points of its polygons; none if it is an RLE
    rles: {object: compressed RLE of the image's size}
    """

    __slots__ = ("boxes", "labels", "points", "polygons", "rles")

    def __init__(self, annotations: Sequence[Annotation]):
        annotations = [annotation for annotation in annotations if not annotation.iscrowd]
        self.labels = np.array([annotation.label for annotation in annotations], np.int64)
        self.boxes = np.zeros((len(annotations), 2, 2))
        self.polygons, self.rles = [], {}
        points, end = [np.zeros((0, 2))], 0
        for i, annotation in enumerate(annotations):
            spans = []
            if isinstance(annotation.segmentation, dict):
                self.rles[i] = annotation.rle(*annotation.segmentation["size"])
                left, top, width, height = mask_utils.toBbox(self.rles[i])
                self.boxes[i] = (left, top), (left + width, top + height)
            elif annotation.segmentation:
                parts = [np.reshape(part, (-1, 2)) for part in annotation.segmentation]
                corners = np.concatenate(parts)
                self.boxes[i] = corners.min(axis=0), corners.max(axis=0)
                points.append(corners)
                for part in parts:
                    spans.append((end, end := end + len(part)))
            self.polygons.append(spans)
        self.points = np.concatenate(points)

    def __len__(self) -> int:
        return len(self.labels)
