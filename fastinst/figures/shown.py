"""An image of a figure at the size at which it is shown, with its ground truth where known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastinst.data.dataset import ImageRecord
from fastinst.data.images import read_image
from fastinst.figures.sheet import Cell
from fastinst.results import Instances
from fastinst.visualize import fitted, ground_truth_instances, overlay


@dataclass(frozen=True, eq=False)
class Shown:
    """name: of its file
    image: uint8 [H, W, 3] as it was read
    picture: uint8 [h, w, 3], the same at the size at which it is shown
    record: its annotations; None if they are unknown
    objects: those at the size of the picture
    class_names: of them
    """

    name: str
    image: np.ndarray
    picture: np.ndarray
    record: ImageRecord | None
    objects: Instances
    class_names: Sequence[str]

    @classmethod
    def read(
        cls,
        path: Path,
        size: int,
        record: ImageRecord | None = None,
        class_names: Sequence[str] = (),
    ) -> "Shown":
        """size: of the picture's longer edge, in pixels

        Raises InputError for an image that cannot be read.
        """
        image = read_image(path, (record.height, record.width) if record else None)
        if record:
            objects = ground_truth_instances(record)
        else:
            nothing = torch.zeros(0, *image.shape[:2], dtype=torch.bool)
            objects = Instances.from_masks(torch.zeros(0), torch.zeros(0), nothing)
        picture, objects = fitted(image, objects, size)
        return cls(path.name, image, picture, record, objects, class_names)

    @property
    def heading(self) -> str:
        """What is in its cell."""
        return "ground truth" if self.record else "image"

    def cell(self) -> Cell:
        """The picture, with the ground truth drawn over it."""
        if self.record is None:
            return Cell(self.picture, self.name)
        drawn = overlay(self.picture, self.objects, self.class_names, show_scores=False)
        return Cell(drawn, f"{self.name}, {len(self.objects)} objects")
