"""What the decoders' layers are made of: attention and feed-forward networks, post-norm."""

import torch
from torch import Tensor, nn

from fastinst import ops


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
