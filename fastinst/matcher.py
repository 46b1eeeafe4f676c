"""Hungarian matching of pixels and of queries to the instances of an image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fastinst.config import ModelConfig
from fastinst.decoder import Prediction


class Target(NamedTuple):
    """The instances of one image, in the frame of the padded batch."""

    labels: Tensor  # [N] int64
    masks: Tensor  # [N, H, W], 0 or 1, in float32 or wider


class Match(NamedTuple):
    """source[i] (a query or a pixel) is matched to target[i]; as many as the fewer of the two."""

    source: Tensor  # int64
    target: Tensor  # int64


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps [N, C, h, w] at points [N, P, 2], (x, y) in [0, 1]: [N, C, P].

    Pixel centres lie at (i + 1/2) / size; outside the map is 0.
    """
    grid = (2 * points - 1).unsqueeze(1)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False).squeeze(2)


@torch.no_grad()
def match_pixels(class_logits: Tensor, targets: list[Target], config: ModelConfig) -> list[Match]:
    """One pixel of p4 for each instance, preferably inside it (paper, section 3.2).

    class_logits: [B, K + 1, h, w]
    """
    size = class_logits.shape[2:]
    dtype = torch.promote_types(class_logits.dtype, torch.float32)
    probabilities = class_logits.to(dtype).softmax(dim=1).flatten(2)
    matches = []
    for probability, target in zip(probabilities, targets, strict=True):
        inside = F.adaptive_avg_pool2d(target.masks[:, None], tuple(size)).flatten(1).T > 0
        cost = -config.class_weight * probability[target.labels].T
        matches.append(_assign(cost - config.location_weight * inside.to(dtype)))
    return matches


@torch.no_grad()
def match_queries(
    prediction: Prediction,
    locations: Tensor,
    targets: list[Target],
    config: ModelConfig,
    points: Tensor | None,
) -> list[Match]:
    """One query for each instance, by class, mask and where the query comes from.

    locations: [B, N_a, 2], see `Queries`
    points: [1, P, 2] that masks are compared on; drawn at random for each image if None
    """
    dtype = locations.dtype
    matches = []
    for logits, masks, location, target in zip(*prediction, locations, targets, strict=True):
        # One draw for all masks of the image; masks are the channels of one map.
        drawn = (
            torch.rand(1, config.num_points, 2, device=masks.device) if points is None else points
        )
        drawn = drawn.to(dtype)
        x = sample_points(masks[None].to(dtype), drawn)[0]  # [Q, P]
        t = sample_points(target.masks[None], drawn)[0]  # [N, P]
        at_location = sample_points(target.masks[None], location[None])[0]  # [N, Q]

        # Binary cross-entropy is softplus(x) - x t, so that its pairwise mean is one product.
        # Autocast would compute it in float16, where a sum over all points overflows.
        probability = x.sigmoid()
        with torch.autocast(x.device.type, enabled=False):
            mask_cost = (F.softplus(x).sum(-1, keepdim=True) - x @ t.T) / x.shape[-1]
            overlap = probability @ t.T
        total = probability.sum(-1, keepdim=True) + t.sum(-1)
        dice_cost = 1 - (2 * overlap + 1) / (total + 1)
        class_cost = -logits.to(dtype).softmax(-1)[:, target.labels]
        cost = (
            config.class_weight * class_cost
            + config.mask_weight * mask_cost
            + config.dice_weight * dice_cost
            - config.location_weight * (at_location.T > 0).to(dtype)
        )
        matches.append(_assign(cost))
    return matches


def _assign(cost: Tensor) -> Match:
    """The cheapest assignment of [sources, targets]."""
    # A prediction that overflowed must reach the loss, where the training loop sees it and can
    # name the images; so it may not stop the matching.
    finite = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=1e6).cpu().double().numpy()
    source, target = linear_sum_assignment(finite)
    return Match(
        *(torch.as_tensor(i, dtype=torch.int64, device=cost.device) for i in (source, target))
    )
