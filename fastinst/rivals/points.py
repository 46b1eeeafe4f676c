"""The training losses' points beside their definitions in eager PyTorch."""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastinst import ops
from fastinst.rivals.case import PADDED, Case, definition

# What one image of 20 objects makes of 7 predictions, at the points of `ModelConfig`.
PAIRS, OBJECTS = 140, 20
POINTS, CANDIDATES, IMPORTANT = 12544, 37632, 9408


def uncertain_points_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    logits = _blobs(PAIRS, [side // 8 for side in PADDED]).to(device, dtype)
    arguments = (logits, torch.arange(PAIRS, device=device), POINTS, CANDIDATES, IMPORTANT)
    yield _case("uncertain_points", "definition", *arguments)


def point_losses_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    logits = _blobs(PAIRS, [side // 8 for side in PADDED]).to(device, dtype)
    index = torch.arange(PAIRS, device=device) % OBJECTS
    exact = torch.promote_types(dtype, torch.float32)
    points = torch.rand(PAIRS, POINTS, 2, dtype=exact, device=device)
    arguments = (logits, _masks(device), index, points)
    yield _case("point_losses", "definition", *arguments)
    grads = torch.ones(2, PAIRS, dtype=exact, device=device)
    yield _case("point_losses_backward", "backward_definition", *grads, *arguments)


def sample_masks_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    exact = torch.promote_types(dtype, torch.float32)
    points = torch.rand(1, POINTS, 2, dtype=exact, device=device)
    groups = torch.zeros(OBJECTS, dtype=torch.int64, device=device)
    yield _case("sample_masks", "definition", _masks(device), points, groups)


def _case(op: str, plain: str, *arguments: object) -> Case:
    kernel = getattr(torch.ops.fastinst, op)
    compared = definition(op.removesuffix("_backward"), plain)
    calls = {"kernel": kernel, "definition": compared}
    rivals = {name: functools.partial(call, *arguments) for name, call in calls.items()}
    return Case(op, "pairs of an image", rivals, {})


def _masks(device: torch.device) -> torch.Tensor:
    return ops.pack_bits(_blobs(OBJECTS, PADDED) > 0).to(device)


def _blobs(count: int, size: tuple[int, int] | list[int]) -> torch.Tensor:
    """[count, *size] of smooth logits, positive on about a tenth of the pixels."""
    noise = F.interpolate(torch.randn(1, count, 8, 10), tuple(size), mode="bicubic")[0]
    return noise - noise.std() * 1.28
