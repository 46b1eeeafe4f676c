"""An image divided into segments that do not overlap, as panoptic segmentation has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastinst.data.dataset import ImageRecord

# Of the pixels without a class, in a map of labels.
VOID_LABEL = 255


class Segment(NamedTuple):
    """One object (of a thing class) or one region (of a stuff class).

    id: from 1, its value in the map
    label: contiguous class index
    iscrowd: a region of objects that nobody told apart, in ground truth alone
    score: of a prediction
    """

    id: int
    label: int
    iscrowd: bool = False
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """ids: [H, W] int32, of each pixel the id of its segment, or 0 for void"""

    ids: Tensor
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, record: ImageRecord) -> "SegmentMap":
        """Ground truth; the n-th annotation's id is n, and those that cover no pixel follow. Of
        annotations that overlap, the last wins."""
        annotations = (*record.annotations, *record.invisible)
        ids = np.zeros((record.height, record.width), np.int32)
        for id_, annotation in enumerate(record.annotations, start=1):
            ids[annotation.mask(*ids.shape)] = id_
        segments = tuple(
            Segment(id_, annotation.label, annotation.iscrowd)
            for id_, annotation in enumerate(annotations, start=1)
        )
        return cls(torch.from_numpy(ids), segments)

    def relabelled(self, labels: Sequence[int]) -> "SegmentMap":
        """With labels[k] in place of label k; segments for which that is -1 become void."""
        kept = [s._replace(label=labels[s.label]) for s in self.segments if labels[s.label] >= 0]
        dropped = [s.id for s in self.segments if labels[s.label] < 0]
        if not dropped:
            return SegmentMap(self.ids, tuple(kept))
        gone = torch.isin(self.ids, self.ids.new_tensor(dropped))
        return SegmentMap(self.ids.masked_fill(gone, 0), tuple(kept))

    def labels(self) -> Tensor:
        """[H, W] uint8, of each pixel the class, or VOID_LABEL."""
        table = torch.full((1 + max((s.id for s in self.segments), default=0),), VOID_LABEL)
        for segment in self.segments:
            table[segment.id] = segment.label
        return table.to(self.ids.device, torch.uint8)[self.ids.long()]
