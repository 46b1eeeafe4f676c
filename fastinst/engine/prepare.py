"""From the model that was trained to a network that does the same work in less time."""

import copy

import torch
from torch import Tensor, nn

from fastinst.attention import Attention, FeedForward
from fastinst.backbone import DeformableConv2d
from fastinst.engine.convolution import Convolution, DeformableConvolution, convolution
from fastinst.engine.decoder import PreparedAttention, PreparedFeedForward, prepared_mlp
from fastinst.engine.group_norm import ChannelsLastGroupNorm
from fastinst.engine.network import PreparedNetwork
from fastinst.engine.positions import KeptPositions
from fastinst.heads import MLP
from fastinst.model import FastInst

# Of a layer's attentions, those with pixels on one side, whose positions are always the same.
FIXED = {"pixel_attention": "x", "query_attention": "memory", "self_attention": ""}


@torch.no_grad()
def prepare(
    model: FastInst,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreparedNetwork:
    """A transformed copy of a model, for inference alone; the model stays as it is.

    What can be done ahead of time is done: norms are folded into the convolutions before them,
    with sum and ReLU in the same pass; weights lie as the libraries want them; what positions add
    to the attentions' maps is computed once for each size of input.

    Args:
        model: in any mode; trained norms are folded with their running statistics
        device: by default the model's
        dtype: of the maps. Folding happens in float64; sums and statistics are float32 or wider
    """
    device = torch.device(device or model.device)
    # Everything is derived from the one in float64; what has no rule is cast, and stays.
    exact = copy.deepcopy(model).eval().requires_grad_(False).cpu().double()
    network = copy.deepcopy(model).eval().requires_grad_(False).to(device, dtype)

    norms = _norms(exact.backbone)
    for name, module in exact.named_modules():
        if not isinstance(module, nn.Conv2d | DeformableConv2d):
            continue
        norm = norms.get(name)
        # Offsets of some pixels, in bfloat16, would be rounded to hundredths of a pixel.
        wide = dtype == torch.bfloat16 and name.endswith(".offset")
        kept = torch.float32 if wide else dtype
        prepared = _convolution(exact, name, norm, device, kept)
        network.set_submodule(name, prepared)
        if norm:
            network.set_submodule(norm, nn.Identity())
    network.backbone.normalised = lambda: _apply

    for name, module in exact.decoder.named_modules(prefix="decoder"):
        if isinstance(module, Attention):
            fixed = FIXED[name.rpartition(".")[2]]
            prepared = PreparedAttention(module, device, dtype, fixed)
        elif isinstance(module, FeedForward):
            prepared = PreparedFeedForward(module, device, dtype)
        elif isinstance(module, MLP):
            prepared = prepared_mlp(module, device, dtype)
        else:
            continue
        network.set_submodule(name, prepared)

    if device.type == "cuda":
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.GroupNorm):
                network.set_submodule(name, ChannelsLastGroupNorm(module))
    network.positions = KeptPositions(network.positions, network.decoder.strides)
    return PreparedNetwork(network)


def _norms(backbone: nn.Module) -> dict[str, str]:
    """The norm after each convolution, by their names: a backbone defines it right after."""
    norms, conv = {}, ""
    for name, module in backbone.named_modules(prefix="backbone"):
        if isinstance(module, nn.Conv2d | DeformableConv2d) and not name.endswith(".offset"):
            conv = name
        elif hasattr(module, "running_mean"):
            norms[conv] = name
    return norms


def _convolution(
    model: FastInst,
    name: str,
    norm: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Convolution | DeformableConvolution:
    """That of this name, with the norm of that name folded into its weight and bias."""
    conv = model.get_submodule(name)
    weight, bias = conv.weight, getattr(conv, "bias", None)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if norm:
        statistics = model.get_submodule(norm)
        scale = (statistics.running_var + statistics.eps).rsqrt() * statistics.weight
        weight = weight * scale[:, None, None, None]
        bias = statistics.bias + (bias - statistics.running_mean) * scale
    if isinstance(conv, DeformableConv2d):
        # A CPU's products are in float32 at least, whatever the dtype of the maps.
        kept = torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype
        to = {"device": device, "dtype": kept}
        return DeformableConvolution(weight.to(**to), bias.to(**to), conv.stride, conv.offset)
    weight, bias = weight.to(device, dtype), bias.to(device, dtype)
    return convolution(weight, bias, conv.stride[0], conv.padding[0])


def _apply(
    conv: Convolution, _: nn.Identity, x: Tensor, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """What `backbone.Normalised` does, now that the norm is in the convolution."""
    return conv(x, add, relu)
