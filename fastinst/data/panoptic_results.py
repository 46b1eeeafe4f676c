"""Segmentations in the COCO panoptic results format, which Cityscapes' evaluation reads too.

Format: https://cocodataset.org/#format-results
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from fastinst.data.id_maps import colours_of_ids
from fastinst.files import make_output_folder, write_whole
from fastinst.segments import SegmentMap


class PanopticResults:
    """Writes segmentations in the COCO panoptic results format, image by image.

    json_path: what `finish` writes; the PNGs go to the folder of the same name without .json
    category_ids: by label
    """

    def __init__(self, json_path: str | Path, category_ids: Sequence[int]):
        self.json_path, self.category_ids = Path(json_path), tuple(category_ids)
        self.folder = make_output_folder(self.json_path.with_suffix(""))
        self.annotations: list[dict] = []

    def add(self, image_id: int | str, found: SegmentMap) -> None:
        """Write the PNG of one more image. Raises InputError if that cannot be done."""
        name = f"{image_id:012}.png" if isinstance(image_id, int) else f"{image_id}.png"
        written = write_segments(self.folder, name, found, self.category_ids)
        self.annotations.append({"image_id": image_id} | written)

    def finish(self) -> None:
        """Write the JSON; of several processes, which all call this, the first one writes it.

        Raises InputError if that cannot be done.
        """
        if dist.is_initialized():
            rank = dist.get_rank()
            parts = [None] * dist.get_world_size() if rank == 0 else None
            dist.gather_object(self.annotations, parts)
            if rank > 0:
                return
            self.annotations = [annotation for part in parts for annotation in part]
        with write_whole(self.json_path) as file:
            file.write(json.dumps({"annotations": self.annotations}).encode())


def write_segments(
    folder: Path, name: str, found: SegmentMap, category_ids: Sequence[int]
) -> dict[str, Any]:
    """Write folder/name, a PNG of ids, and return what an annotation says of it.

    category_ids: by label
    Raises InputError if it cannot be written.
    """
    ids = found.ids.cpu().numpy()
    with write_whole(folder / name) as file:
        colours_of_ids(ids).save(file, "PNG")
    areas = dict(zip(*(x.tolist() for x in np.unique(ids, return_counts=True)), strict=True))
    segments = [
        {
            "id": segment.id,
            "category_id": category_ids[segment.label],
            "iscrowd": int(segment.iscrowd),
            "area": areas.get(segment.id, 0),
        }
        for segment in found.segments
    ]
    return {"file_name": name, "segments_info": segments}
