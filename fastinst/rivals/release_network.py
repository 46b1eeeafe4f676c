"""Inference as the authors' release does it, with the weights of a `FastInst`.

The baseline of the speed ratios: eager float32, contiguous NCHW, every norm a pass of its own,
`nn.MultiheadAttention` with its weights averaged for nobody, masks as float tensors for each head,
mask features mapped at every pixel for every head, and all masks resized twice.

The release's deformable convolution is detectron2's, which runs on CUDA alone. Here it is
torchvision's, of the same method, where that is installed, and else the operator's definition,
which on two cores of a CPU takes 0.6 of torchvision's time.
"""

import copy
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinst.attention import Attention, FeedForward
from fastinst.backbone import Bottleneck, DeformableConv2d
from fastinst.errors import InputError
from fastinst.heads import PredictionHead
from fastinst.model import FastInst
from fastinst.ops.select_queries import MINIMUM_PROBABILITY
from fastinst.pixel_decoder import resize
from fastinst.results import MASK_STRIDE
from fastinst.rivals.case import definition

try:
    from torchvision.ops import deform_conv2d
except (ImportError, RuntimeError):  # the latter from one for another torch
    deform_conv2d = None


def release_network(model: FastInst) -> "ReleaseNetwork":
    """The release's network with a copy of the model's weights, in the model's dtype.

    Raises InputError for a model that the release does not have.
    """
    if not model.config.is_fastinst:
        raise InputError(f"the release has FastInst alone, no {model.config.name} with its options")
    return ReleaseNetwork(model)


