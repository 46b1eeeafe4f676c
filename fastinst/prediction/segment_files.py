"""Panoptic and semantic segmentation as predict.py writes and draws them."""

from pathlib import Path
from typing import Any

import numpy as np

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.panoptic_results import write_segments
from fastinst.data.semantic_results import check_category_ids, write_categories
from fastinst.files import make_output_folder
from fastinst.prediction.classes import Classes, things_of
from fastinst.segment_pictures import overlay_segments
from fastinst.segments import SegmentMap


class PanopticFiles:
    """COCO's panoptic format: a PNG of ids for each image beside predictions.json, which with them
    opens as a data set.

    folder: of the PNGs
    noun, categories: as of `InstanceFiles`
    """

    noun = "segments"

    def __init__(self, folder: Path, classes: Classes, truth: Dataset | None):
        self.folder, self.classes, self.truth = make_output_folder(folder), classes, truth
        rows = zip(classes.category_ids, classes.names, classes.is_thing, strict=True)
        self.categories = [
            {"id": id_, "name": name, "isthing": int(thing)} for id_, name, thing in rows
        ]

    def write(self, name: str, found: SegmentMap) -> tuple[list[dict[str, Any]], int]:
        """Write NAME.png; then as of `InstanceFiles`. Raises InputError if that cannot be done."""
        png = self._png(name)
        return [write_segments(self.folder, png, found, self.classes.category_ids)], len(found)

    def draw(self, pixels: np.ndarray, found: SegmentMap, in_video: bool) -> np.ndarray:
        """uint8 [H, W, 3], on the image's own."""
        names, _, is_thing = self.classes
        return overlay_segments(pixels, found, names, is_thing, colour_classes=in_video)

    def draw_truth(self, pixels: np.ndarray, record: ImageRecord) -> np.ndarray:
        """The same of the image's annotations."""
        classes = self.truth.class_names, things_of(self.truth)
        return overlay_segments(pixels, SegmentMap.of(record), *classes, show_scores=False)

    def _png(self, name: str) -> str:
        """Of this name, which may begin with that of a folder."""
        make_output_folder((self.folder / name).parent)
        return f"{name}.png"


class SemanticFiles(PanopticFiles):
    """A PNG of category ids for each image beside predictions.json, which names the categories.

    Raises InputError for category ids that no PNG holds.
    """

    noun = "regions"

    def __init__(self, folder: Path, classes: Classes, truth: Dataset | None):
        check_category_ids(classes.category_ids)
        super().__init__(folder, classes, truth)

    def write(self, name: str, found: SegmentMap) -> tuple[list[dict[str, Any]], int]:
        png = self._png(name)
        write_categories(self.folder / png, found, self.classes.category_ids)
        return [{"file_name": png}], len(found)

    def draw(self, pixels: np.ndarray, found: SegmentMap, in_video: bool) -> np.ndarray:
        return _draw_classes(pixels, found, self.classes.names, self.classes.is_thing)

    def draw_truth(self, pixels: np.ndarray, record: ImageRecord) -> np.ndarray:
        found = SegmentMap.of(record).by_class()
        return _draw_classes(pixels, found, self.truth.class_names, things_of(self.truth))


def _draw_classes(pixels, found, names, is_thing) -> np.ndarray:
    """A class has one colour, and no score."""
    return overlay_segments(pixels, found, names, is_thing, show_scores=False, colour_classes=True)
