"""The training losses (paper, sections 3.2 to 3.5)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fastinst import ops
from fastinst.config import ModelConfig
from fastinst.heads import Output
from fastinst.matcher import Matches
from fastinst.targets import Targets, nearest, to_device

# p4 is this many times smaller than the padded input.
P4_STRIDE = 16
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Totals:
    """What the losses of a whole optimisation step are divided by.

    A loss is its sum over a batch, times `processes`, divided by one of the sums. So the losses of
    a step's parts add up to the loss of all its images at once, and the mean over processes,
    which is what DistributedDataParallel makes of gradients, is the loss of all their images.
    """

    # [3] float64: instances; weights of all queries, where one that is matched weighs 1 and
    # another `no_object_weight`; pixels of p4.
    sums: Tensor
    processes: int = 1

    def divisors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """What sums over masks, queries and pixels are divided by; of at least one mask in all."""
        masks, weight, pixels = (self.sums / self.processes).to(dtype).unbind()
        # Nothing has a weight if all instances are missing and `no_object_weight` is 0.
        return masks.clamp(min=1 / self.processes), weight.clamp(min=TINY), pixels

    def over_processes(self, device: torch.device) -> "Totals":
        """Summed over all processes of a distributed run; each has to call this."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        sums = to_device(self.sums, device)
        dist.all_reduce(sums)
        return Totals(sums, dist.get_world_size())


def count_totals(targets: list[dict], padded_size: tuple[int, int], config: ModelConfig) -> Totals:
    """What the losses of one batch are divided by if it is a step of its own.

    targets: those given to `FastInst.loss`
    padded_size: (height, width) of the batch
    """
    counts = [len(target["labels"]) for target in targets]
    pixels = (padded_size[0] // P4_STRIDE) * (padded_size[1] // P4_STRIDE)
    num_queries = config.num_queries
    if config.activation_guided:
        num_queries = min(num_queries, pixels)
    matched = sum(min(count, num_queries) for count in counts)
    weight = matched + config.no_object_weight * (num_queries * len(counts) - matched)
    sums = [sum(counts), weight, pixels * len(counts)]
    return Totals(torch.tensor(sums, dtype=torch.float64, device="cpu"))


def guidance(matches: Matches, targets: Targets, stride: int) -> Tensor:
    """Where each query may attend in the guided pass: its instance's mask on a map of that stride.

    [B, Q, ceil(h w / 32)] int32, bits for `ops.masked_cross_attention`; unmatched queries attend
    everywhere. One whose mask vanishes at this size has no bit at all, which is everywhere too.
    """
    masks = F.pad(nearest(targets.masks, stride).flatten(1), (0, 0, 0, 1), value=True)
    return ops.pack_bits(masks)[matches.by_query[-1]]


def proposal_loss(
    class_logits: Tensor, matches: Matches, targets: Targets, totals: Totals, config: ModelConfig
) -> Tensor:
    """Cross-entropy of every pixel of p4, [B, K + 1, h, w]; all but the matched are no-object."""
    logits = class_logits.to(_exact(class_logits)).flatten(2)
    total = F.cross_entropy(logits, _classes(matches.by_pixel, targets, config), reduction="sum")
    _, _, num_pixels = totals.divisors(logits.dtype)
    return config.proposal_weight * total / num_pixels


def prediction_losses(
    guided: list[Output],
    ordinary: list[Output],
    size: tuple[int, int] | torch.Size,
    matches: Matches,
    targets: Targets,
    totals: Totals,
    config: ModelConfig,
    points: Tensor | None,
) -> dict[str, Tensor]:
    """Weighted `loss_ce`, `loss_mask` and `loss_dice` of every output, under their final names.

    guided: L outputs, which have the last head's matching
    ordinary: L + 1 outputs, to which `matches` belong
    size: (h, w) of p3
    points: [1, P, 2] that masks are compared on; drawn by importance if None
    """
    outputs = [*guided, *ordinary]
    by_query, queries, instances = (
        torch.cat([x[-1:].expand(len(guided), *x.shape[1:]), x])
        for x in (matches.by_query, matches.queries, matches.instances)
    )

    logits = torch.stack([output.logits for output in outputs])
    logits = logits.to(_exact(logits)).flatten(0, 2)
    num_masks, class_weight, _ = totals.divisors(logits.dtype)
    weights = logits.new_ones(config.num_classes + 1)
    weights[-1] = config.no_object_weight
    classes = _classes(by_query, targets, config).flatten()
    entropies = F.cross_entropy(logits, classes, weights, reduction="none")
    loss_ce = entropies.view(len(outputs), -1).sum(1) / class_weight

    masks = _matched_masks(outputs, queries, matches.pairs).unflatten(1, tuple(size))
    instances = instances.flatten()
    if points is None:
        number = torch.arange(len(outputs), device=masks.device)
        # Beside the image's seed and the mask's place there: see `pad_targets`.
        seeds = targets.mask_seeds[instances].view(len(outputs), -1) + (number << 48).unsqueeze(1)
        points = ops.uncertain_points(
            masks.detach(),
            seeds.flatten(),
            config.num_points,
            int(config.num_points * config.oversample_ratio),
            int(config.num_points * config.importance_ratio),
        )
    bce, dice = ops.point_losses(masks, targets.masks, instances, points.to(_exact(masks)))
    shape = (len(outputs), len(matches.pairs))
    kinds = {
        "loss_ce": config.class_weight * loss_ce,
        "loss_mask": config.mask_weight * bce.view(shape).sum(1) / num_masks,
        "loss_dice": config.dice_weight * dice.view(shape).sum(1) / num_masks,
    }
    suffixes = [*(f"_{i}" for i in range(len(outputs) - 1)), ""]
    return {
        kind + suffix: value
        for kind, values in kinds.items()
        for suffix, value in zip(suffixes, values.unbind(), strict=True)
    }


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _classes(instances: Tensor, targets: Targets, config: ModelConfig) -> Tensor:
    """What is to be predicted: the instance's class, or no-object."""
    return F.pad(targets.labels, (0, 1), value=config.num_classes)[instances]


def _matched_masks(outputs: list[Output], queries: Tensor, pairs: Tensor) -> Tensor:
    """The mask logits that are supervised, and only they: [O * M', L]; see `Matches`."""
    index = queries.unsqueeze(-1)  # [O, B, N, 1]
    keys = torch.stack([output.keys for output in outputs])
    keys = keys.gather(2, index.expand(-1, -1, -1, keys.shape[3]))
    offsets = torch.stack([output.offsets for output in outputs]).gather(2, index)
    masks = [
        torch.baddbmm(offset, key, output.pixels.mT)
        for offset, key, output in zip(offsets, keys, outputs, strict=True)
    ]
    return torch.stack(masks).flatten(1, 2).index_select(1, pairs).flatten(0, 1)
