"""A data set of images with instance masks, whatever format its files have."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from fastinst.errors import InputError

# What is learnt: objects; objects and stuff, apart; or what class each pixel has.
TASKS = ("instance", "panoptic", "semantic")


class MissingSplit(InputError):
    """A data set is there, but without the wanted split; the message says what was looked for."""


@dataclass(frozen=True, eq=False, slots=True)
class Annotation:
    """One object, or one crowd region, of an image.

    label: contiguous class index
    segmentation: a list of polygons (float64 arrays x0, y0, x1, y1, ... in pixels; plain lists do
        too), of which the object is the union and of which there may be none, or an RLE dict,
        compressed or not
    area: in pixels, as the file gives it; None if it gives none
    box: (left, top, width, height) in pixels, likewise; box AP is measured by it, and
        nothing is learnt from it
    """

    id: int
    label: int
    segmentation: list[np.ndarray] | dict
    iscrowd: bool
    area: float | None = None
    box: tuple[float, float, float, float] | None = None

    def rle(self, height: int, width: int) -> dict:
        """The compressed run-length code of the mask, the size being the image's."""
        if not self.segmentation:
            nothing = {"size": [height, width], "counts": [height * width]}
            return mask_utils.frPyObjects(nothing, height, width)
        if isinstance(self.segmentation, list):
            return mask_utils.merge(mask_utils.frPyObjects(self.segmentation, height, width))
        if isinstance(self.segmentation["counts"], list):
            return mask_utils.frPyObjects(self.segmentation, height, width)
        return self.segmentation

    def mask(self, height: int, width: int) -> np.ndarray:
        """bool [height, width], the size being the image's."""
        return np.ascontiguousarray(mask_utils.decode(self.rle(height, width)).view(bool))


@dataclass(frozen=True, eq=False, slots=True)
class ImageRecord:
    """One image of a data set; height and width as its annotations give them.

    invisible: annotations that are well-formed but cover no pixel. Nothing can be learnt from
        them, and they are listed in the data set's `skipped`; the evaluation counts them as missed.
    """

    id: int
    path: Path
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    invisible: tuple[Annotation, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their checked annotations.

    source: the file or folder that the annotations are read from
    class_names, category_ids: by label; the ids are the format's own
    skipped: one line per annotation that was left out, which names it, its image and the reason
    is_thing: by label, whether its annotations are objects, not regions of stuff such as sky;
        None if all are
    """

    source: Path
    image_folder: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    skipped: tuple[str, ...]
    is_thing: tuple[bool, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)


def unique_names(names: dict[int, str]) -> tuple[str, ...]:
    """Class names by ascending category id; those of one name are told apart by it, since results
    are kept by name."""
    counts = Counter(names.values())
    return tuple(
        name if counts[name] == 1 else f"{name} ({id_})" for id_, name in sorted(names.items())
    )


def names_of(labels: Iterable[int], class_names: Sequence[str] | None) -> list[str]:
    """The class names of labels; "class 1" for label 0 where they are unknown."""
    if class_names is None:
        return [f"class {label + 1}" for label in labels]
    return [class_names[label] for label in labels]
