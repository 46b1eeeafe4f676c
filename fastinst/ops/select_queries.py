"""Selection of the instance activation-guided queries (paper, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

# A pixel whose best foreground class is less likely than this is no local maximum.
MINIMUM_PROBABILITY = 1e-6


def activation_rank(class_logits: Tensor, local_maximum_first: bool = True) -> Tensor:
    """What pixels are chosen by: the probability of the best foreground class, + 1 at local maxima.

    A pixel is a local maximum if none of its 8 neighbours *of the same best class* is more
    probable; neighbours of other classes, and those outside the map, count as 0.

    Args:
        class_logits: [B, K + 1, h, w], of which the last class is no-object
        local_maximum_first: False leaves the + 1 out (the supplement's Table III)

    Returns:
        [B, h * w] in float32 or wider
    """
    exact = torch.promote_types(class_logits.dtype, torch.float32)
    probability, best = class_logits.to(exact).softmax(dim=1)[:, :-1].max(dim=1)  # [B, h, w]
    if not local_maximum_first:
        return probability.flatten(1)
    height, width = best.shape[1:]
    around_probability = F.pad(probability, (1, 1, 1, 1))
    around_best = F.pad(best, (1, 1, 1, 1), value=-1)
    is_maximum = probability >= MINIMUM_PROBABILITY
    for dy in range(3):
        for dx in range(3):
            window = (slice(None), slice(dy, dy + height), slice(dx, dx + width))
            beaten = (around_best[window] == best) & (around_probability[window] > probability)
            is_maximum = is_maximum & ~beaten  # not in place, for torch.export
    return (probability + is_maximum).flatten(1)


def select_queries(
    class_logits: Tensor,
    features: Tensor,
    positions: Tensor,
    num_queries: int,
    local_maximum_first: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `num_queries` pixels of highest `activation_rank`, with what lies there.

    Of equal ranks the lower pixel index wins. The choice itself has no gradient.

    Args:
        class_logits: [B, K + 1, h, w], of which the last class is no-object
        features: [B, C, h, w]
        positions: [1 or B, C, h, w], in the dtype of `features`
        num_queries: at most h * w
        local_maximum_first: see `activation_rank`

    Returns:
        features [B, N, C], positions [B, N, C] and row-major pixel indices [B, N] int64 of the
        chosen pixels, in ascending order of the index

    Raises:
        ValueError: shapes or numbers that do not fit, by name.
    """
    _check(class_logits, features, positions, num_queries)
    return _select_queries(class_logits, features, positions, num_queries, local_maximum_first)


def definition(
    class_logits: Tensor,
    features: Tensor,
    positions: Tensor,
    num_queries: int,
    local_maximum_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rank = activation_rank(class_logits, local_maximum_first)
    by_rank = rank.sort(dim=1, descending=True, stable=True).indices
    indices = by_rank[:, :num_queries].sort(dim=1).values
    return _gather(features, indices), _gather(positions, indices), indices


_select_queries = torch.library.custom_op("fastinst::select_queries", mutates_args=())(definition)


def _gather(pixels: Tensor, indices: Tensor) -> Tensor:
    """[1 or B, C, h, w] at [B, N] to [B, N, C]."""
    rows = pixels.flatten(2).transpose(1, 2).expand(indices.shape[0], -1, -1)
    return rows.gather(1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


@_select_queries.register_fake
def _(class_logits, features, positions, num_queries, local_maximum_first):
    shape = (features.shape[0], num_queries, features.shape[1])
    indices = features.new_empty(shape[:2], dtype=torch.int64)
    return features.new_empty(shape), positions.new_empty(shape), indices


def _setup_context(ctx, inputs, output):
    _, features, positions, _, _ = inputs
    ctx.features_shape, ctx.positions_shape = features.shape, positions.shape
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_features, grad_positions, _):
    (indices,) = ctx.saved_tensors
    return (
        None,
        _scatter(grad_features, indices, ctx.features_shape) if ctx.needs_input_grad[1] else None,
        _scatter(grad_positions, indices, ctx.positions_shape) if ctx.needs_input_grad[2] else None,
        *(None, None),
    )


def _scatter(grad: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of `_gather`."""
    batch, channels = grad.shape[0], grad.shape[2]
    rows = grad.new_zeros(batch, channels, shape[2] * shape[3])
    index = indices.unsqueeze(1).expand(-1, channels, -1)
    maps = rows.scatter(2, index, grad.transpose(1, 2)).reshape(batch, *shape[1:])
    return maps.sum_to_size(shape)


_select_queries.register_autograd(_backward, setup_context=_setup_context)


def _check(class_logits: Tensor, features: Tensor, positions: Tensor, num_queries: int) -> None:
    named = (("class_logits", class_logits), ("features", features), ("positions", positions))
    if features.dim() != 4:
        raise ValueError(f"features must have shape [B, C, h, w], got {tuple(features.shape)}")
    batch, _, height, width = features.shape
    for name, tensor in named:
        if tensor.dim() != 4 or tuple(tensor.shape[2:]) != (height, width):
            raise ValueError(
                f"{name} must have shape [B, C, {height}, {width}], got {tuple(tensor.shape)}"
            )
        if tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}, features on {features.device}")
    if not class_logits.is_floating_point():
        raise ValueError(f"class_logits must be a floating-point tensor, got {class_logits.dtype}")
    if class_logits.shape[0] != batch or class_logits.shape[1] < 2:
        raise ValueError(
            f"class_logits must have shape [{batch}, K + 1 >= 2, {height}, {width}], "
            f"got {tuple(class_logits.shape)}"
        )
    if positions.shape[0] not in (1, batch) or positions.dtype != features.dtype:
        raise ValueError(
            f"positions must have 1 or {batch} maps of {features.dtype}, got "
            f"{positions.shape[0]} of {positions.dtype}"
        )
    if not 0 < num_queries <= height * width:
        raise ValueError(f"num_queries must be in 1..{height * width}, got {num_queries}")
