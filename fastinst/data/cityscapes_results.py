"""Results in the formats of Cityscapes' evaluation and of its server.

Format: the heads of cityscapesscripts/evaluation/eval*.py in
https://github.com/mcordts/cityscapesScripts
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fastinst.data.cityscapes import frame_name
from fastinst.data.dataset import ImageRecord
from fastinst.data.panoptic_results import PanopticResults
from fastinst.files import make_output_folder, write_whole
from fastinst.results import Instances
from fastinst.segments import VOID_LABEL, SegmentMap


class CityscapesResults:
    """Writes the results of images to a folder, of which each task needs one of its own.

    folder: for results of "instance" *_pred.txt, naming masks in masks/; of "semantic"
        *_labelIds.png; of "panoptic" panoptic.json and panoptic/*.png
    category_ids: by label, those of Cityscapes
    """

    def __init__(self, folder: str | Path, task: str, category_ids: Sequence[int]):
        self.folder, self.task = make_output_folder(folder), task
        self.category_ids = tuple(category_ids)
        if task == "instance":
            make_output_folder(self.folder / "masks")
        if task == "panoptic":
            self.panoptic = PanopticResults(self.folder / "panoptic.json", category_ids)

    def add(self, record: ImageRecord, found: Instances | SegmentMap | Tensor) -> None:
        """Write what was found in one more image: Instances, a SegmentMap, or for the semantic
        task [H, W] labels or VOID_LABEL.

        Raises InputError if it cannot be written.
        """
        name = frame_name(record.path)
        if self.task == "instance":
            self._add_instances(name, found)
        elif self.task == "panoptic":
            self.panoptic.add(name, found)
        else:
            table = np.zeros(VOID_LABEL + 1, np.uint8)  # 0 is Cityscapes' "unlabeled"
            table[: len(self.category_ids)] = self.category_ids
            self._write(self.folder / f"{name}_labelIds.png", table[found.cpu().numpy()])

    def finish(self) -> None:
        """To be called after the last image, by all processes if there are several."""
        if self.task == "panoptic":
            self.panoptic.finish()

    def _add_instances(self, name: str, found: Instances) -> None:
        lines = []
        rows = zip(found.scores.tolist(), found.labels.tolist(), found, strict=True)
        for number, (score, label, instance) in enumerate(rows):
            (mask,) = instance.masks.cpu().numpy()
            if mask.any():
                mask_name = f"masks/{name}_{number:03}.png"
                self._write(self.folder / mask_name, mask)
                lines.append(f"{mask_name} {self.category_ids[label]} {score}\n")
        with write_whole(self.folder / f"{name}_pred.txt") as file:
            file.write("".join(lines).encode())

    def _write(self, path: Path, pixels: np.ndarray) -> None:
        with write_whole(path) as file:
            Image.fromarray(pixels).save(file, "PNG")
