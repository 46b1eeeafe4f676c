"""The decoders: the paper's dual path (section 3.3), and Mask2Former's, its baseline.

Both are a chain of layers with a prediction head before the first and after each, and a layer's
queries read the pixels where the head before it has seen their masks. In the dual path the pixels
of p3 read the queries in turn, so that they change from layer to layer. Without it they stay, and
layers take p5, p4 and p3 in turn (Mask2Former, arXiv 2112.01527, section 3.2).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastinst.attention import Attention, FeedForward
from fastinst.heads import Output, PredictionHead
from fastinst.pixel_decoder import resize
from fastinst.positions import Positions
from fastinst.queries import Queries


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
