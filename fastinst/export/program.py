"""A model as one program of standard PyTorch operators, from RGB values to logits."""

import copy
import importlib
import io
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastinst.backbone import FrozenBatchNorm2d
from fastinst.config import ModelConfig
from fastinst.export.constants import fold_constants
from fastinst.export.quiet import quiet
from fastinst.model import FastInst
from fastinst.targets import SIZE_DIVISOR

# Models whose queries are learnt have no indices.
OUTPUTS = ("pred_logits", "pred_masks", "query_indices")

# Sizes up to which a dynamic program is made, in pixels and images.
MAX_EDGE = 8192
MAX_BATCH = 1024


class ImagesToLogits(nn.Module):
    """What is exported: the network with the normalisation before it.

    images: [B, 3, H, W] float32 RGB from 0 to 255; pixels of the mean colour become 0, which is
        what the model is padded with. Logits are returned in float32.
    """

    def __init__(self, network: FastInst):
        super().__init__()
        self.network = network
        config = network.config
        for name, values in (("mean", config.pixel_mean), ("std", config.pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalised = (images - self.mean) / self.std
        outputs = self.network(normalised.to(self.network.dtype))
        present = [outputs[name] for name in OUTPUTS if name in outputs]
        return tuple(x.float() if x.is_floating_point() else x for x in present)


def trace(
    model: FastInst,
    shape: tuple[int | None, int, int],
    dtype: torch.dtype = torch.float32,
    keep: tuple[str, ...] = (),
) -> ExportedProgram:
    """The program of `ImagesToLogits`, with batch norms folded.

    Its operators are PyTorch's own: this package's are replaced by their definitions.

    Args:
        model: on the CPU; it is copied
        shape: (batch, height, width) of the images, height and width multiples of 32. Where the
            batch is None it may be any when the program runs, and height and width any multiples
            of 32 that are at least these; see `least_edge`
        dtype: that it computes in; its input and its logits are float32 in any case
        keep: names of operators in `fastinst.ops` that stay as they are
    """
    network = copy.deepcopy(model).eval().to(dtype)
    _freeze_norms(network, model)
    module = ImagesToLogits(network).requires_grad_(False)
    batch, *edges = shape
    shapes = None
    if batch is None:
        rows, columns = (
            SIZE_DIVISOR * Dim(name, min=edge // SIZE_DIVISOR, max=MAX_EDGE // SIZE_DIVISOR)
            for name, edge in zip(("rows", "columns"), edges, strict=True)
        )
        shapes = ({0: Dim("batch", max=MAX_BATCH), 2: rows, 3: columns},)
        # Numbers that differ and are not 1, which export would take for the only ones there are.
        batch, edges = 2, [edges[0] + SIZE_DIVISOR, edges[1] + 2 * SIZE_DIVISOR]
    images = (torch.rand(batch, 3, *edges),)
    definitions = {op: f for op, f in _definitions().items() if op._opname not in keep}
    with torch.no_grad(), quiet():
        program = torch.export.export(module, images, dynamic_shapes=shapes)
        graph = program.run_decompositions(definitions).module(check_guards=False)
        fold_constants(graph)
        return torch.export.export(graph, images, dynamic_shapes=shapes)


def to_bytes(program: ExportedProgram, texts: dict[str, str]) -> bytes:
    """A .pt2 file, which `torch.export.load` reads, with texts among its extra files."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=texts)
    return file.getvalue()


def least_edge(config: ModelConfig) -> int:
    """Pixels that a dynamic program's height and width have at least: p4 has all queries then."""
    return SIZE_DIVISOR * (math.isqrt(config.num_queries) // 2 + 1)


def _freeze_norms(network: FastInst, model: FastInst) -> None:
    """Puts frozen batch norms, which can be folded, in place of all; in the model's precision."""
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            frozen = FrozenBatchNorm2d(len(norm.weight))
            frozen.load_state_dict(norm.state_dict(), strict=False)  # but for the step counter
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, frozen)


def _definitions() -> dict[torch._ops.OpOverload, Callable]:
    """By operator, what takes its place in the program."""
    names = ("attention_to_queries", "deform_conv2d", "masked_cross_attention", "select_queries")
    own = {
        getattr(torch.ops.fastinst, name).default: importlib.import_module(
            f"fastinst.ops.{name}"
        ).definition
        for name in names
    }
    return own | {
        torch.ops.fastinst.attention_mask.default: attention_mask,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }


def attention_mask(embeddings: Tensor, pixels: Tensor, bias: Tensor | None) -> Tensor:
    """`ops.attention_mask` as [B, N, L] bool, which `ops.masked_cross_attention` takes as well.

    ONNX has no bits.
    """
    logits = embeddings.float() @ pixels.float().transpose(1, 2)
    if bias is not None:
        logits = logits + bias.float().unsqueeze(-1)
    return logits >= 0


def adaptive_avg_pool2d(x: Tensor, size: list[int]) -> Tensor:
    """As two products of matrices, whose sizes may be dynamic."""
    rows, columns = (
        _averaging(given, wanted, x) for given, wanted in zip(x.shape[2:], size, strict=True)
    )
    return rows @ x @ columns.T


def _averaging(given: int, wanted: int, like: Tensor) -> Tensor:
    """[wanted, given]: row i averages the columns from floor(i g / w) to ceil((i + 1) g / w)."""
    window = torch.arange(wanted, device=like.device).unsqueeze(1)
    column = torch.arange(given, device=like.device)
    inside = (column >= window * given // wanted) & (column * wanted < (window + 1) * given)
    inside = inside.float()
    return (inside / inside.sum(dim=1, keepdim=True)).to(like.dtype)
