"""From the model that was trained to a network that does the same work in less time."""

import copy

import torch
from torch import Tensor, nn

from fastinst.backbone import DeformableConv2d
from fastinst.decoder import MLP, Attention, FeedForward
from fastinst.engine.convolution import Convolution, DeformableConvolution, convolution
from fastinst.engine.decoder import PreparedAttention, PreparedFeedForward, prepared_mlp
from fastinst.engine.group_norm import ChannelsLastGroupNorm
from fastinst.engine.network import PreparedNetwork
from fastinst.engine.positions import KeptPositions
from fastinst.model import FastInst
from fastinst.targets import padded_size

# Of a layer's attentions, those with pixels on one side, whose positions are always the same.
FIXED = {"pixel_attention": "x", "query_attention": "memory", "self_attention": ""}

# Image edges of the passes that show a network's shapes.
SURVEYED = (64, 128)


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

    input_sizes, norms = _survey(exact)
    for name, input_size in input_sizes.items():
        norm = norms.get(name)
        # Offsets of some pixels, in bfloat16, would be rounded to hundredths of a pixel.
        wide = dtype == torch.bfloat16 and name.endswith(".offset")
        kept = torch.float32 if wide else dtype
        prepared = _convolution(exact, name, norm, input_size, device, kept)
        network.set_submodule(name, prepared)
        if norm:
            network.set_submodule(norm, nn.Identity())
    if norms:
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


def _survey(model: FastInst) -> tuple[dict[str, list[int]], dict[str, str]]:
    """What a pass of a test image does: the size of each convolution's input, and the norm that
    follows it in the backbone, by their names.
    """
    names = {module: name for name, module in model.named_modules()}
    seen, norms = {}, {}
    apply = model.backbone.normalised()

    def note_size(conv: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.setdefault(names[conv], set()).add(inputs[0].shape)

    def note_norm(conv, norm, x, add=None, relu=False) -> Tensor:
        norms[names[conv]] = names[norm]
        conv(x)  # which `apply` does not call if it folds the norm into the weight
        return apply(conv, norm, x, add, relu)

    hooks = [
        module.register_forward_pre_hook(note_size)
        for module in names
        if isinstance(module, nn.Conv2d | DeformableConv2d)
    ]
    model.backbone.normalised = lambda: note_norm
    # Two small passes tell which sizes grow with the image; the pooled ones do not.
    for edge in SURVEYED:
        model(torch.zeros(1, 3, edge, edge, dtype=model.dtype))
    del model.backbone.normalised
    for hook in hooks:
        hook.remove()

    full = padded_size(model.config.test_short_edge, model.config.test_max_edge)
    sizes = {}
    for name, shapes in seen.items():
        small, large = min(shapes), max(shapes)
        lengths = zip(small[2:], large[2:], full, strict=True)
        size = [b * edge // SURVEYED[1] if b > a else b for a, b, edge in lengths]
        sizes[name] = [1, large[1], *size]
    return sizes, norms


def _convolution(
    model: FastInst,
    name: str,
    norm: str | None,
    input_size: list[int],
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
    return convolution(weight, bias, conv.stride[0], conv.padding[0], input_size)


def _apply(
    conv: Convolution, _: nn.Identity, x: Tensor, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """What `backbone.Normalised` does, now that the norm is in the convolution."""
    return conv(x, add, relu)
