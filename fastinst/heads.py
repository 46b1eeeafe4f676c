"""The prediction heads: classes and masks of the queries between two layers of a decoder."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops


class Output(NamedTuple):
    """What one head says of N queries. Masks are computed where they are needed."""

    logits: Tensor  # [B, N, K + 1], the last class is no-object
    keys: Tensor  # [B, N, C]
    offsets: Tensor  # [B, N, 1]
    pixels: Tensor  # [B, L, C]

    def masks(self, pixels: Tensor | None = None) -> Tensor:
        """Logits [B, N, L], or of other pixels [B, l, C] than its own."""
        return torch.baddbmm(
            self.offsets, self.keys, (self.pixels if pixels is None else pixels).mT
        )


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *dims: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(i, o) for i, o in zip(dims[:-1], dims[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class PredictionHead(nn.Module):
    """Classes and masks of the queries; a mask is a dot product with the mapped pixels.

    With embeddings E and the mapping W x + b, E (W x + b) = (E W) x + E b: from this side no pixel
    is mapped. E W are the masks' keys, E b their offsets.
    """

    def __init__(self, dim: int, num_classes: int, class_layers: int = 3):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.class_mlp = MLP(*[dim] * class_layers, num_classes + 1)
        self.mask_mlp = MLP(dim, dim, dim, dim)
        self.pixel_map = nn.Linear(dim, dim)

    @torch.no_grad()
    def start_masks_at(self, probability: float) -> None:
        """Lets new masks have about this probability, less than one half, at every pixel.

        Masks have no bias of their own: the first channel becomes a constant, negative in the
        queries' embeddings and positive in the mapped pixels, and the only one with biases.
        """
        constant = math.sqrt(math.log((1 - probability) / probability))
        nn.init.zeros_(self.pixel_map.weight[0])
        for bias, first in (
            (self.mask_mlp.layers[-1].bias, -constant),
            (self.pixel_map.bias, constant),
        ):
            nn.init.zeros_(bias)
            bias[0] = first

    def forward(self, queries: Tensor, pixels: Tensor) -> Output:
        """queries [B, N, C], pixels [B, L, C]."""
        queries = self.norm(queries)
        return Output(self.class_mlp(queries), *self._keys(queries), pixels)

    def attention_mask(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Masks >= 0 as bits, [B, N, ceil(L / 32)] int32, without storing a logit.

        See `ops.attention_mask`.
        """
        keys, offsets = self._keys(self.norm(queries))
        # Under autocast the products are of another dtype than the normalised pixels.
        return ops.attention_mask(
            keys.to(pixels.dtype), pixels, offsets.squeeze(2).to(pixels.dtype)
        )

    def _keys(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.mask_mlp(normalised)
        weight, bias = self.pixel_map.weight, self.pixel_map.bias
        return embeddings @ weight, embeddings @ bias.unsqueeze(1)
