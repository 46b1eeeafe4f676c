"""Points to compare masks at, chosen by importance (PointRend, arXiv 1912.08193, section 3.1)."""

import torch
from torch import Tensor

from fastinst.ops.bilinear import chunks, sample_dtype, sample_maps
from fastinst.ops.random_points import random_points


def uncertain_points(
    logits: Tensor, seeds: Tensor, num_points: int, num_candidates: int, num_important: int
) -> Tensor:
    """`num_points` points for each map, of which `num_important` lie where its logit is near 0.

    The candidates are the seed's random points 0 .. num_candidates - 1. Those with the smallest
    magnitude of the bilinearly sampled logit (of equal ones the earlier, NaN last) come first, in
    their order; the seed's next random points fill up the rest. Samples are float32, of float64
    logits float64.

    Args:
        logits: [P, h, w]
        seeds: int64 [P], see `random_points`
        num_important: at most num_points and num_candidates

    Returns:
        (x, y) in [0, 1], float32 [P, num_points, 2], without gradient

    Raises:
        ValueError: shapes, dtypes or numbers that do not fit, by name.
    """
    _check(logits, seeds, num_points, num_candidates, num_important)
    return _uncertain_points(logits, seeds, num_points, num_candidates, num_important)


def definition(
    logits: Tensor, seeds: Tensor, num_points: int, num_candidates: int, num_important: int
) -> Tensor:
    points = logits.new_empty(len(logits), num_points, 2, dtype=torch.float32)
    for part in chunks(len(logits), num_candidates):
        candidates = random_points(seeds[part], num_candidates)
        chosen = _most_uncertain(logits[part], candidates, num_important)
        points[part, :num_important] = candidates.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    points[:, num_important:] = random_points(seeds, num_points - num_important, num_candidates)
    return points


_uncertain_points = torch.library.custom_op("fastinst::uncertain_points", mutates_args=())(
    definition
)


def _most_uncertain(logits: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Indices [P, count] of the candidates [P, N, 2] of smallest |logit|, ascending."""
    if count == 0:
        return candidates.new_empty(len(candidates), 0, dtype=torch.int64)
    dtype = sample_dtype(logits)
    size = sample_maps(logits.unsqueeze(1).to(dtype), candidates.to(dtype)).squeeze(1).abs()
    # The bits of numbers that are not negative are in the numbers' order, and NaN, made one of its
    # many, has a place.
    size = torch.where(size.isnan(), torch.nan, size).view(
        torch.int64 if dtype == torch.float64 else torch.int32
    )
    limit = size.kthvalue(count, dim=1, keepdim=True).values
    below, equal = size < limit, size == limit
    wanted = count - below.sum(1, keepdim=True)
    chosen = below | (equal & (equal.cumsum(1) <= wanted))
    # Each writes its number at its place among the chosen; the others all write past the end.
    place = torch.where(chosen, chosen.cumsum(1) - 1, count)
    numbers = torch.arange(candidates.shape[1], device=place.device).expand_as(place)
    return place.new_empty(len(place), count + 1).scatter_(1, place, numbers)[:, :count]


@_uncertain_points.register_fake
def _(logits, seeds, num_points, num_candidates, num_important):
    return logits.new_empty(logits.shape[0], num_points, 2, dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output)


def _backward(ctx, _):
    return None, None, None, None, None


_uncertain_points.register_autograd(_backward, setup_context=_setup_context)


def _check(
    logits: Tensor, seeds: Tensor, num_points: int, num_candidates: int, num_important: int
) -> None:
    if logits.dim() != 3 or 0 in logits.shape[1:] or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating-point [P, h, w], got {logits.dtype} {tuple(logits.shape)}"
        )
    if seeds.dtype != torch.int64 or seeds.shape != logits.shape[:1]:
        raise ValueError(
            f"seeds must be int64 [{len(logits)}], got {seeds.dtype} {tuple(seeds.shape)}"
        )
    if seeds.device != logits.device:
        raise ValueError(f"seeds are on {seeds.device}, logits on {logits.device}")
    if not 0 <= num_important <= min(num_points, num_candidates):
        raise ValueError(
            f"num_important must be in 0..{min(num_points, num_candidates)}, got {num_important}"
        )
