"""What the prepared network is made of, each against the plain thing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastinst import ops
from fastinst.attention import Attention, FeedForward
from fastinst.backbone import DeformableConv2d
from fastinst.engine import decoder
from fastinst.engine.convolution import (
    Convolution,
    ConvolutionInParts,
    DeformableConvolution,
    OneDnnConvolution,
    convolution,
    convolution_kind,
)
from fastinst.engine.decoder import PreparedAttention, PreparedFeedForward, prepared_mlp
from fastinst.engine.group_norm import ChannelsLastGroupNorm
from fastinst.engine.linear import linear
from fastinst.engine.positions import KEPT_SIZES, KeptPositions
from fastinst.heads import MLP
from fastinst.positions import PositionEmbedding

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
CPU = torch.device("cpu")


def check(found, expected, dtype, terms):
    """expected: in float64, sums of so many terms, whose roundings are a random walk"""
    assert found.dtype == dtype
    error = (found.double() - expected).abs().max() / expected.abs().max()
    accumulated = 1e-7 * terms**0.5 if dtype != torch.float64 else 1e-15 * terms**0.5
    assert error <= torch.finfo(dtype).eps + accumulated


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)], ids=lambda n: str(n)
)
def test_convolutions(kernel, stride, dtype):
    """With and without the sum and the ReLU, at the size it was made for and at others."""
    weight = torch.randn(24, 16, kernel, kernel).to(dtype) / kernel
    bias = torch.randn(24).to(dtype)
    conv = convolution(weight, bias, stride, kernel // 2)
    for size in ((1, 12, 20), (3, 12, 20), (2, 5, 7)):
        batch, height, width = size
        x = torch.randn(batch, 16, height, width).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        plain = F.conv2d(x.double(), weight.double(), bias.double(), stride, kernel // 2)
        other = torch.randn_like(plain).to(dtype).contiguous(memory_format=torch.channels_last)
        for add in (None, other):
            expected = plain if add is None else plain + add.double()
            for relu in (False, True):
                found = conv(x, None if add is None else add.clone(), relu)
                check(found, expected.relu() if relu else expected, dtype, 16 * kernel**2)
                assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(
    convolution_kind("cpu", torch.float32) is not OneDnnConvolution, reason="no oneDNN"
)
class TestOneDnn:
    def test_a_weight_is_laid_out_once_for_a_size(self, monkeypatch):
        """Of layouts that are equal one is kept, whatever the number of sizes."""
        conv = OneDnnConvolution(torch.randn(1024, 256, 1, 1), torch.zeros(1024), 1, 0)
        reorder, sizes = torch.ops.mkldnn._reorder_convolution_weight, []

        def count(*arguments):
            sizes.append(arguments[-1])
            return reorder(*arguments)

        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", count)
        shapes = [(1, 256, 40, 54), (1, 256, 40, 52), (1, 256, 40, 54), (2, 256, 3, 5)]
        for shape in shapes + shapes:
            x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            found = conv(x)
            check(found, F.conv2d(x.double(), conv.weight.double()), torch.float32, 256)
        assert sizes == [[1, 256, 40, 54], [1, 256, 40, 52], [2, 256, 3, 5]]
        again = [torch.Size([1, 256, 40, width]) for width in range(20, 60)]
        assert len({id(conv._laid_out(size)) for size in again}) == len(conv._layouts) <= 4

    def test_long_sums_in_float32_are_in_parts_and_err_less(self):
        weight, bias = torch.randn(32, 256, 3, 3), torch.randn(32)
        x = torch.randn(1, 256, 24, 24).contiguous(memory_format=torch.channels_last)
        expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        whole, parts = OneDnnConvolution(weight, bias, 1, 1), convolution(weight, bias, 1, 1)
        assert isinstance(parts, ConvolutionInParts)
        add = torch.randn(1, 32, 24, 24).contiguous(memory_format=torch.channels_last)
        for other in (None, add):
            wanted = (expected if other is None else expected + add.double()).relu()
            one, two = (
                (conv(x, None if other is None else add.clone(), True) - wanted).norm()
                for conv in (whole, parts)
            )
            assert two < 0.9 * one
        for dtype in (torch.bfloat16, torch.float64):
            kind = type(convolution(weight.to(dtype), bias.to(dtype), 1, 1))
            assert kind is convolution_kind("cpu", dtype)

    def test_sums_for_queries_are_in_parts_and_err_less(self):
        weight, bias, x = torch.randn(64, 256), torch.randn(64), torch.randn(1, 108, 256)
        add = torch.randn(1, 108, 64)
        expected = x.double() @ weight.double().T + bias.double()
        pairs = [(expected + add.double(), False, add), (expected.relu(), True, None)]
        for wanted, relu, other in pairs:
            one, parts = (
                (linear(weight, bias, relu, few_rows=few)(x, other) - wanted).norm()
                for few in (False, True)
            )
            assert parts < 0.9 * one


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolutions(stride, relu):
    plain = DeformableConv2d(8, 12, stride).double()
    nn.init.normal_(plain.offset.weight)
    weight, bias = plain.weight.detach(), torch.randn(12, dtype=torch.float64)
    offset = convolution(plain.offset.weight.detach(), plain.offset.bias.detach(), stride, 1)
    conv = DeformableConvolution(weight, bias, stride, offset)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = plain(x) + bias[:, None, None]
        add = torch.randn_like(expected)
        torch.testing.assert_close(conv(x, None, relu), expected.relu() if relu else expected)
        expected = expected + add
        torch.testing.assert_close(conv(x, add, relu), expected.relu() if relu else expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_maps(dtype):
    weight, bias = torch.randn(24, 16).to(dtype) / 4, torch.randn(24).to(dtype)
    for batch, rows in ((1, 1), (1, 37), (2, 108)):
        x = torch.randn(batch, rows, 16).to(dtype)
        expected = x.double() @ weight.double().T + bias.double()
        check(linear(weight, bias)(x), expected, dtype, 16)
        check(linear(weight, bias, relu=True)(x), expected.relu(), dtype, 16)
        for others in {1, batch}:
            add = torch.randn(others, rows, 24).to(dtype)
            before = add.clone()
            check(linear(weight, bias)(x, add), expected + add.double(), dtype, 16)
            assert torch.equal(add, before)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fixed", ["", "x", "memory"])
def test_attention(fixed, masked):
    attention = Attention(16, 2).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    prepared = PreparedAttention(attention, CPU, torch.float64, fixed)
    for _ in range(2):  # the positions of one turn must not serve the next
        x, memory = (torch.randn(2, n, 16, dtype=torch.float64) for n in (7, 37))
        x_position = torch.randn(1 if fixed == "x" else 2, 7, 16, dtype=torch.float64)
        memory_position = torch.randn(1 if fixed == "memory" else 2, 37, 16, dtype=torch.float64)
        attend = ops.pack_bits(torch.rand(2, 5, 37) < 0.5) if masked else None
        given = x, x_position, memory, memory_position, attend
        for _ in range(2):
            torch.testing.assert_close(prepared(*given), attention(*given))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 16, 17, 1000])
def test_feed_forward_in_parts(rows, monkeypatch):
    monkeypatch.setattr(decoder, "ROWS", 16)
    feed_forward = FeedForward(8, 32).double()
    for batch in (1, 3):
        x = torch.randn(batch, rows, 8, dtype=torch.float64)
        found = PreparedFeedForward(feed_forward, CPU, torch.float64)(x)
        torch.testing.assert_close(found, feed_forward(x))


@torch.no_grad()
def test_mlp():
    mlp, x = MLP(8, 16, 16, 5).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(prepared_mlp(mlp, CPU, torch.float64)(x), mlp(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_keeps_the_layout(dtype):
    """It is a GPU's; its sums are the same anywhere. The mean is large beside the deviation."""
    norm = nn.GroupNorm(32, 64).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 64, 5, 7, dtype=torch.float64) + 10
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    expected = norm(x.double())
    found = ChannelsLastGroupNorm(norm.to(dtype))(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.bfloat16:  # its weight and bias have been rounded too
        assert (found.double() - expected).abs().max() < 0.01 * expected.abs().max()
    else:
        tolerance = 200 * torch.finfo(dtype).eps  # the mean's rounding, ten deviations away
        assert (found.double() - expected).abs().max() < tolerance * expected.abs().max()


@torch.no_grad()
def test_kept_positions():
    embedding = PositionEmbedding(6)
    kept = KeptPositions(embedding, strides=(8,))
    sizes = [(3, 4), (4, 3), (1, 12)]
    for size in sizes:
        assert torch.equal(kept(size), embedding(size))
        assert torch.equal(kept.tokens(torch.Size(size)), embedding.tokens(size))
        assert kept(size) is kept(size) and kept.tokens(size) is kept.tokens(size)
    first = kept.tokens((3, 4))
    for width in range(KEPT_SIZES):
        assert kept.tokens((3, 4)) is first
        kept.tokens((7, width + 1))
    for width in range(KEPT_SIZES):
        kept.tokens((8, width + 1))
    assert kept.tokens((3, 4)) is not first


def test_what_is_plain_where_nothing_else_is():
    """float64 has no oneDNN, and no device but these has anything."""
    conv = convolution(torch.ones(2, 2, 1, 1).double(), torch.zeros(2).double(), 1, 0)
    assert type(conv) is Convolution and conv.library == "PyTorch"
