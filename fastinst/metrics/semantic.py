"""Semantic segmentation's mean intersection over union (PASCAL VOC's; Cityscapes' too)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastinst.segments import VOID_LABEL


class SemanticEvaluator:
    """Counts over images how many pixels of each class were taken for each class.

    class_names: by label
    confusion: [K, K + 1] int64, pixels by the ground truth's label and the predicted one, the
        last for VOID_LABEL
    """

    def __init__(self, class_names: Sequence[str]):
        if len(class_names) > VOID_LABEL:
            raise ValueError(f"at most {VOID_LABEL} classes, got {len(class_names)}")
        self.class_names = tuple(class_names)
        self.confusion = np.zeros((len(class_names), len(class_names) + 1), np.int64)
        self.images = 0

    def update(self, truth: Tensor, found: Tensor) -> None:
        """Take one more image: [H, W] labels, or VOID_LABEL. Void in the ground truth does not
        count; in the prediction it is wrong.

        Raises ValueError for maps of different sizes and for other labels.
        """
        if truth.shape != found.shape:
            raise ValueError(f"a map of {tuple(found.shape)} for truth of {tuple(truth.shape)}")
        count = len(self.class_names)
        table = torch.full((VOID_LABEL + 1,), -1, device=truth.device)
        table[:count] = torch.arange(count, device=truth.device)
        table[VOID_LABEL] = count
        truth, found = table[truth.long()], table[found.to(truth.device).long()]
        if min(int(truth.min()), int(found.min())) < 0:
            raise ValueError(f"a label that is neither below {count} nor {VOID_LABEL}")
        pairs = (truth * (count + 1) + found)[truth < count]
        counts = torch.bincount(pairs, minlength=self.confusion.size)
        self.confusion += counts.view(count, count + 1).cpu().numpy()
        self.images += 1

    def gather(self) -> None:
        """Give rank 0 the counts of all processes; without torch.distributed do nothing."""
        if dist.is_initialized():
            rank = dist.get_rank()
            parts = [None] * dist.get_world_size() if rank == 0 else None
            dist.gather_object((self.confusion, self.images), parts)
            if rank == 0:
                self.confusion = sum(confusion for confusion, _ in parts)
                self.images = sum(images for _, images in parts)

    def summarize(self) -> dict:
        """The numbers in percent.

        Returns a dict with
            mIoU: mean over the classes that are in the ground truth or were found
            accuracy: of the pixels
            per_class: {class name: IoU}
            images: how many took part
        A number without anything to compute it from is nan.
        """
        right = self.confusion.diagonal()
        there, found = self.confusion.sum(axis=1), self.confusion[:, :-1].sum(axis=0)
        with np.errstate(invalid="ignore"):
            iou = 100 * right / (there + found - right)
            accuracy = 100 * right.sum() / there.sum()
        counting = iou[~np.isnan(iou)]
        return {
            "mIoU": float(counting.mean()) if len(counting) else math.nan,
            "accuracy": float(accuracy),
            "per_class": dict(zip(self.class_names, iou.tolist(), strict=True)),
            "images": self.images,
        }


def format_semantic(summary: dict) -> str:
    """`SemanticEvaluator.summarize`'s numbers as text: overall, then a line for each class."""
    width = max(map(len, summary["per_class"]))
    lines = [
        f"mIoU {_number(summary['mIoU'])}  pixel accuracy {_number(summary['accuracy'])}  "
        f"({summary['images']} images)"
    ]
    lines += [f"{name:<{width}} {_number(iou):>6}" for name, iou in summary["per_class"].items()]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
