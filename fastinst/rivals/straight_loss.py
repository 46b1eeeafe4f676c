"""The training losses one image and one output after the other, as the release computes them.

What `FastInst.loss` must equal, and is timed against: float masks, a matching for each image and
head, mask logits of all queries with their gradients. Without seeds its points are torch.rand's.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fastinst import ops
from fastinst.config import ModelConfig
from fastinst.decoder import State
from fastinst.heads import PredictionHead
from fastinst.model import FastInst
from fastinst.ops.bilinear import sample_maps


class Target(NamedTuple):
    """The instances of one image, in the frame of the padded batch."""

    labels: Tensor  # [N]
    masks: Tensor  # [N, H, W], 0 or 1, floating-point
    seed: int | None


class Match(NamedTuple):
    source: Tensor  # int64, queries or pixels
    target: Tensor  # int64


def straight_loss(
    model: FastInst, batch: Tensor, targets: list[dict[str, Any]], points: Tensor | None = None
) -> dict[str, Tensor]:
    """`model.loss`, of a FastInst, of targets whose masks are bool [N, h, w]."""
    config, decoder = model.config, model.decoder
    padded = [_pad(target, batch) for target in targets]
    scene, queries = model.encode(batch)
    size, num_guided = scene.size, queries.num_predicting
    positions = queries.positions, scene.levels[0]

    states = [State(queries.features, scene.pixels)]
    predictions = [_predict(decoder.heads[0], states[0], num_guided)]
    for layer, head in zip(decoder.layers, decoder.heads[1:], strict=True):
        states.append(layer(states[-1], *positions, predictions[-1][1].detach() >= 0))
        predictions.append(_predict(head, states[-1], num_guided))
    matches = [
        [
            _match_queries(logits, masks.unflatten(1, size), location, target, config, points)
            for logits, masks, location, target in zip(
                *prediction, queries.locations, padded, strict=True
            )
        ]
        for prediction in predictions
    ]
    attend = torch.ones_like(predictions[-1][1], dtype=torch.bool)
    for image, (match, target) in enumerate(zip(matches[-1], padded, strict=True)):
        small = F.interpolate(target.masks[:, None], size=tuple(size), mode="nearest")
        attend[image, match.source] = small[match.target].flatten(1) > 0
    guided = [
        _predict(head, layer(state, *positions, attend), num_guided)
        for layer, head, state in zip(decoder.layers, decoder.heads[1:], states[1:], strict=True)
    ]

    supervised = [(prediction, matches[-1]) for prediction in guided]
    supervised += zip(predictions, matches, strict=True)
    num_masks = max(sum(len(target.labels) for target in padded), 1)
    losses = {}
    for output, ((logits, masks), match) in enumerate(supervised):
        suffix = f"_{output}" if output + 1 < len(supervised) else ""
        masks = masks.unflatten(2, size)
        loss_mask, loss_dice = _mask_losses(masks, match, padded, config, points, output)
        losses[f"loss_ce{suffix}"] = config.class_weight * _class_loss(
            logits, match, padded, config
        )
        losses[f"loss_mask{suffix}"] = config.mask_weight * loss_mask / num_masks
        losses[f"loss_dice{suffix}"] = config.dice_weight * loss_dice / num_masks
    class_logits = queries.class_logits.to(_exact(queries.class_logits))
    match = [_match_pixels(*pair, config) for pair in zip(class_logits, padded, strict=True)]
    pixels = class_logits.flatten(2)
    classes = _classes(pixels[:, 0], match, padded, config)
    return losses | {"loss_proposal": config.proposal_weight * F.cross_entropy(pixels, classes)}


def _pad(target: dict[str, Any], batch: Tensor) -> Target:
    height, width = batch.shape[2:]
    masks = target["masks"].to(batch.device, _exact(batch))
    masks = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
    return Target(target["labels"].to(batch.device), masks, target.get("seed"))


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _predict(head: PredictionHead, state: State, num_guided: int) -> tuple[Tensor, Tensor]:
    """Class logits [B, Q, K + 1] and mask logits [B, Q, L]."""
    queries = head.norm(state.queries[:, :num_guided])
    masks = head.mask_mlp(queries) @ head.pixel_map(state.pixels).transpose(1, 2)
    return head.class_mlp(queries), masks


def _draw(seed: int | None, stream: int, count: int, like: Tensor) -> Tensor:
    """[1, count, 2], the first points of a stream; torch.rand's without a seed."""
    if seed is None:
        return torch.rand(1, count, 2, device=like.device).to(like.dtype)
    signed = (seed + stream + 2**63) % 2**64 - 2**63
    seeds = torch.tensor([signed], device=like.device)
    return ops.random_points(seeds, count).to(like.dtype)


