"""From a model's outputs to instances at the original image size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastinst import ops

# Mask logits lie on p3's grid.
MASK_STRIDE = 8


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


def postprocess(
    outputs: dict[str, Tensor],
    image_sizes: list[tuple[int, int]],
    output_sizes: list[tuple[int, int]],
    max_instances: int = 100,
) -> list[Instances]:
    """The best (query, class) pairs of each image, with masks at the original size.

    A score is the class probability, over K + 1 classes, times the mean mask probability inside
    the mask; an empty mask scores 0. A query may appear with several classes.

    Args:
        outputs: what the model returned for a batch
        image_sizes: (height, width) of the images in the batch, as `preprocess` returns them
        output_sizes: (height, width) of the masks to return, usually of the original images
        max_instances: per image

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
        top = probability.flatten().topk(min(max_instances, probability.numel()))
        labels = top.indices % probability.shape[1]
        # A query picked for several classes has one mask: read it out once.
        queries, pair_query = (top.indices // probability.shape[1]).unique(return_inverse=True)
        read = ops.read_out_masks(masks[image, queries], padded_size, *map(tuple, sizes))
        scores, order = (top.values * read.scores[pair_query]).sort(descending=True, stable=True)
        picked = pair_query[order]
        boxes = read.boxes[picked].to(exact)
        results.append(Instances(scores, labels[order], read.masks[picked], boxes))
    return results
