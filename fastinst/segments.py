"""An image divided into segments that do not overlap, as panoptic segmentation has it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastinst.data.dataset import ImageRecord, names_of

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


@dataclass(frozen=True, eq=False, repr=False)
class SegmentMap:
    """An image's segments, and which of them each pixel belongs to.

    ids: [H, W] int32, of each pixel the id of its segment, or 0 for void
    class_names: by label; None if they are unknown
    """

    ids: Tensor
    segments: tuple[Segment, ...]
    class_names: tuple[str, ...] | None = None

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

    def __len__(self) -> int:
        return len(self.segments)

    def __repr__(self) -> str:
        height, width = self.size
        return f"<{len(self)} segments in {width} x {height} pixels: {', '.join(self.names)}>"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image"""
        return tuple(self.ids.shape)

    @property
    def names(self) -> list[str]:
        """Of the class of each segment; "class 1" is label 0 where class names are unknown."""
        return names_of((segment.label for segment in self.segments), self.class_names)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that lies on a device."""
        return (self.ids,)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SegmentMap":
        return replace(self, ids=self.ids.to(device, non_blocking=non_blocking))

    def by_class(self) -> "SegmentMap":
        """With all segments of a class joined to one, whose id is the label + 1."""
        table = torch.zeros(1 + max((s.id for s in self.segments), default=0), dtype=torch.int32)
        for segment in self.segments:
            table[segment.id] = segment.label + 1
        segments = (Segment(label + 1, label) for label in sorted({s.label for s in self.segments}))
        ids = table.to(self.ids.device)[self.ids.long()]
        return SegmentMap(ids, tuple(segments), self.class_names)

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
