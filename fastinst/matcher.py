"""Hungarian matching of queries and of pixels to the instances of their image."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fastinst import ops
from fastinst.config import ModelConfig
from fastinst.ops.bilinear import sample_maps
from fastinst.queries import Queries
from fastinst.targets import Targets, reaches_p4, to_device


class Matches(NamedTuple):
    """All matchings of a step: of H heads' queries, and of p4's pixels if queries come from them.

    In each of an image's Q queries and N_b instances the fewer are all matched: M' pairs for each
    head, image by image, by instance. Instances are rows of `Targets`.
    """

    by_query: Tensor  # [H, B, Q] int64, the instance of a query, M for none
    queries: Tensor  # [H, B, N] int64, an image's matched queries; 0 past their number
    pairs: Tensor  # [M'] int64, where those that are not past it lie in B * N
    instances: Tensor  # [H, M'] int64, of these queries
    by_pixel: Tensor | None = None  # [B, h * w] int64, the instance of a pixel, M for none


@torch.no_grad()
def match(
    logits: list[Tensor],
    masks: list[Tensor],
    queries: Queries,
    targets: Targets,
    config: ModelConfig,
    points: Tensor | None,
) -> Matches:
    """One query of each head for each instance, and one pixel of p4 if queries come from there, at
    the least cost.

    All costs are computed at once and leave the device in one copy, which is the only one that
    a training step waits for; the result returns in one.

    logits: [B, Q, K + 1] of each head
    masks: [B, Q, h, w] logits of each head
    points: [1, P, 2] that masks are compared on; if None, each image's own random ones
    """
    heads, (batch, num_queries) = len(logits), logits[0].shape[:2]
    most = max(targets.counts)
    shapes = [(heads, batch, most, num_queries)]
    if queries.class_logits is not None:
        shapes.append((batch, most, queries.class_logits.shape[2:].numel()))
    if most == 0:
        host = np.empty(0)
    else:
        costs = [query_costs(logits, masks, queries.locations, targets, config, points)]
        if queries.class_logits is not None:
            costs.append(pixel_costs(queries.class_logits, targets, config))
        # A prediction that overflowed must reach the loss, where the training loop sees it and
        # can name the images; so it may not stop the matching.
        flat = torch.cat([cost.flatten() for cost in costs])
        host = flat.nan_to_num(nan=1e6, posinf=1e6, neginf=1e6).cpu().numpy()
    costs = [
        part.reshape(shape)
        for part, shape in zip(np.split(host, [np.prod(shapes[0])]), shapes, strict=False)
    ]
    return _assign(costs, targets.counts, logits[0].device)


def query_costs(
    logits: list[Tensor],
    masks: list[Tensor],
    locations: Tensor | None,
    targets: Targets,
    config: ModelConfig,
    points: Tensor | None,
) -> Tensor:
    """By class, mask and where the query comes from: [H, B, N, Q] for `Targets.slots`.

    locations: [B, Q, 2], see `Queries`; None if queries come from nowhere
    """
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    heads, (batch, num_queries) = len(logits), logits[0].shape[:2]
    # One set of points for all masks of an image.
    if points is None:
        points = ops.random_points(targets.image_seeds, config.num_points)
    points = points.to(dtype).expand(batch, -1, -1)
    num_points = points.shape[1]
    places = points if locations is None else torch.cat([points, locations], dim=1)
    samples = ops.sample_masks(targets.masks, places, targets.images)[targets.slots]
    t, at_location = samples.tensor_split([num_points], dim=2)  # [B, N, P], [B, N, Q] or nothing
    maps = torch.stack(masks).flatten(0, 1).to(dtype)  # [H * B, Q, h, w]
    x = sample_maps(maps, points.repeat(heads, 1, 1)).unflatten(0, (heads, batch))

    # Binary cross-entropy is softplus(x) - x t, so that its pairwise mean is one product.
    # Autocast would compute it in float16, where a sum over all points overflows.
    s = x.sigmoid()
    with torch.autocast(x.device.type, enabled=False):
        mask_cost = (F.softplus(x).sum(-1).unsqueeze(-2) - t @ x.mT) / num_points
        overlap = t @ s.mT
    total = s.sum(-1).unsqueeze(-2) + t.sum(-1, keepdim=True)
    dice_cost = 1 - (2 * overlap + 1) / (total + 1)
    labels = targets.labels[targets.slots].unsqueeze(-1)  # [B, N, 1]
    probability = torch.stack(logits).to(dtype).softmax(-1).mT  # [H, B, K + 1, Q]
    class_cost = -probability.gather(2, labels.expand(heads, -1, -1, num_queries))
    cost = (
        config.class_weight * class_cost
        + config.mask_weight * mask_cost
        + config.dice_weight * dice_cost
    )
    return (
        cost if locations is None else cost - config.location_weight * (at_location > 0).to(dtype)
    )


def pixel_costs(class_logits: Tensor, targets: Targets, config: ModelConfig) -> Tensor:
    """By class and whether the instance reaches into the pixel (paper, section 3.2).

    class_logits: [B, K + 1, H / 16, W / 16]. Returns [B, N, h * w] for `Targets.slots`.
    """
    dtype = torch.promote_types(class_logits.dtype, torch.float32)
    probability = class_logits.to(dtype).softmax(dim=1).flatten(2)
    labels = targets.labels[targets.slots].unsqueeze(-1)
    class_cost = -probability.gather(1, labels.expand(-1, -1, probability.shape[2]))
    inside = reaches_p4(targets.masks).flatten(1)[targets.slots]
    return config.class_weight * class_cost - config.location_weight * inside.to(dtype)


def _assign(costs: list[np.ndarray], counts: list[int], device: torch.device) -> Matches:
    """costs: [H, B, N, Q] of the queries and, if there are any, [B, N, h * w] of the pixels."""
    # One after the other: four heads and the pixels take 45 us for an image of 7 instances, and to
    # hand it to a thread costs some 20.
    query_costs, *pixel_costs = costs
    heads, batch, most, num_queries = query_costs.shape
    none = sum(counts)
    by_query = np.full((heads, batch, num_queries), none)
    by_pixel = [np.full((batch, cost.shape[2]), none) for cost in pixel_costs]
    queries = np.zeros((heads, batch, min(most, num_queries)), dtype=np.int64)
    pairs = [
        np.arange(min(count, num_queries)) + image * queries.shape[2]
        for image, count in enumerate(counts)
    ]
    instances = [[] for _ in range(heads)]
    for image, count in enumerate(counts):
        first = sum(counts[:image])
        for head in range(heads):
            matched, sources = linear_sum_assignment(query_costs[head, image, :count])
            by_query[head, image, sources] = first + matched
            queries[head, image, : len(sources)] = sources
            instances[head].append(first + matched)
        for cost, table in zip(pixel_costs, by_pixel, strict=True):
            matched, sources = linear_sum_assignment(cost[image, :count])
            table[image, sources] = first + matched
    instances = np.stack([np.concatenate(of_head) for of_head in instances])
    tables = [by_query, queries, np.concatenate(pairs), instances, *by_pixel]
    flat = np.concatenate([table.ravel() for table in tables]).astype(np.int64)
    parts = to_device(torch.from_numpy(flat), device).split([table.size for table in tables])
    return Matches(*(p.view(t.shape) for p, t in zip(parts, tables, strict=True)))
