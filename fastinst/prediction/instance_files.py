"""Instances as predict.py writes and draws them."""

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.prediction.classes import Classes
from fastinst.results import Instances
from fastinst.visualize import ground_truth_instances, overlay


class InstanceFiles:
    """COCO results, with what makes them annotations too, so that they open as a data set.

    noun: what is counted
    categories: those of predictions.json
    """

    noun = "instances"

    def __init__(self, folder: Path, classes: Classes, truth: Dataset | None):
        self.classes, self.truth = classes, truth
        pairs = zip(classes.category_ids, classes.names, strict=True)
        self.categories = [{"id": id_, "name": name} for id_, name in pairs]

    def write(self, name: str, found: Instances) -> tuple[list[dict[str, Any]], int]:
        """An image's annotations, but for their ids and its own, and how many were found in it."""
        annotations = []
        for result in found.to_coco(0, self.classes.category_ids):
            code = result["segmentation"]
            area, box = int(rle.area(code)), rle.toBbox(code).tolist()
            annotations.append({**result, "bbox": box, "area": area, "iscrowd": 0})
        return annotations, len(annotations)

    def draw(self, pixels: np.ndarray, found: Instances, in_video: bool) -> np.ndarray:
        """uint8 [H, W, 3], on the image's own. In a video classes have their colours: nothing
        tells which instance of the next frame is the same."""
        return overlay(pixels, found, self.classes.names, colour_classes=in_video)

    def draw_truth(self, pixels: np.ndarray, record: ImageRecord) -> np.ndarray:
        """The same of the image's annotations."""
        objects = ground_truth_instances(record)
        return overlay(pixels, objects, self.truth.class_names, show_scores=False)
