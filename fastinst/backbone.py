"""ResNet, ResNet-d and its deformable variant: images to features of stride 8, 16 and 32.

Modules are named as in torchvision and timm, whose ImageNet checkpoints so load as they are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst import ops
from fastinst.errors import InputError


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine map are buffers, never updated.

    `Normalised` applies it, together with the convolution before it.
    """

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


class Normalised:
    """`norm(conv(x))` for the convolutions of a backbone and the norms after them.

    A frozen norm is an affine map of each channel, which the convolution's weight and bias take
    in, so that no pass over the features is left of it. These maps are computed together for all
    norms of the backbone, in a few launches.
    """

    def __init__(self, backbone: nn.Module):
        norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
        self.affine: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        if norms:
            exact = torch.promote_types(norms[0].weight.dtype, torch.float32)
            weights, biases, means, variances = (
                [getattr(norm, name).to(exact) for norm in norms]
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scales = torch._foreach_rsqrt(torch._foreach_add(variances, FrozenBatchNorm2d.eps))
            scales = torch._foreach_mul(scales, weights)
            shifts = torch._foreach_addcmul(biases, means, scales, value=-1)
            self.affine = dict(zip(norms, zip(scales, shifts, strict=True), strict=True))

    def __call__(
        self,
        conv: nn.Module,
        norm: nn.Module,
        x: Tensor,
        add: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """norm(conv(x)) + add, then ReLU. Nothing else needs `add` any more."""
        y = self.normalise(conv, norm, x)
        if add is not None:
            y = y + add
        return F.relu(y) if relu else y

    def normalise(self, conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        if norm not in self.affine:
            return norm(conv(x))
        scale, shift = self.affine[norm]
        weight = (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype)
        bias = shift.to(weight.dtype)
        if isinstance(conv, DeformableConv2d):
            return conv.sample(x, weight, bias)
        return F.conv2d(x, weight, bias, conv.stride, conv.padding)


class DeformableConv2d(nn.Module):
    """A 3x3 deformable convolution, v1, whose offsets come from a plain 3x3 convolution.

    The offsets start at zero, so that it begins as the plain convolution with its weight.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.offset = nn.Conv2d(in_channels, 2 * 9, 3, stride, padding=1)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.sample(x, self.weight)

    def sample(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """With this weight and bias in place of its own."""
        return ops.deform_conv2d(x, self.offset(x), weight, bias, stride=self.stride, padding=1)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of ResNet-18."""

    expansion = 1

    def __init__(self, in_channels, width, stride, downsample, conv, norm):
        super().__init__()
        self.conv1 = conv(in_channels, width, stride)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 1)
        self.bn2 = norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor, normalised: Normalised) -> Tensor:
        y = normalised(self.conv1, self.bn1, x, relu=True)
        return normalised(self.conv2, self.bn2, y, shortcut(self, x, normalised), relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride and may be deformable), 1x1, of ResNet-50 and deeper."""

    expansion = 4

    def __init__(self, in_channels, width, stride, downsample, conv, norm):
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, stride)
        self.bn2 = norm(width)
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = norm(width * self.expansion)
        self.downsample = downsample

    def forward(self, x: Tensor, normalised: Normalised) -> Tensor:
        y = normalised(self.conv1, self.bn1, x, relu=True)
        y = normalised(self.conv2, self.bn2, y, relu=True)
        return normalised(self.conv3, self.bn3, y, shortcut(self, x, normalised), relu=True)


def shortcut(block: BasicBlock | Bottleneck, x: Tensor, normalised: Normalised) -> Tensor:
    """What a block adds to its result."""
    if isinstance(block.downsample, nn.Identity):
        return x
    *pool, conv, norm = block.downsample
    for module in pool:
        x = module(x)
    return normalised(conv, norm, x)


@dataclass(frozen=True)
class Architecture:
    """What tells one ResNet from another."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    variant_d: bool = False  # deep stem, average-pooled shortcuts
    deformable: tuple[bool, bool, bool, bool] = (False, False, False, False)


ARCHITECTURES = {
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Architecture(Bottleneck, (3, 4, 23, 3)),
    "resnet50d": Architecture(Bottleneck, (3, 4, 6, 3), variant_d=True),
    "resnet50d-dcn": Architecture(
        Bottleneck, (3, 4, 6, 3), variant_d=True, deformable=(False, False, True, True)
    ),
}


class ResNet(nn.Module):
    """Images [B, 3, H, W] to (res3, res4, res5), strides 8, 16, 32, with `channels` channels."""

    def __init__(self, name: str, frozen_batch_norm: bool = True):
        super().__init__()
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"unknown backbone {name!r}; the backbones are {known}")
        architecture = ARCHITECTURES[name]
        self.norm = FrozenBatchNorm2d if frozen_batch_norm else nn.BatchNorm2d
        self.channels = tuple(width * architecture.block.expansion for width in (128, 256, 512))

        if architecture.variant_d:
            self.conv1 = nn.Sequential(
                *(conv3x3(3, 32, 2), self.norm(32), nn.ReLU()),
                *(conv3x3(32, 32), self.norm(32), nn.ReLU()),
                conv3x3(32, 64),
            )
        else:
            self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = self.norm(64)

        self.layer1 = self._stage(architecture, 0, in_channels=64)
        self.layer2 = self._stage(architecture, 1, in_channels=64 * architecture.block.expansion)
        self.layer3 = self._stage(architecture, 2, in_channels=self.channels[0])
        self.layer4 = self._stage(architecture, 3, in_channels=self.channels[1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, architecture: Architecture, index: int, in_channels: int) -> nn.Sequential:
        conv = DeformableConv2d if architecture.deformable[index] else conv3x3
        width = 64 * 2**index
        blocks = []
        for i in range(architecture.depths[index]):
            stride = 2 if i == 0 and index > 0 else 1
            out_channels = width * architecture.block.expansion
            downsample = self._downsample(architecture, in_channels, out_channels, stride)
            blocks.append(
                architecture.block(in_channels, width, stride, downsample, conv, self.norm)
            )
            in_channels = out_channels
        return nn.Sequential(*blocks)

    def _downsample(self, architecture, in_channels, out_channels, stride) -> nn.Module:
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        if not architecture.variant_d:
            return nn.Sequential(
                conv1x1(in_channels, out_channels, stride), self.norm(out_channels)
            )
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(
            pool if stride == 2 else nn.Identity(),
            conv1x1(in_channels, out_channels),
            self.norm(out_channels),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normalised = self.normalised()
        x = F.max_pool2d(self._stem(images, normalised), 3, stride=2, padding=1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, normalised)
            features.append(x)
        return tuple(features[1:])

    def normalised(self) -> Normalised:
        """What applies the convolutions in one pass; the engine puts its own in place."""
        return Normalised(self)

    def _stem(self, images: Tensor, normalised: Normalised) -> Tensor:
        if not isinstance(self.conv1, nn.Sequential):
            return normalised(self.conv1, self.bn1, images, relu=True)
        first, first_norm, _, second, second_norm, _, third = self.conv1
        x = normalised(first, first_norm, images, relu=True)
        x = normalised(second, second_norm, x, relu=True)
        return normalised(third, self.bn1, x, relu=True)
