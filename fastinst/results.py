"""From a model's outputs to instances at the original image size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from fastinst import ops
from fastinst.data.dataset import names_of
from fastinst.ops.read_out_masks import mask_boxes
from fastinst.outlines import trace_outlines

# Mask logits lie on p3's grid.
MASK_STRIDE = 8


@dataclass(eq=False, repr=False)
class Instances:
    """The instances found in one image, best first.

    Masks are held as bits, an eighth of the bytes; `masks` unpacks them.

    scores: [N] float, class probability times the mean mask probability inside the mask
    labels: [N] int64, contiguous class index
    boxes:  [N, 4] float, (left, top, right, bottom) of the masks in pixels, right and bottom
            exclusive; zeros for an empty mask
    packed: [N, H, ceil(W / 32)] int32, the masks' bits as `ops.pack_bits` orders them
    size:   (H, W) of the image
    class_names: by label; None if they are unknown
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    packed: Tensor
    size: tuple[int, int]
    class_names: tuple[str, ...] | None = None

    @classmethod
    def from_masks(
        cls,
        scores: Tensor,
        labels: Tensor,
        masks: Tensor,
        class_names: tuple[str, ...] | None = None,
    ) -> "Instances":
        """Instances of [N, H, W] bool masks, with the masks' boxes."""
        boxes = mask_boxes(masks).to(torch.promote_types(scores.dtype, torch.float32))
        size = (masks.shape[1], masks.shape[2])
        return cls(scores, labels, boxes, ops.pack_bits(masks), size, class_names)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Tensor | slice | int) -> "Instances":
        """Those instances that a boolean mask, an index tensor, a slice or a number picks.

        Raises IndexError for a number out of range.
        """
        if isinstance(keep, Integral):
            place = range(len(self))[keep]
            keep = slice(place, place + 1)
        elif isinstance(keep, Tensor) and keep.dim() == 0:
            keep = keep.unsqueeze(0)
        rows = (self.scores[keep], self.labels[keep], self.boxes[keep], self.packed[keep])
        return Instances(*rows, self.size, self.class_names)

    def __iter__(self) -> "Iterator[Instances]":
        """Each instance on its own, as Instances of length 1."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        found = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        height, width = self.size
        return f"<{len(self)} Instances in {width} x {height} pixels: {', '.join(found)}>"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Instances":
        moved = (tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors)
        return Instances(*moved, self.size, self.class_names)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that lies on a device."""
        return self.scores, self.labels, self.boxes, self.packed

    @property
    def masks(self) -> Tensor:
        """[N, H, W] bool, unpacked anew each time."""
        return ops.unpack_bits(self.packed, self.size[1])

    @property
    def names(self) -> list[str]:
        """Of the class of each; "class 1" is label 0 where class names are unknown."""
        return names_of(self.labels.tolist(), self.class_names)

    def rle(self) -> list[dict]:
        """COCO's run-length encoding of each mask: {"size": [H, W], "counts": bytes}.

        Those of pycocotools, byte by byte; JSON wants `counts.decode()`.
        """
        return ops.encode_masks(self.packed, self.size[1])

    def polygons(self) -> list[list[np.ndarray]]:
        """The exact outlines of each mask, along the edges of its pixels.

        Of each instance a list of closed rings, [M, 2] int64 (x, y) of the pixels' corners where
        the outline turns, x in 0..W and y in 0..H. With y downwards outer rings go clockwise and
        holes anticlockwise; pixels that share only a corner are apart. Filling by the even-odd
        or the non-zero rule gives the mask back. (COCO's polygons cannot have holes.)
        """
        return [trace_outlines(mask) for mask in self.masks.cpu().numpy()]

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict]:
        """These instances in the COCO results format, ready for JSON.

        Those with an empty mask are left out: their score is 0, so they come after everything
        else, match nothing, and change no AP or AR.
        No "bbox": with one, pycocotools would sort results into small, medium and large by the
        area of the box instead of that of the mask.

        category_ids: by label
        """
        rows = zip(self.scores.tolist(), self.labels.tolist(), self.rle(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                "score": score,
            }
            for score, label, code in rows
            if rle.area(code) > 0
        ]


def postprocess(
    outputs: dict[str, Tensor],
    image_sizes: list[tuple[int, int]],
    output_sizes: list[tuple[int, int]],
    max_instances: int = 100,
    threshold: float = 0.0,
    class_names: tuple[str, ...] | None = None,
) -> list[Instances]:
    """The best (query, class) pairs of each image, with masks at the original size.

    A score is the class probability, over K + 1 classes, times the mean mask probability inside
    the mask; an empty mask scores 0. A query may appear with several classes.

    With a threshold of 0 all shapes are known beforehand, and nothing waits for a GPU. One above
    0 has to wait, to know how many instances there are; in return only masks that can reach it
    are read out.

    Args:
        outputs: what the model returned for a batch
        image_sizes: (height, width) of the images in the batch, as `preprocess` returns them
        output_sizes: (height, width) of the masks to return, usually of the original images
        max_instances: per image
        threshold: instances with lower scores are left out
        class_names: by label, for the instances to carry

    Raises:
        ValueError: lists of different lengths, or sizes that do not fit.
    """
    logits, masks = outputs["pred_logits"], outputs["pred_masks"]
    if not len(logits) == len(image_sizes) == len(output_sizes):
        raise ValueError(
            f"{len(logits)} images but {len(image_sizes)} image_sizes "
            f"and {len(output_sizes)} output_sizes"
        )
    exact = torch.promote_types(logits.dtype, torch.float32)
    padded_size = (masks.shape[2] * MASK_STRIDE, masks.shape[3] * MASK_STRIDE)
    results = []
    for image, sizes in enumerate(zip(image_sizes, output_sizes, strict=True)):
        probability = logits[image].to(exact).softmax(-1)[:, :-1]  # [Q, K]
        top, pairs = probability.flatten().topk(min(max_instances, probability.numel()))
        if threshold > 0:
            # A mask can only lower the score.
            top = top[: int((top >= threshold).sum())]
            pairs = pairs[: len(top)]
        labels = pairs % probability.shape[1]
        pair_query = pairs // probability.shape[1]
        # A query that is picked for several classes has one mask. Where there are more pairs than
        # queries, reading out every query's mask once is less work than every pair's, and unlike
        # just the picked queries their number is known.
        shared = len(pairs) > len(probability)
        chosen = masks[image] if shared else masks[image, pair_query]
        read = ops.read_out_masks(chosen, padded_size, *map(tuple, sizes), packed=True)
        scores = top * (read.scores[pair_query] if shared else read.scores)
        scores, order = scores.sort(descending=True, stable=True)
        row = pair_query[order] if shared else order
        boxes = read.boxes[row].to(exact)
        found = Instances(
            scores, labels[order], boxes, read.masks[row], tuple(sizes[1]), class_names
        )
        results.append(found[: int((scores >= threshold).sum())] if threshold > 0 else found)
    return results
