"""The dual-path decoder (paper, section 3.3): pixels and queries update each other in turn."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops
from fastinst.queries import Queries


class Output(NamedTuple):
    """What one head says of N queries. Masks are computed where they are needed."""

    logits: Tensor  # [B, N, K + 1], the last class is no-object
    keys: Tensor  # [B, N, C]
    offsets: Tensor  # [B, N, 1]
    pixels: Tensor  # [B, L, C]

    def masks(self) -> Tensor:
        """Logits [B, N, L]."""
        return torch.baddbmm(self.offsets, self.keys, self.pixels.mT)


class State(NamedTuple):
    """Queries [B, N, C] and pixels [B, L, C] between two layers."""

    queries: Tensor
    pixels: Tensor


class Trace(NamedTuple):
    """All that supervision needs of a pass: L + 1 states, and what a head makes of each."""

    states: list[State]
    outputs: list[Output]
    masks: list[Tensor]  # [B, N_a, L] logits, of which nothing has a gradient


class Attention(nn.Module):
    """Multi-head attention with its residual and LayerNorm after it (post-norm).

    x = LN(x + MHA(q = x + x_position, k = memory + memory_position, v = memory))
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # q, k, v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        x_position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        attend: Tensor | None = None,
    ) -> Tensor:
        """x [B, N, C] reads memory [B, M, C], everywhere without `attend`.

        attend: see `ops.masked_cross_attention`
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = (x + x_position, memory + memory_position, memory)
        query, key, value = (
            ops.linear(y, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for y, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        if attend is None:
            out = ops.attention_to_queries(query, key, value)
        else:
            out = ops.masked_cross_attention(query, key, value, attend)
        out = ops.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        return self.norm(x + out)


class FeedForward(nn.Module):
    """x = LN(x + W2 ReLU(W1 x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = ops.linear(x, self.linear1.weight, self.linear1.bias, relu=True)
        return self.norm(x + ops.linear(hidden, self.linear2.weight, self.linear2.bias))


class DualPathLayer(nn.Module):
    """One exchange: pixels read the queries, then queries read the new pixels and each other."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.pixel_attention = Attention(dim, num_heads)
        self.pixel_ffn = FeedForward(dim, ffn_dim)
        self.query_attention = Attention(dim, num_heads)
        self.self_attention = Attention(dim, num_heads)
        self.query_ffn = FeedForward(dim, ffn_dim)

    def forward(
        self, state: State, query_position: Tensor, pixel_position: Tensor, attend: Tensor
    ) -> State:
        queries, pixels = state
        pixels = self.pixel_attention(pixels, pixel_position, queries, query_position)
        pixels = self.pixel_ffn(pixels)
        queries = self.query_attention(queries, query_position, pixels, pixel_position, attend)
        queries = self.self_attention(queries, query_position, queries, query_position)
        queries = self.query_ffn(queries)
        return State(queries, pixels)


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

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.class_mlp = MLP(dim, dim, dim, num_classes + 1)
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


class DualPathDecoder(nn.Module):
    """L dual-path layers, with a prediction head before the first and after each."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int, num_classes: int):
        super().__init__()
        self.layers = nn.ModuleList(
            DualPathLayer(dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.heads = nn.ModuleList(PredictionHead(dim, num_classes) for _ in range(num_layers + 1))

    def forward(
        self, p3: Tensor, pixel_position: Tensor, queries: Queries
    ) -> tuple[Tensor, Tensor]:
        """The last head's class logits [B, N_a, K + 1] and mask logits [B, N_a, h, w] on p3's grid.

        Earlier heads only mask the attention.

        p3: [B, C, h, w]
        pixel_position: [1, h w, C]
        """
        state, num_guided = self._start(p3, queries)
        head = self.heads[0]
        for layer, next_head in zip(self.layers, self.heads[1:], strict=True):
            attend = head.attention_mask(state.queries[:, :num_guided], state.pixels)
            state = layer(state, queries.positions, pixel_position, attend)
            head = next_head
        output = head(state.queries[:, :num_guided], state.pixels)
        return output.logits, output.masks().unflatten(2, tuple(p3.shape[2:]))

    def trace(self, p3: Tensor, pixel_position: Tensor, queries: Queries) -> Trace:
        """The same pass with every head's output and every state kept, for training."""
        state, num_guided = self._start(p3, queries)
        trace = Trace([], [], [])
        for layer, head in zip([None, *self.layers], self.heads, strict=True):
            if layer is not None:
                state = layer(state, queries.positions, pixel_position, trace.masks[-1] >= 0)
            output = head(state.queries[:, :num_guided], state.pixels)
            trace.states.append(state)
            trace.outputs.append(output)
            with torch.no_grad():
                trace.masks.append(output.masks())
        return trace

    def guided(
        self, trace: Trace, pixel_position: Tensor, queries: Queries, attend: Tensor
    ) -> list[Output]:
        """Each layer once more, from its own output, where ground-truth masks say (section 3.4).

        attend: where each of the N_a queries may look, see `ops.masked_cross_attention`
        """
        outputs = []
        for layer, head, state in zip(self.layers, self.heads[1:], trace.states[1:], strict=True):
            state = layer(state, queries.positions, pixel_position, attend)
            outputs.append(head(state.queries[:, : attend.shape[1]], state.pixels))
        return outputs

    @staticmethod
    def _start(p3: Tensor, queries: Queries) -> tuple[State, int]:
        pixels = p3.flatten(2).transpose(1, 2)
        return State(queries.features, pixels), queries.indices.shape[1]
