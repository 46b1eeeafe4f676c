"""PPM-FPN, the paper's pixel decoder: backbone features to three maps of one width."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear resize with half-pixel centres, as everywhere in FastInst."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def average_pool(x: Tensor, size: int) -> Tensor:
    """`F.adaptive_avg_pool2d`, which Apple's MPS has only where `size` divides x's sides."""
    if x.device.type != "mps":
        return F.adaptive_avg_pool2d(x, size)
    # https://github.com/pytorch/pytorch/issues/96056
    rows, columns = (_averages(side, size).to(x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def _averages(side: int, size: int) -> Tensor:
    """[n = size, s = side]: row i averages from floor(i s / n) to ceil((i + 1) s / n)."""
    window, place = torch.arange(size).unsqueeze(1), torch.arange(side)
    inside = (place >= window * side // size) & (place * size < (window + 1) * side)
    return inside / inside.sum(dim=1, keepdim=True)


def conv_norm(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.GroupNorm(32, out_channels)))


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling module: [B, C, h, w] to [B, C, h, w] with context of all scales."""

    sizes = (1, 2, 3, 6)

    def __init__(self, channels: int):
        super().__init__()
        width = channels // len(self.sizes)
        self.stages = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in self.sizes)
        self.bottleneck = nn.Conv2d(channels + width * len(self.sizes), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            resize(F.relu(stage(average_pool(x, size))), x.shape[-2:])
            for stage, size in zip(self.stages, self.sizes, strict=True)
        ]
        return F.relu(self.bottleneck(torch.cat([*pooled, x], dim=1)))


class PixelDecoder(nn.Module):
    """(res3, res4, res5) to (p3, p4, p5), each [B, hidden_dim, h, w], strides 8, 16, 32."""

    def __init__(self, in_channels: tuple[int, int, int], hidden_dim: int):
        super().__init__()
        self.laterals = nn.ModuleList(conv_norm(c, hidden_dim, 1) for c in in_channels)
        self.outputs = nn.ModuleList(conv_norm(hidden_dim, hidden_dim, 3) for _ in in_channels)
        self.ppm = PyramidPooling(hidden_dim)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        lateral3, lateral4, lateral5 = (
            lateral(x) for lateral, x in zip(self.laterals, features, strict=True)
        )
        output3, output4, output5 = self.outputs
        p5 = F.relu(output5(self.ppm(lateral5)))
        p4 = F.relu(output4(lateral4 + resize(p5, lateral4.shape[-2:])))
        p3 = F.relu(output3(lateral3 + resize(p4, lateral3.shape[-2:])))
        return p3, p4, p5