class ReleaseNetwork(nn.Module):
    """A batch of `preprocess` to what `FastInst.forward` returns; queries come best first."""

    def __init__(self, model: FastInst):
        super().__init__()
        model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self.config = model.config
        self.backbone = model.backbone
        self.pixel_decoder = model.pixel_decoder
        self.positions = model.positions.weight
        self.queries = model.queries
        self.layers = nn.ModuleList(ReleaseLayer(layer) for layer in model.decoder.layers)
        self.heads = model.decoder.heads
        self.eval().requires_grad_(False)

    def preprocess(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """As `FastInst.preprocess`."""
        to = {"dtype": self.positions.dtype, "device": self.positions.device}
        mean, std = torch.tensor([self.config.pixel_mean, self.config.pixel_std], **to).view(
            2, 3, 1, 1
        )
        normalised = [(image.to(**to) - mean) / std for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (-(-max(sides) // 32) * 32 for sides in zip(*sizes, strict=True))
        pads = ((0, width - w, 0, height - h) for h, w in sizes)
        batch = [F.pad(image, pad) for image, pad in zip(normalised, pads, strict=True)]
        return torch.stack(batch), sizes

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        *_, (_, outputs) = self.stages(batch)
        return outputs

    def stages(self, batch: Tensor) -> Iterator[tuple[str, object]]:
        """Yields each stage of `FastInst.stages` as it ends, with its result."""
        features = _backbone(self.backbone, batch)
        yield "backbone", features
        p3, p4 = _pixel_decoder(self.pixel_decoder, features)
        yield "pixel decoder", p3
        yield "decoder", self._decode(p3, p4)

    def describe(self) -> str:
        """How it computes, in one line."""
        dtype = str(self.positions.dtype).removeprefix("torch.")
        text = f"{dtype} on {self.positions.device}, eager, as the release computes"
        if not any(isinstance(module, DeformableConv2d) for module in self.backbone.modules()):
            return text
        by = "definition in PyTorch" if deform_conv2d is None else "torchvision"
        return f"{text}; deformable convolution: {by}"

    def _decode(self, p3: Tensor, p4: Tensor) -> dict[str, Tensor]:
        queries, query_positions, indices = self._propose(p4)
        aux = (self.queries.aux_features, self.queries.aux_positions)
        aux_features, aux_positions = (x[:, None].expand(-1, len(p4), -1) for x in aux)
        num_proposed, size = len(queries), p3.shape[2:]
        # Tokens first, as nn.MultiheadAttention has them.
        queries = torch.cat([queries, aux_features])
        query_positions = torch.cat([query_positions, aux_positions])
        pixels = p3.flatten(2).permute(2, 0, 1)
        pixel_positions = resize(self.positions, size).flatten(2).permute(2, 0, 1)
        pixel_positions = pixel_positions.expand(-1, len(p4), -1)
        for layer, head in zip(self.layers, self.heads, strict=False):
            masks = _masks(head, head.norm(queries[:num_proposed]), pixels, size)
            forbidden = layer.forbidden(masks, len(queries))
            queries, pixels = layer(queries, pixels, query_positions, pixel_positions, forbidden)
        head = self.heads[-1]
        normalised = head.norm(queries[:num_proposed])
        return {
            "pred_logits": head.class_mlp(normalised).transpose(0, 1),
            "pred_masks": _masks(head, normalised, pixels, size),
            "query_indices": indices,
        }

    def _propose(self, p4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features and positions [N, B, C] of the chosen pixels, and their indices [B, N]."""
        module = self.queries
        probability = module.classifier(F.relu(module.conv(p4))).softmax(dim=1)
        best = probability[:, :-1].argmax(dim=1)
        # A map for each class, which is 0 where another class is the best.
        one_hot = F.one_hot(best, probability.shape[1]).permute(0, 3, 1, 2)
        probability = probability * one_hot
        if module.local_maximum_first:
            probability = probability + _local_maxima(probability).to(probability.dtype)
        rank = probability[:, :-1].flatten(2).max(dim=1).values
        indices = rank.topk(min(module.num_queries, rank.shape[1])).indices
        index = indices.unsqueeze(1).expand(-1, p4.shape[1], -1)
        positions = resize(self.positions, p4.shape[2:]).expand_as(p4)
        features, positions = (x.flatten(2).gather(2, index) for x in (p4, positions))
        return features.permute(2, 0, 1), positions.permute(2, 0, 1), indices


class ReleaseLayer(nn.Module):
    """A dual-path layer whose attentions are nn.MultiheadAttention."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.pixel_attention, self.pixel_norm = _multihead(layer.pixel_attention)
        self.query_attention, self.query_norm = _multihead(layer.query_attention)
        self.self_attention, self.self_norm = _multihead(layer.self_attention)
        self.pixel_ffn, self.query_ffn = layer.pixel_ffn, layer.query_ffn

    def forward(self, queries, pixels, query_positions, pixel_positions, forbidden):
        placed = queries + query_positions
        read = self.pixel_attention(pixels + pixel_positions, placed, queries)[0]
        pixels = _feed_forward(self.pixel_ffn, self.pixel_norm(pixels + read))
        placed = queries + query_positions, pixels + pixel_positions
        read = self.query_attention(*placed, pixels, attn_mask=forbidden)[0]
        queries = self.query_norm(queries + read)
        placed = queries + query_positions
        read = self.self_attention(placed, placed, queries)[0]
        return _feed_forward(self.query_ffn, self.self_norm(queries + read)), pixels

    def forbidden(self, masks: Tensor, num_queries: int) -> Tensor:
        """Mask logits [B, N, h, w] to bool [B * heads, num_queries, L], True: may not look."""
        logits = F.pad(masks.flatten(2), (0, 0, 0, num_queries - masks.shape[1]), value=1.0)
        logits = logits.unsqueeze(1).repeat(1, self.query_attention.num_heads, 1, 1)
        forbidden = logits.flatten(0, 1) < 0
        forbidden[torch.where(forbidden.sum(-1) == forbidden.shape[-1])] = False
        return forbidden


def release_postprocess(
    outputs: dict[str, Tensor],
    image_sizes: list[tuple[int, int]],
    output_sizes: list[tuple[int, int]],
    max_instances: int = 100,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores [N], labels [N] and float masks [N, H, W] of each image, in the order of `topk`."""
    masks = outputs["pred_masks"]
    padded = [side * MASK_STRIDE for side in masks.shape[2:]]
    masks = resize(masks, padded)
    results = []
    for logits, mask, (height, width), size in zip(
        outputs["pred_logits"], masks, image_sizes, output_sizes, strict=True
    ):
        mask = resize(mask[None, :, :height, :width], size)[0]
        probability = logits.softmax(-1)[:, :-1]
        count = min(max_instances, probability.numel())
        scores, pairs = probability.flatten().topk(count, sorted=False)
        labels = pairs % probability.shape[1]
        mask = mask[pairs // probability.shape[1]]
        inside = (mask > 0).to(mask.dtype)
        total = (mask.sigmoid().flatten(1) * inside.flatten(1)).sum(1)
        scores = scores * (total / (inside.flatten(1).sum(1) + 1e-6))
        results.append((scores, labels, inside))
    return results


def _backbone(resnet: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(resnet.conv1, nn.Conv2d):
        x = resnet.conv1(images)
    else:
        x = images
        for module in resnet.conv1:
            if isinstance(module, nn.ReLU):
                x = F.relu_(x)
            else:
                x = module(x) if isinstance(module, nn.Conv2d) else _normalise(module, x)
    x = F.max_pool2d(F.relu_(_normalise(resnet.bn1, x)), 3, stride=2, padding=1)
    features = []
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for block in stage:
            x = _block(block, x)
        features.append(x)
    return tuple(features[1:])


def _block(block: nn.Module, x: Tensor) -> Tensor:
    shortcut = x
    if not isinstance(block.downsample, nn.Identity):
        *modules, norm = block.downsample
        for module in modules:
            shortcut = module(shortcut)
        shortcut = _normalise(norm, shortcut)
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        pairs.append((block.conv3, block.bn3))
    y = x
    for conv, norm in pairs:
        y = _normalise(norm, _convolve(conv, y))
        if conv is pairs[-1][0]:
            y += shortcut
        y = F.relu_(y)
    return y


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(conv, DeformableConv2d):
        return conv(x)
    offset, stride = conv.offset(x), conv.stride
    if deform_conv2d is not None:
        return deform_conv2d(x, offset, conv.weight, stride=stride, padding=1)
    geometry = [stride, stride], [1, 1], [1, 1]
    return definition("deform_conv2d")(x, offset, conv.weight, None, None, *geometry, False)


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.batch_norm(x, *statistics, eps=norm.eps)


def _pixel_decoder(module: nn.Module, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """p3 and p4."""
    lateral3, lateral4, lateral5 = (
        lateral(x) for lateral, x in zip(module.laterals, features, strict=True)
    )
    p5 = lateral5
    pooled = [
        resize(F.relu(stage(F.adaptive_avg_pool2d(p5, size))), p5.shape[2:])
        for stage, size in zip(module.ppm.stages, module.ppm.sizes, strict=True)
    ]
    p5 = F.relu(module.ppm.bottleneck(torch.cat([*pooled, p5], dim=1)))
    p5 = F.relu(module.outputs[2](p5))
    p4 = F.relu(module.outputs[1](lateral4 + resize(p5, lateral4.shape[2:])))
    p3 = F.relu(module.outputs[0](lateral3 + resize(p4, lateral3.shape[2:])))
    return p3, p4


def _masks(head: PredictionHead, queries: Tensor, pixels: Tensor, size: torch.Size) -> Tensor:
    """[B, N, h, w] logits of normalised queries [N, B, C] and pixels [L, B, C]."""
    features = head.pixel_map(pixels).permute(1, 2, 0).unflatten(2, tuple(size))
    return torch.einsum("bqc,bchw->bqhw", head.mask_mlp(queries.transpose(0, 1)), features)


def _feed_forward(module: FeedForward, x: Tensor) -> Tensor:
    return module.norm(x + module.linear2(F.relu(module.linear1(x))))


def _multihead(attention: Attention) -> tuple[nn.MultiheadAttention, nn.LayerNorm]:
    weight = attention.in_proj_weight
    to = {"dtype": weight.dtype, "device": weight.device}
    module = nn.MultiheadAttention(weight.shape[1], attention.num_heads, **to)
    module.load_state_dict(
        {k: v for k, v in attention.state_dict().items() if not k.startswith("norm.")}
    )
    return module, attention.norm


def _local_maxima(probability: Tensor) -> Tensor:
    """Where no neighbour in the same [h, w] map is larger."""
    height, width = probability.shape[2:]
    around = F.pad(probability, (1, 1, 1, 1))
    maxima = probability >= MINIMUM_PROBABILITY
    for dy, dx in itertools.product(range(3), range(3)):
        if (dy, dx) != (1, 1):
            maxima = maxima & (probability >= around[:, :, dy : dy + height, dx : dx + width])
    return maxima
