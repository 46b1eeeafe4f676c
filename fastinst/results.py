"""From a model's outputs to instances at the original image size."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Instances:
    """The instances found in one image, best first.

    scores: [N] float, class probability times the mean mask probability inside the mask
    labels: [N] int64, contiguous class index
    masks:  [N, H, W] bool, at the original image size
    boxes:  [N, 4] float, (left, top, right, bottom) of the masks in pixels, right and bottom
            exclusive; zeros for an empty mask
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Tensor | slice) -> "Instances":
        """Those instances that a boolean mask, an index tensor or a slice picks."""
        return Instances(self.scores[keep], self.labels[keep], self.masks[keep], self.boxes[keep])

    def to(self, device: torch.device | str) -> "Instances":
        return Instances(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))
