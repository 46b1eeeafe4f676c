"""A data set of images with instance masks, whatever format its files have."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils


@dataclass(frozen=True, eq=False, slots=True)
class Annotation:
    """One object, or one crowd region, of an image.

    label: contiguous class index
    segmentation: a list of polygons (float64 arrays x0, y0, x1, y1, ... in pixels; plain lists do
        too), of which the object is the union, or an RLE dict, compressed or not
    """

    id: int
    label: int
    segmentation: list[np.ndarray] | dict
    iscrowd: bool

    def mask(self, height: int, width: int) -> np.ndarray:
        """bool [height, width], the size being the image's."""
        rle = self.segmentation
        if isinstance(rle, list):
            rle = mask_utils.merge(mask_utils.frPyObjects(rle, height, width))
        elif isinstance(rle["counts"], list):
            rle = mask_utils.frPyObjects(rle, height, width)
        return np.ascontiguousarray(mask_utils.decode(rle).view(bool))


@dataclass(frozen=True, eq=False, slots=True)
class ImageRecord:
    """One image of a data set; height and width as its annotations give them."""

    id: int
    path: Path
    height: int
    width: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their checked annotations.

    source: the file or folder that the annotations are read from
    class_names, category_ids: by label; the ids are the format's own
    skipped: one line per annotation that was left out, which names it, its image and the reason
    """

    source: Path
    image_folder: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)
