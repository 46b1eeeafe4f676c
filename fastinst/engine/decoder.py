"""The decoder's attentions and feed-forward networks with their linear maps made ready."""

import torch
from torch import Tensor, nn

from fastinst import ops
from fastinst.attention import Attention, FeedForward
from fastinst.engine.linear import Linear, linear
from fastinst.engine.positions import PositionTerm
from fastinst.heads import MLP

# Pixels that the feed-forward network of a CPU takes at once: 4 MB of float32 between its layers,
# which stay in the cache and are the same memory each time.
ROWS = 1024


class PreparedAttention(nn.Module):
    """What `attention.Attention` computes.

    attention: in float64, on the CPU
    device, dtype: where and in what it is to run
    fixed: "x" or "memory", whose positions are the pixels' and so the same for every image; or ""
    """

    def __init__(self, attention: Attention, device: torch.device, dtype: torch.dtype, fixed: str):
        super().__init__()
        self.num_heads = attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.x_term = self.memory_term = None
        if fixed == "x":
            self.x_term = PositionTerm(weights[0], biases[0], device, dtype)
        elif fixed == "memory":
            self.memory_term = PositionTerm(weights[1], biases[1], device, dtype)
        terms = (self.x_term, self.memory_term, None)
        few_x, few_memory = fixed != "x", fixed != "memory"
        self.query, self.key, self.value = (
            _linear(weight, bias if term is None else bias * 0, device, dtype, few_rows=few)
            for weight, bias, term, few in zip(
                *(weights, biases, terms, (few_x, few_memory, few_memory)), strict=True
            )
        )
        self.out_proj = _linear(*attention.out_proj.parameters(), device, dtype, few_rows=few_x)
        self.norm = attention.norm.to(device, dtype)

    def forward(
        self,
        x: Tensor,
        x_position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        attend: Tensor | None = None,
    ) -> Tensor:
        query = _placed(self.query, x, x_position, self.x_term)
        key = _placed(self.key, memory, memory_position, self.memory_term)
        query, key, value = (
            y.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for y in (query, key, self.value(memory))
        )
        if attend is None:
            out = ops.attention_to_queries(query, key, value)
        else:
            out = ops.masked_cross_attention(query, key, value, attend)
        return self.norm(self.out_proj(out.transpose(1, 2).flatten(2), add=x))


class PreparedFeedForward(nn.Module):
    """What `attention.FeedForward` computes, on a CPU a part of the rows after the other."""

    def __init__(self, feed_forward: FeedForward, device: torch.device, dtype: torch.dtype):
        super().__init__()
        linear1, linear2 = feed_forward.linear1, feed_forward.linear2
        self.linear1 = _linear(*linear1.parameters(), device, dtype, relu=True)
        self.linear2 = _linear(*linear2.parameters(), device, dtype)
        self.norm = feed_forward.norm.to(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1).unsqueeze(0)
        if x.device.type != "cpu" or rows.shape[1] <= ROWS:
            return self._rows(x)
        parts = [self._rows(part) for part in rows.split(ROWS, dim=1)]
        return torch.cat(parts, dim=1).view(x.shape)

    def _rows(self, x: Tensor) -> Tensor:
        return self.norm(self.linear2(self.linear1(x), add=x))


def prepared_mlp(mlp: MLP, device: torch.device, dtype: torch.dtype) -> nn.Sequential:
    """What `heads.MLP` computes."""
    *hidden, last = mlp.layers
    return nn.Sequential(
        *(_linear(*x.parameters(), device, dtype, relu=True, few_rows=True) for x in hidden),
        _linear(*last.parameters(), device, dtype, few_rows=True),
    )


def _linear(
    weight: Tensor, bias: Tensor, device: torch.device, dtype: torch.dtype, **how: bool
) -> nn.Module:
    """See `fastinst.engine.linear.linear`."""
    return linear(weight.detach().to(device, dtype), bias.detach().to(device, dtype), **how)


def _placed(map: Linear, x: Tensor, position: Tensor, term: PositionTerm | None) -> Tensor:
    """map(x + position)."""
    return map(x + position) if term is None else map(x, add=term(position))
