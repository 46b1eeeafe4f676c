"""Where the auxiliary queries look in the decoder's last layer (the paper's Figure III)."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastinst import ops
from fastinst.attention import Attention
from fastinst.decoder import DualPathDecoder
from fastinst.errors import InputError
from fastinst.figures.colour_map import colour_map
from fastinst.figures.observation import observe
from fastinst.predictor import Predictor
from fastinst.results import MASK_STRIDE

_DIMMED = 0.35  # of an image's lightness beneath a map


class AttentionMaps(NamedTuple):
    """weights: [heads, N_b, h, w], of each pixel of p3 in what a query reads; over all of them,
        with those of the padding, they sum to 1
    image_part: (height, width) of the image, which is at the maps' top left, as shares of theirs
    """

    weights: Tensor
    image_part: tuple[float, float]


@torch.inference_mode()
def auxiliary_attention(predictor: Predictor, image: np.ndarray) -> AttentionMaps:
    """The maps of all auxiliary queries, which nothing masks.

    predictor: of `load_observable`
    image: uint8 [H, W, 3]

    Raises:
        InputError: a model without auxiliary queries or the dual-path decoder.
    """
    model = predictor.network
    num_queries = model.config.num_aux_queries
    if num_queries == 0:
        raise InputError(
            f"{predictor.name} has no auxiliary queries; name a checkpoint of a model with "
            "num_aux_queries of at least 1"
        )
    if not isinstance(model.decoder, DualPathDecoder):
        raise InputError(f"{predictor.name} has not the dual-path decoder, whose maps these are")
    attention = model.decoder.layers[-1].query_attention
    observed = observe(predictor, attention, image)
    queries, query_position, pixels, pixel_position, _ = observed.inputs
    weights = attention_weights(
        attention, (queries + query_position)[:, -num_queries:], pixels + pixel_position
    )
    height, width = observed.padded_size
    part = (observed.image_size[0] / height, observed.image_size[1] / width)
    return AttentionMaps(
        weights[0].unflatten(2, (height // MASK_STRIDE, width // MASK_STRIDE)), part
    )


def attention_weights(attention: Attention, queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) of every head; what kernels of attention never write down.

    queries: [B, N, C]; keys: [B, M, C]; both with their positions
    Returns [B, heads, N, M] in float32 or wider.
    """
    exact = torch.promote_types(queries.dtype, torch.float32)
    of_queries, of_keys, _ = zip(
        attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
    )
    q, k = (
        ops.linear(x, *projection).unflatten(2, (attention.num_heads, -1)).transpose(1, 2).to(exact)
        for x, projection in ((queries, of_queries), (keys, of_keys))
    )
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)


def concentration(weights: Tensor, image_part: tuple[float, float]) -> float:
    """How many times the mean of a map [h, w] its largest weight in the image is."""
    height, width = np.ceil(np.multiply(weights.shape, image_part)).astype(int)
    return float(weights[:height, :width].max() / weights.mean())


def draw_attention(
    picture: np.ndarray, weights: Tensor, image_part: tuple[float, float]
) -> np.ndarray:
    """Weights in colours over a dimmed image, the largest within the image the lightest.

    picture: uint8 [H, W, 3], the image at any size
    weights: [h, w]; image_part: see `AttentionMaps`
    Returns a new uint8 [H, W, 3].
    """
    height, width = picture.shape[:2]
    bottom, right = np.multiply(weights.shape, image_part)
    values = Image.fromarray(weights.float().cpu().numpy())
    values = values.resize((width, height), Image.Resampling.BICUBIC, (0, 0, right, bottom))
    values = np.maximum(values, 0)
    values /= max(values.max(), np.finfo(np.float32).tiny)
    grey = np.array(Image.fromarray(picture).convert("L"), np.float32)[:, :, None] * _DIMMED
    opacity = np.sqrt(values)[:, :, None]
    return np.rint(grey * (1 - opacity) + colour_map(values) * opacity).astype(np.uint8)