def _match_queries(
    logits: Tensor,
    masks: Tensor,
    locations: Tensor,
    target: Target,
    config: ModelConfig,
    points: Tensor | None,
) -> Match:
    logits, masks = logits.detach().to(locations.dtype), masks.detach().to(locations.dtype)
    if points is None:
        points = _draw(target.seed, 0, config.num_points, masks)
    x = sample_maps(masks[None], points.to(masks.dtype))[0]  # [Q, P]
    t = sample_maps(target.masks[None], points.to(masks.dtype))[0]  # [N, P]
    at_location = sample_maps(target.masks[None], locations[None])[0]  # [N, Q]
    with torch.autocast(x.device.type, enabled=False):
        s = x.sigmoid()
        mask_cost = (F.softplus(x).sum(-1, keepdim=True) - x @ t.T) / x.shape[-1]
        dice_cost = 1 - (2 * s @ t.T + 1) / (s.sum(-1, keepdim=True) + t.sum(-1) + 1)
    return _assign(
        -config.class_weight * logits.softmax(-1)[:, target.labels]
        + config.mask_weight * mask_cost
        + config.dice_weight * dice_cost
        - config.location_weight * (at_location.T > 0)
    )


def _match_pixels(class_logits: Tensor, target: Target, config: ModelConfig) -> Match:
    """class_logits: [K + 1, h, w]"""
    probability = class_logits.detach().softmax(0)[target.labels].flatten(1)
    inside = F.adaptive_avg_pool2d(target.masks[:, None], tuple(class_logits.shape[1:])) > 0
    cost = config.class_weight * probability + config.location_weight * inside.flatten(1)
    return _assign(-cost.T)


def _assign(cost: Tensor) -> Match:
    finite = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=1e6).cpu().double().numpy()
    return Match(*(torch.as_tensor(i, device=cost.device) for i in linear_sum_assignment(finite)))


def _classes(
    like: Tensor, matches: list[Match], targets: list[Target], config: ModelConfig
) -> Tensor:
    """The class that each of [B, sources] is to predict."""
    classes = torch.full_like(like, config.num_classes, dtype=torch.int64)
    for row, match, target in zip(classes, matches, targets, strict=True):
        row[match.source] = target.labels[match.target]
    return classes


def _class_loss(
    logits: Tensor, matches: list[Match], targets: list[Target], config: ModelConfig
) -> Tensor:
    logits = logits.to(_exact(logits))
    weights = logits.new_ones(config.num_classes + 1)
    weights[-1] = config.no_object_weight
    classes = _classes(logits[..., 0], matches, targets, config)
    return F.cross_entropy(logits.transpose(1, 2), classes, weights)


def _mask_losses(
    masks: Tensor,
    matches: list[Match],
    targets: list[Target],
    config: ModelConfig,
    points: Tensor | None,
    output: int,
) -> tuple[Tensor, Tensor]:
    """Sums over the matched masks of one output."""
    source = torch.cat([m[match.source] for m, match in zip(masks, matches, strict=True)])
    source = source.unsqueeze(1).to(_exact(source))  # [M, 1, h, w]
    target = torch.cat([t.masks[m.target] for t, m in zip(targets, matches, strict=True)])
    if points is None:
        seeds = [
            (target.seed, (place + 1 << 32) + (output << 48))
            for target, match in zip(targets, matches, strict=True)
            for place in match.target.tolist()
        ]
        points = _uncertain_points(source.detach(), seeds, config)
    points = points.to(source.dtype).expand(len(source), -1, -1)
    x = sample_maps(source, points).squeeze(1)  # [M, P]
    t = sample_maps(target.unsqueeze(1), points).squeeze(1)
    s = x.sigmoid()
    dice = 1 - (2 * (s * t).sum(-1) + 1) / (s.sum(-1) + t.sum(-1) + 1)
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return entropy.mean(-1).sum(), dice.sum()


def _uncertain_points(
    masks: Tensor, seeds: list[tuple[int | None, int]], config: ModelConfig
) -> Tensor:
    """[M, num_points, 2] for masks [M, 1, h, w]; see `ops.uncertain_points`."""
    candidates = int(config.num_points * config.oversample_ratio)
    num_important = int(config.num_points * config.importance_ratio)
    num_random = config.num_points - num_important
    if not seeds or seeds[0][0] is None:
        drawn = torch.rand(len(masks), candidates + num_random, 2, device=masks.device)
        drawn = drawn.to(masks.dtype)
    else:
        drawn = [_draw(*seed, candidates + num_random, masks) for seed in seeds]
        drawn = torch.cat(drawn)
    drawn, random = drawn.split([candidates, num_random], dim=1)
    uncertainty = -sample_maps(masks, drawn).squeeze(1).abs()
    best = uncertainty.topk(num_important, dim=1).indices
    important = drawn.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
    return torch.cat([important, random], dim=1)
