"""Instance activation-guided queries (paper, section 3.2) and position embeddings."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops
from fastinst.pixel_decoder import resize


class Queries(NamedTuple):
    """What enters the decoder, and what the training side supervises.

    N_a activation-guided queries come first, in ascending order of their pixels, then N_b
    auxiliary ones.
    """

    features: Tensor  # [B, N_a + N_b, C]
    positions: Tensor  # [B, N_a + N_b, C]
    indices: Tensor  # [B, N_a] int64, row-major pixel of p4
    locations: Tensor  # [B, N_a, 2] (x, y) in [0, 1] over the padded input
    class_logits: Tensor  # [B, K + 1, h, w] of every pixel of p4


class PositionEmbedding(nn.Module):
    """A learnable 10 x 10 map of positions, resized to whatever grid needs one."""

    def __init__(self, channels: int):
        super().__init__()
        # The release leaves this memory as it comes. From zeros, which tell no place from another,
        # training takes longer to find any masks (benchmarks/LOG.md).
        self.weight = nn.Parameter(torch.empty(1, channels, 10, 10).normal_())

    def forward(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """[1, C, *size]."""
        return resize(self.weight, size)

    def tokens(self, size: tuple[int, int] | torch.Size) -> Tensor:
        """The same, row by row: [1, h w, C]."""
        return self(size).flatten(2).transpose(1, 2)


class ActivationGuidedQueries(nn.Module):
    """Picks the pixels of p4 that look most like the instances' own, one class map each."""

    def __init__(
        self,
        hidden_dim: int,
        num_classes: int,
        num_queries: int,
        num_aux_queries: int,
        local_maximum_first: bool,
    ):
        super().__init__()
        self.num_queries = num_queries
        self.local_maximum_first = local_maximum_first
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1)
        self.classifier = nn.Conv2d(hidden_dim, num_classes + 1, 1)
        self.aux_features = nn.Parameter(torch.empty(num_aux_queries, hidden_dim).normal_())
        self.aux_positions = nn.Parameter(torch.empty(num_aux_queries, hidden_dim).normal_())

    def forward(self, p4: Tensor, positions: Tensor) -> Queries:
        """p4 [B, C, h, w] and its position map [1, C, h, w] to queries.

        A map of fewer than `num_queries` pixels gives one query per pixel.
        """
        batch, _, height, width = p4.shape
        class_logits = self.classifier(F.relu(self.conv(p4)))
        num_queries = min(self.num_queries, height * width)
        features, query_positions, indices = ops.select_queries(
            class_logits, p4, positions.to(p4.dtype), num_queries, self.local_maximum_first
        )
        exact = torch.promote_types(p4.dtype, torch.float32)
        column, row = (indices % width).to(exact), (indices // width).to(exact)
        locations = torch.stack([column / max(width - 1, 1), row / max(height - 1, 1)], dim=-1)
        return Queries(
            torch.cat([features, self.aux_features.to(p4.dtype).expand(batch, -1, -1)], dim=1),
            torch.cat([query_positions, self.aux_positions.to(p4.dtype).expand(batch, -1, -1)], 1),
            indices,
            locations,
            class_logits,
        )
