"""ResNet, ResNet-d and the deformable variant."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastinst.backbone import (
    ARCHITECTURES,
    DeformableConv2d,
    FrozenBatchNorm2d,
    Normalised,
    ResNet,
)
from fastinst.errors import InputError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Those of torchvision's and timm's classifiers less the last layer.
        ("resnet18", 11_689_512 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
        ("resnet50d", 25_576_264 - 2_049_000),
    ],
)
def test_parameters_are_those_of_the_imagenet_models(name, parameters):
    with torch.device("meta"):
        backbone = ResNet(name, frozen_batch_norm=False)
        frozen = ResNet(name)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    counters = {key for key in backbone.state_dict() if key.endswith("num_batches_tracked")}
    assert set(frozen.state_dict()) == set(backbone.state_dict()) - counters
    assert all(p.dim() == 4 for p in frozen.parameters())  # convolutions alone are trained


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_have_strides_8_16_32(name):
    backbone = ResNet(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 32, 64))
    expansion = 1 if name == "resnet18" else 4
    assert backbone.channels == (128 * expansion, 256 * expansion, 512 * expansion)
    for feature, channels, stride in zip(features, backbone.channels, (8, 16, 32), strict=True):
        assert feature.shape == (1, channels, 32 // stride, 64 // stride)
        assert feature.isfinite().all()


def test_names_are_those_of_torchvision_and_timm():
    with torch.device("meta"):
        plain, variant_d = ResNet("resnet50").state_dict(), ResNet("resnet50d-dcn").state_dict()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.1.bias"} <= set(plain)
    assert {"layer4.2.conv3.weight", "layer4.2.bn3.running_var"} <= set(plain)
    assert {"conv1.0.weight", "conv1.1.weight", "conv1.3.weight", "conv1.6.weight"} <= set(
        variant_d
    )
    assert {"layer2.0.downsample.1.weight", "layer3.5.conv2.weight"} <= set(variant_d)


def test_the_stride_sits_in_the_3x3():
    with torch.device("meta"):
        for name in ("resnet50", "resnet50d-dcn"):
            block = ResNet(name).layer3[0]
            strides = block.conv1.stride, block.conv3.stride
            assert strides == ((1, 1), (1, 1)) and block.conv2.stride in (2, (2, 2))


def test_every_block_of_res4_and_res5_is_deformable():
    with torch.device("meta"):
        backbone = ResNet("resnet50d-dcn")
    for stage, deformable in ((1, False), (2, False), (3, True), (4, True)):
        for block in getattr(backbone, f"layer{stage}"):
            assert isinstance(block.conv2, DeformableConv2d) == deformable
    assert backbone.layer3[0].conv2.offset.out_channels == 18
    assert backbone.layer3[0].conv2.offset.bias.shape == (18,)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_deformable_convolution_starts_as_a_plain_one(stride):
    conv = DeformableConv2d(4, 6, stride)
    x = torch.randn(2, 4, 7, 9)
    expected = F.conv2d(x, conv.weight, stride=stride, padding=1)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
    conv(x).sum().backward()
    assert conv.offset.weight.grad.any()  # it can learn to deform


def test_offsets_are_dy_dx_of_each_tap():
    """All taps one row down is a plain convolution of the rows from 1 on."""
    conv = DeformableConv2d(2, 3, 1)
    with torch.no_grad():
        conv.offset.bias[0::2] = 1
    x = torch.randn(1, 2, 6, 5)
    expected = F.conv2d(F.pad(x, (1, 1, 0, 2)), conv.weight)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (1, 1), (6, 6)])
def test_the_shortcut_of_resnet_d_pools_in_ceil_mode(size):
    """A 2x2 window that sticks out averages only the pixels it has."""
    shortcut = ResNet("resnet50d").layer2[0].downsample
    pool = shortcut[0]
    x = torch.randn(2, 3, *size)
    height, width = size
    expected = torch.empty(2, 3, -(-height // 2), -(-width // 2))
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            window = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, :, row, column] = window.sum((2, 3)) / window[0, 0].numel()
    torch.testing.assert_close(pool(x), expected)
    assert [type(m) for m in shortcut][1:] == [nn.Conv2d, FrozenBatchNorm2d]
    assert shortcut[1].kernel_size == (1, 1) and shortcut[1].stride == (1, 1)


def test_odd_sizes_agree_on_both_paths_of_a_block():
    block = ResNet("resnet50d").layer2[0]
    assert block(torch.randn(1, 256, 7, 9), Normalised(block)).shape == (1, 512, 4, 5)


def test_layer1_of_resnet_d_has_no_pooling():
    assert not any(isinstance(m, nn.AvgPool2d) for m in ResNet("resnet50d").layer1.modules())


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 3, 3, 2, 1, bias=False), DeformableConv2d(4, 3, 2)])
def test_frozen_norm_is_a_fixed_affine_map(conv):
    conv, norm = conv.double(), FrozenBatchNorm2d(3).double().train()
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    mean, var, weight, bias = (
        before[key][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    expected = (conv(x) - mean) / (var + 1e-5).sqrt() * weight + bias
    found = Normalised(nn.ModuleList([conv, norm]))(conv, norm, x)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    inputs = (x, *conv.parameters())
    for a, b in zip(
        *(torch.autograd.grad(y, inputs, grad) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert not list(norm.parameters())
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_frozen_and_evaluated_norms_agree_in_every_place():
    """The same network once with frozen norms and once with trained ones that only evaluate."""
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        trained = ResNet(name, frozen_batch_norm=False).double().eval()
        for buffer in trained.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
        frozen = ResNet(name).double()
        state = trained.state_dict()
        frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
        x = torch.randn(1, 3, 40, 64, dtype=torch.float64)
        with torch.no_grad():
            for found, expected in zip(frozen(x), trained(x), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "resnet50d-dcn"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frozen_norms_keep_16_bits_and_round_little(name, dtype):
    backbone, x = ResNet(name), torch.randn(1, 3, 32, 64)
    for buffer in backbone.buffers():
        buffer.uniform_(0.5, 1.5)
    with torch.no_grad():
        expected = backbone(x)
        with torch.autocast(x.device.type, dtype):
            autocast = backbone(x)
        features = backbone.to(dtype)(x.to(dtype))
    for found in (features, autocast):
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            assert (a - b).abs().max() < 8 * torch.finfo(dtype).eps * b.abs().max()


def test_an_unknown_backbone_is_refused():
    with pytest.raises(
        InputError, match="^unknown backbone 'resnet34'; the backbones are resnet18"
    ):
        ResNet("resnet34")
