"""Semantic segmentation as PNGs whose pixels are category ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastinst.errors import InputError
from fastinst.files import write_whole
from fastinst.segments import SegmentMap

LARGEST = 2**16 - 1


def check_category_ids(category_ids: Sequence[int]) -> None:
    """Raises InputError for ids that no pixel of such a PNG can have."""
    for id_ in category_ids:
        if not 0 <= id_ <= LARGEST:
            raise InputError(
                f"the category id {id_} is not from 0 to {LARGEST}, as pixels of a PNG are; number "
                "the data set's categories anew, or use --task panoptic"
            )


def write_categories(path: Path, found: SegmentMap, category_ids: Sequence[int]) -> None:
    """Write the category id of each pixel as a grey PNG of 8 bits, or 16 if ids are above 255.

    found: without void; category_ids: by label, see `check_category_ids`
    Raises InputError if it cannot be written.
    """
    ids = found.ids.cpu().numpy()
    table = np.zeros(1 + ids.max(), np.uint8 if max(category_ids) < 256 else np.uint16)
    for segment in found.segments:
        table[segment.id] = category_ids[segment.label]
    with write_whole(path) as file:
        Image.fromarray(table[ids]).save(file, "PNG")
