"""From a model's outputs to panoptic and semantic segmentation at the original image size.

As Mask2Former reads out its queries (Cheng et al., CVPR 2022; MaskFormer, NeurIPS 2021,
section 3.4); a model that is to be read out like this was trained with things and stuff alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinst.ops.read_out_masks import resized_in_parts
from fastinst.results import MASK_STRIDE
from fastinst.segments import Segment, SegmentMap


@torch.no_grad()
def panoptic(
    outputs: dict[str, Tensor],
    image_sizes: list[tuple[int, int]],
    output_sizes: list[tuple[int, int]],
    is_thing: Sequence[bool],
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> list[SegmentMap]:
    """Each image divided among the queries that are sure of their class.

    A query has the class of the highest probability, over K + 1 classes; those of no-object and
    those with a lower score are left out. A pixel goes to the query with the highest score times
    mask probability, and is void where the mask probability of that query is below 1/2. A query
    that gets too small a part of its own mask (mask probability at least 1/2) is left out, and
    its pixels are void. All regions of a stuff class are one segment. Ids count from 1 in the
    order of the queries.

    Args:
        outputs: what the model returned for a batch
        image_sizes: (height, width) of the images in the batch, as `preprocess` returns them
        output_sizes: (height, width) of the maps to return, usually of the original images
        is_thing: by label
        score_threshold: queries with lower or equal scores are left out
        overlap_threshold: the part of its mask that a query must get at least

    Returns:
        maps on the device of the outputs; a stuff segment's score is that of its first query

    Raises:
        ValueError: lists of different lengths, or sizes that do not fit.
    """
    results = []
    for logits, masks, sizes in _images(outputs, image_sizes, output_sizes):
        if len(is_thing) != logits.shape[1] - 1:
            raise ValueError(
                f"is_thing has {len(is_thing)} entries for {logits.shape[1] - 1} classes"
            )
        scores, labels = logits.softmax(-1).max(-1)
        kept = torch.nonzero((labels < len(is_thing)) & (scores > score_threshold))[:, 0]
        scores, labels = scores[kept], labels[kept]

        # Only the best query so far of each pixel is held, not the masks of all.
        best = scores.new_full(sizes[-1], -1)
        owner = torch.zeros_like(best, dtype=torch.int64)
        inside = torch.zeros_like(best, dtype=torch.bool)
        mask_areas = [labels.new_zeros(0)]
        for part, mask_logits in resized_in_parts(masks[kept], *sizes):
            probability = mask_logits.sigmoid()
            in_mask = probability >= 0.5
            mask_areas.append(in_mask.count_nonzero(dim=(1, 2)))
            value, query = (probability * scores[part, None, None]).max(dim=0)
            better = value > best
            best = torch.where(better, value, best)
            owner = torch.where(better, query + part.start, owner)
            inside = torch.where(better, in_mask.gather(0, query[None])[0], inside)

        won, written = (
            torch.bincount(queries, minlength=len(kept))[: len(kept)]
            for queries in (owner.flatten(), owner[inside])
        )
        areas = torch.stack([won, written, torch.cat(mask_areas)])
        query_ids, segments = _segments(
            *(scores.tolist(), labels.tolist(), areas.tolist()), is_thing, overlap_threshold
        )
        table = torch.tensor([*query_ids, 0], dtype=torch.int32, device=owner.device)
        results.append(SegmentMap(table[torch.where(inside, owner, len(kept))], segments))
    return results


def _segments(
    scores: list[float],
    labels: list[int],
    areas: list[list[int]],
    is_thing: Sequence[bool],
    overlap_threshold: float,
) -> tuple[list[int], tuple[Segment, ...]]:
    """The id of each query's segment, 0 for none, and the segments.

    areas: for each query in pixels what it won, how much of that lies in its mask, and its mask
    """
    query_ids, segments, stuff_ids = [], [], {}
    for score, label, won, written, mask in zip(scores, labels, *areas, strict=True):
        if written == 0 or won / mask < overlap_threshold:
            query_ids.append(0)
            continue
        id_ = stuff_ids.get(label)
        if id_ is None:
            id_ = len(segments) + 1
            segments.append(Segment(id_, label, score=score))
            if not is_thing[label]:
                stuff_ids[label] = id_
        query_ids.append(id_)
    return query_ids, tuple(segments)


@torch.no_grad()
def semantic(
    outputs: dict[str, Tensor],
    image_sizes: list[tuple[int, int]],
    output_sizes: list[tuple[int, int]],
) -> list[Tensor]:
    """How much of each class there is in each pixel: over all queries the sum of class
    probability, over K + 1 classes, times mask probability. The highest is the pixel's class.

    Args: those of `panoptic`

    Returns:
        [K, H, W] for each image, in float32 or wider

    Raises:
        ValueError: lists of different lengths, or sizes that do not fit.
    """
    results = []
    for logits, masks, sizes in _images(outputs, image_sizes, output_sizes):
        classes = logits.softmax(-1)[:, :-1]  # [Q, K]
        total = classes.new_zeros(classes.shape[1], sizes[-1][0] * sizes[-1][1])
        for part, mask_logits in resized_in_parts(masks, *sizes):
            total.addmm_(classes[part].T, mask_logits.sigmoid().flatten(1))
        results.append(total.unflatten(1, sizes[-1]))
    return results


def _images(outputs, image_sizes, output_sizes):
    """Of each image its class logits in float32 or wider, its mask logits, and three sizes: those
    of the padded input, of the image in it, and of the output."""
    logits, masks = outputs["pred_logits"], outputs["pred_masks"]
    if not len(logits) == len(image_sizes) == len(output_sizes):
        raise ValueError(
            f"{len(logits)} images but {len(image_sizes)} image_sizes "
            f"and {len(output_sizes)} output_sizes"
        )
    padded = (masks.shape[2] * MASK_STRIDE, masks.shape[3] * MASK_STRIDE)
    exact = torch.promote_types(logits.dtype, torch.float32)
    for image, sizes in enumerate(zip(image_sizes, output_sizes, strict=True)):
        yield logits[image].to(exact), masks[image], (padded, *map(tuple, sizes))
