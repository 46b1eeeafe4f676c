"""What is compared in one image: the objects that are there, and those that were found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as rle

from fastinst.data.dataset import Annotation, ImageRecord


@dataclass(frozen=True, eq=False, slots=True)
class Truth:
    """The annotations of an image.

    labels: [G] int64
    codes: G compressed run-length codes of the image's size
    boxes: [G, 4] float64 (left, top, width, height) in pixels; those that the file gives, else the
        extent of the polygons, or of the mask if it is given as a run-length code
    areas: [G] float64, pixels; those that the file gives, else those of the masks
    crowd: [G] bool
    """

    labels: np.ndarray
    codes: list[dict]
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """The results of an image, in any order.

    labels: [D] int64
    scores: [D] float64
    codes: D compressed run-length codes; None if they are boxes alone
    boxes: [D, 4] float64 (left, top, width, height) in pixels
    areas: [D] float64, pixels, by which results are small, medium or large
    """

    labels: np.ndarray
    scores: np.ndarray
    codes: list[dict] | None
    boxes: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, keep: np.ndarray) -> "Found":
        """Those of an array of indices, in its order."""
        codes = None if self.codes is None else [self.codes[i] for i in keep]
        return Found(
            self.labels[keep], self.scores[keep], codes, self.boxes[keep], self.areas[keep]
        )


def ground_truth(record: ImageRecord) -> Truth:
    """The annotations of an image as pycocotools takes them.

    One that covers no pixel is one that nothing can match; pycocotools counts it as missed, and
    so it counts here.
    """
    size = (record.height, record.width)
    annotations = record.annotations + record.invisible
    codes = [annotation.rle(*size) for annotation in annotations]
    # COCO's areas are those of the polygons, a little different from the masks'.
    areas = [
        rle.area(code) if annotation.area is None else annotation.area
        for annotation, code in zip(annotations, codes, strict=True)
    ]
    boxes = [_box(annotation, code) for annotation, code in zip(annotations, codes, strict=True)]
    return Truth(
        np.array([annotation.label for annotation in annotations], np.int64),
        codes,
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(areas, np.float64),
        np.array([annotation.iscrowd for annotation in annotations], bool),
    )


def _box(annotation: Annotation, code: dict) -> Sequence[float]:
    if annotation.box is not None:
        return annotation.box
    if isinstance(annotation.segmentation, dict) or not annotation.segmentation:
        return rle.toBbox(code)
    corners = np.concatenate([np.reshape(part, (-1, 2)) for part in annotation.segmentation])
    start = corners.min(axis=0)
    return np.concatenate([start, corners.max(axis=0) - start])


def found_regions(results: Sequence[Mapping], labels: Mapping[int, int]) -> Found:
    """Results of one image in the COCO results format.

    As for pycocotools, one with a box has its area, and otherwise that of its mask.

    results: all of them with "segmentation", a run-length code, or with "bbox", or with both
    labels: by category id
    """
    codes = [result["segmentation"] for result in results if "segmentation" in result]
    if results and "bbox" in results[0]:
        boxes = np.array([result["bbox"] for result in results], np.float64)
        areas = boxes[:, 2] * boxes[:, 3]
    else:
        boxes = np.reshape(rle.toBbox(codes), (-1, 4)) if codes else np.zeros((0, 4))
        # One by one: given more than 255, pycocotools 2.0 fails with NumPy 2.
        areas = np.array([rle.area(code) for code in codes], np.float64)
    return Found(
        np.array([labels[result["category_id"]] for result in results], np.int64),
        np.array([result["score"] for result in results], np.float64),
        codes if len(codes) == len(results) else None,
        boxes,
        areas,
    )
