"""The training losses (paper, sections 3.2 to 3.5)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fastinst.config import ModelConfig
from fastinst.decoder import Prediction
from fastinst.errors import InputError
from fastinst.matcher import Match, Target, sample_points


def pad_targets(targets: list[dict[str, Tensor]], batch: Tensor, num_classes: int) -> list[Target]:
    """Targets at their images' own sizes to targets in the frame of the padded batch.

    targets: for each image `labels` [N] int64 in 0..K-1 and `masks` [N, h, w] bool
    Raises InputError, with the image's place in the batch, for what does not fit.
    """
    if len(targets) != len(batch):
        raise InputError(f"{len(batch)} images but {len(targets)} targets")
    dtype = torch.promote_types(batch.dtype, torch.float32)
    height, width = batch.shape[2:]
    padded = []
    for i, target in enumerate(targets):
        if not {"labels", "masks"} <= target.keys():
            raise InputError(f"target {i} needs labels and masks, it has {', '.join(target)}")
        labels, masks = target["labels"], target["masks"]
        if labels.is_floating_point() or masks.dtype != torch.bool:
            raise InputError(
                f"target {i}: labels must be integers and masks bool, "
                f"got {labels.dtype} and {masks.dtype}"
            )
        if labels.dim() != 1 or masks.dim() != 3 or len(labels) != len(masks):
            raise InputError(
                f"target {i}: labels must be [N] and masks [N, h, w], "
                f"got {tuple(labels.shape)} and {tuple(masks.shape)}"
            )
        h, w = masks.shape[1:]
        if h > height or w > width:
            raise InputError(f"target {i}: masks of {h}x{w} exceed the batch of {height}x{width}")
        if not labels.is_cuda and ((labels < 0) | (labels >= num_classes)).any():
            raise InputError(f"target {i}: labels must be in 0..{num_classes - 1}, got {labels}")
        masks = F.pad(masks.to(batch.device).to(dtype), (0, width - w, 0, height - h))
        padded.append(Target(labels.to(batch.device, torch.int64), masks))
    return padded


def guidance(matches: list[Match], targets: list[Target], prediction: Prediction) -> Tensor:
    """Where each query may attend in the guided pass: its instance's mask on p3's grid.

    [B, N_a, h, w] bool; unmatched queries attend everywhere. One whose mask vanishes at this
    size has no True at all, which `ops.masked_cross_attention` takes for everywhere.
    """
    attend = torch.ones_like(prediction.masks, dtype=torch.bool)
    for i, (match, target) in enumerate(zip(matches, targets, strict=True)):
        small = F.interpolate(target.masks[:, None], size=attend.shape[2:], mode="nearest")[:, 0]
        attend[i, match.source] = small[match.target] > 0
    return attend


def count_masks(targets: list[Target]) -> float:
    """Target masks in the batch, averaged over the processes of a distributed run, at least 1."""
    count = sum(len(target.labels) for target in targets)
    if dist.is_available() and dist.is_initialized():
        total = torch.tensor(float(count), device=targets[0].masks.device)
        dist.all_reduce(total)
        count = total.item() / dist.get_world_size()
    return max(count, 1.0)


def matched_classes(
    like: Tensor, matches: list[Match], targets: list[Target], no_object: int
) -> Tensor:
    """The class that each of [B, sources] is to predict: its target's, else `no_object`."""
    classes = torch.full_like(like, no_object, dtype=torch.int64)
    for row, match, target in zip(classes, matches, targets, strict=True):
        row[match.source] = target.labels[match.target]
    return classes


def proposal_loss(
    class_logits: Tensor, matches: list[Match], targets: list[Target], config: ModelConfig
) -> Tensor:
    """Cross-entropy of every pixel of p4; all but the matched ones are no-object."""
    dtype = torch.promote_types(class_logits.dtype, torch.float32)
    logits = class_logits.to(dtype).flatten(2)
    classes = matched_classes(logits[:, 0], matches, targets, config.num_classes)
    return config.proposal_weight * F.cross_entropy(logits, classes)


def prediction_losses(
    prediction: Prediction,
    matches: list[Match],
    targets: list[Target],
    num_masks: float,
    config: ModelConfig,
    points: Tensor | None,
) -> dict[str, Tensor]:
    """Weighted `loss_ce`, `loss_mask` and `loss_dice` of one head.

    points: [1, P, 2] that masks are compared on; drawn by importance if None
    """
    logits = prediction.logits
    dtype = torch.promote_types(logits.dtype, torch.float32)
    classes = matched_classes(logits[..., 0], matches, targets, config.num_classes)
    class_weights = logits.new_ones(config.num_classes + 1, dtype=dtype)
    class_weights[-1] = config.no_object_weight
    loss_ce = F.cross_entropy(logits.to(dtype).transpose(1, 2), classes, class_weights)

    source = torch.cat(
        [m[match.source] for m, match in zip(prediction.masks, matches, strict=True)]
    )
    source = source.unsqueeze(1).to(dtype)  # [M, 1, h, w]
    target = torch.cat([t.masks[m.target] for t, m in zip(targets, matches, strict=True)])
    if points is None:
        points = draw_points(source.detach(), config)
    points = points.to(dtype).expand(len(source), -1, -1)
    x = sample_points(source, points).squeeze(1)  # [M, P]
    t = sample_points(target.unsqueeze(1), points).squeeze(1)
    loss_mask = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(-1).sum()
    loss_dice = dice_loss(x, t).sum()
    return {
        "loss_ce": config.class_weight * loss_ce,
        "loss_mask": config.mask_weight * loss_mask / num_masks,
        "loss_dice": config.dice_weight * loss_dice / num_masks,
    }


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum(s t) + 1) / (sum s + sum t + 1) over the last dimension, s = sigmoid(logits)."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probability.sum(-1) + targets.sum(-1) + 1)


def draw_points(masks: Tensor, config: ModelConfig) -> Tensor:
    """`num_points` points for each of masks [M, 1, h, w]: [M, P, 2] in [0, 1].

    Of `oversample_ratio` times as many random points the most uncertain, those whose logit is
    nearest 0, make up `importance_ratio` of the result; the others are random (PointRend,
    arXiv 1912.08193, section 3.1).
    """
    candidates = int(config.num_points * config.oversample_ratio)
    num_important = int(config.num_points * config.importance_ratio)
    drawn = torch.rand(len(masks), candidates, 2, device=masks.device).to(masks.dtype)
    uncertainty = -sample_points(masks, drawn).squeeze(1).abs()
    best = uncertainty.topk(num_important, dim=1).indices
    important = drawn.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
    num_random = config.num_points - num_important
    random = torch.rand(len(masks), num_random, 2, device=masks.device).to(masks.dtype)
    return torch.cat([important, random], dim=1)
