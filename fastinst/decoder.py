"""The decoders: the paper's dual path (section 3.3), and Mask2Former's, its baseline.

Both are a chain of layers with a prediction head before the first and after each, and a layer's
queries read the pixels where the head before it has seen their masks. In the dual path the pixels
of p3 read the queries in turn, so that they change from layer to layer. Without it they stay, and
layers take p5, p4 and p3 in turn (Mask2Former, arXiv 2112.01527, section 3.2).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops
from fastinst.pixel_decoder import resize
from fastinst.positions import Positions
from fastinst.queries import Queries


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


class State(NamedTuple):
    """Queries [B, N, C] and pixels of p3 [B, L, C] between two layers."""

    queries: Tensor
    pixels: Tensor


class Level(NamedTuple):
    """A map whose pixels the queries of a layer read; None stands for p3 as it is by then."""

    size: tuple[int, int]
    position: Tensor  # [1, l, C]
    memory: Tensor | None = None  # [B, l, C]
    pixels: Tensor | None = None  # [B, l, C] of p3 at this size, without gradient: what masks see


class Scene(NamedTuple):
    """A batch of images as a decoder sees it. Layers take the levels in turn."""

    size: tuple[int, int]  # of p3
    pixels: Tensor  # [B, L, C] of p3
    levels: list[Level]


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


class Layer(nn.Module):
    """Queries read pixels and each other. In the dual path the pixels read the queries before."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dual_path: bool):
        super().__init__()
        self.dual_path = dual_path
        if dual_path:
            self.pixel_attention = Attention(dim, num_heads)
            self.pixel_ffn = FeedForward(dim, ffn_dim)
        self.query_attention = Attention(dim, num_heads)
        self.self_attention = Attention(dim, num_heads)
        self.query_ffn = FeedForward(dim, ffn_dim)

    def forward(self, state: State, query_position: Tensor, level: Level, attend: Tensor) -> State:
        queries, pixels = state
        position = level.position
        if self.dual_path:
            pixels = self.pixel_attention(pixels, position, queries, query_position)
            pixels = self.pixel_ffn(pixels)
        memory = pixels if level.memory is None else level.memory
        queries = self.query_attention(queries, query_position, memory, position, attend)
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


class Decoder(nn.Module):
    """The passes through L layers and L + 1 heads, which may all be one.

    strides: of the levels that layers take in turn
    """

    strides: tuple[int, ...]
    layers: nn.ModuleList
    heads: Sequence[PredictionHead]

    def forward(self, scene: Scene, queries: Queries) -> tuple[Tensor, Tensor]:
        """The last head's class logits [B, N_a, K + 1] and mask logits [B, N_a, h, w] on p3's grid.

        Earlier heads only mask the attention.
        """
        state = State(queries.features, scene.pixels)
        for i, layer in enumerate(self.layers):
            level = self._level(scene, i)
            pixels = state.pixels if level.pixels is None else level.pixels
            attend = self.heads[i].attention_mask(_predicting(state, queries), pixels)
            state = layer(state, queries.positions, level, attend)
        output = self.heads[-1](_predicting(state, queries), state.pixels)
        return output.logits, output.masks().unflatten(2, scene.size)

    def trace(self, scene: Scene, queries: Queries) -> Trace:
        """The same pass with every head's output and every state kept, for training."""
        state = State(queries.features, scene.pixels)
        trace = Trace([], [], [])
        for i, head in enumerate(self.heads):
            if i > 0:
                level = self._level(scene, i - 1)
                seen = trace.masks[-1]
                if level.pixels is not None:
                    with torch.no_grad():
                        seen = trace.outputs[-1].masks(level.pixels)
                state = self.layers[i - 1](state, queries.positions, level, seen >= 0)
            output = head(_predicting(state, queries), state.pixels)
            trace.states.append(state)
            trace.outputs.append(output)
            with torch.no_grad():
                trace.masks.append(output.masks())
        return trace

    def guided(
        self, trace: Trace, scene: Scene, queries: Queries, attend: Sequence[Tensor]
    ) -> list[Output]:
        """Each layer once more, from its own output, where ground-truth masks say (section 3.4).

        attend: for each level where each of the N_a queries may look, see
            `ops.masked_cross_attention`
        """
        outputs = []
        for i, (layer, state) in enumerate(zip(self.layers, trace.states[1:], strict=True)):
            where = attend[i % len(attend)]
            state = layer(state, queries.positions, self._level(scene, i), where)
            outputs.append(self.heads[i + 1](_predicting(state, queries), state.pixels))
        return outputs

    @staticmethod
    def _level(scene: Scene, layer: int) -> Level:
        return scene.levels[layer % len(scene.levels)]


class DualPathDecoder(Decoder):
    """FastInst's: L dual-path layers on p3, and L + 1 heads."""

    strides = (8,)

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int, num_classes: int):
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(dim, num_heads, ffn_dim, dual_path=True) for _ in range(num_layers)
        )
        self.heads = nn.ModuleList(PredictionHead(dim, num_classes) for _ in range(num_layers + 1))

    def scene(self, features: tuple[Tensor, Tensor, Tensor], positions: Positions) -> Scene:
        """(p3, p4, p5) of the pixel decoder and the positions of their pixels to a scene."""
        p3, _, _ = features
        size = tuple(p3.shape[2:])
        return Scene(size, _tokens(p3), [Level(size, positions.tokens(size))])


class MaskedAttentionDecoder(Decoder):
    """Mask2Former's: L layers on p5, p4 and p3 in turn, and one head."""

    strides = (32, 16, 8)

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int, num_classes: int):
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(dim, num_heads, ffn_dim, dual_path=False) for _ in range(num_layers)
        )
        self.head = PredictionHead(dim, num_classes, class_layers=1)
        self.level_embedding = nn.Parameter(torch.empty(len(self.strides), dim).normal_())

    @property
    def heads(self) -> list[PredictionHead]:
        return [self.head] * (len(self.layers) + 1)

    def scene(self, features: tuple[Tensor, Tensor, Tensor], positions: Positions) -> Scene:
        """(p3, p4, p5) of the pixel decoder and the positions of their pixels to a scene."""
        p3, p4, p5 = features
        levels = []
        for feature, embedding in zip((p5, p4, p3), self.level_embedding, strict=True):
            size = tuple(feature.shape[2:])
            memory = _tokens(feature) + embedding.to(feature.dtype)
            # A mask is linear in the pixels, so that resized pixels have the resized masks.
            pixels = None if feature is p3 else _tokens(resize(p3.detach(), size))
            levels.append(Level(size, positions.tokens(size), memory, pixels))
        return Scene(tuple(p3.shape[2:]), _tokens(p3), levels)


def _tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h w, C]."""
    return x.flatten(2).transpose(1, 2)


def _predicting(state: State, queries: Queries) -> Tensor:
    return state.queries[:, : queries.num_predicting]
