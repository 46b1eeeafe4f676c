"""Queries: instance activation-guided (paper, section 3.2), or learnt as Mask2Former's are."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops


class Queries(NamedTuple):
    """What enters the decoder, and what the training side supervises.

    N_a queries that predict come first, then N_b auxiliary ones. Where the former are
    activation-guided, they stand in ascending order of their pixels; learnt ones come from none.
    """

    features: Tensor  # [B, N_a + N_b, C]
    positions: Tensor  # [B, N_a + N_b, C]
    indices: Tensor | None = None  # [B, N_a] int64, row-major pixel of p4
    locations: Tensor | None = None  # [B, N_a, 2] (x, y) in [0, 1] over the padded input
    class_logits: Tensor | None = None  # [B, K + 1, h, w] of every pixel of p4

    @property
    def num_predicting(self) -> int:
        """N_a."""
        return (self.features if self.indices is None else self.indices).shape[1]


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


class LearnableQueries(nn.Module):
    """Queries that are the same for every image (Mask2Former, arXiv 2112.01527)."""

    def __init__(self, hidden_dim: int, num_queries: int):
        super().__init__()
        self.features = nn.Parameter(torch.empty(num_queries, hidden_dim).normal_())
        self.positions = nn.Parameter(torch.empty(num_queries, hidden_dim).normal_())

    def forward(self, p4: Tensor, _: Tensor) -> Queries:
        """As many for each image of p4 [B, C, h, w], wherever its pixels are."""
        return Queries(
            *(x.to(p4.dtype).expand(p4.shape[0], -1, -1) for x in (self.features, self.positions))
        )
