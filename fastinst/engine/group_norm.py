"""Group normalisation of channels-last maps on a GPU."""

import torch
from torch import Tensor, nn


class ChannelsLastGroupNorm(nn.Module):
    """What `nn.GroupNorm` computes, with no change of layout.

    PyTorch's own turns a channels-last map into a contiguous one on a GPU, and leaves it so for
    what comes next (pytorch issue 111824). Statistics are float32 or wider.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.register_buffer("weight", norm.weight.detach(), persistent=False)
        self.register_buffer("bias", norm.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w]."""
        exact = torch.promote_types(x.dtype, torch.float32)
        groups = x.to(exact).unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0)  # [B, G]
        size = x.shape[1] // self.num_groups
        inverse = (variance + self.eps).rsqrt().repeat_interleave(size, 1, output_size=x.shape[1])
        scale = inverse * self.weight.to(exact)
        mean = mean.repeat_interleave(size, 1, output_size=x.shape[1])
        shift = self.bias.to(exact) - mean * scale
        y = torch.addcmul(shift[:, :, None, None], x.to(exact), scale[:, :, None, None])
        return y.to(x.dtype)
