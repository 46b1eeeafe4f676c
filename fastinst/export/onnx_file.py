"""A traced program as an ONNX model of standard operators."""

import torch
from torch.export import ExportedProgram

from fastinst.errors import InputError
from fastinst.export.program import OUTPUTS
from fastinst.export.quiet import quiet

FIRST_OPSET = 19  # the first with DeformConv

# Operators of `fastinst.ops` that ONNX has too.
KEPT = ("deform_conv2d",)


def require(package: str):
    """The optional package of that name; InputError says how to install it."""
    try:
        return __import__(package)
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {package}: pip install onnx onnxscript onnxruntime ({error})"
        ) from error


def to_onnx(program: ExportedProgram, opset: int, metadata: dict[str, str]) -> bytes:
    """The file's bytes. Without a domain of its own, so that every runtime of the opset loads it.

    Args:
        program: of `program.trace`, with the operators KEPT kept
        opset: FIRST_OPSET or later
        metadata: texts that are stored in the model

    Raises:
        InputError: onnx or onnxscript is not installed.
    """
    onnx_ir = (require("onnx"), require("onnxscript"), require("onnx_ir"))[-1]
    with quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            custom_translation_table=_translations(),
            input_names=["images"],
            output_names=list(OUTPUTS)[: len(program.graph_signature.user_outputs)],
        )
    model = converted.model
    _name_dimensions(model.graph)
    model.metadata_props.update(metadata)
    return onnx_ir.to_proto(model).SerializeToString()


def _translations() -> dict:
    """By operator, the function that writes it with ONNX's."""
    from onnxscript import opset19 as op

    def deform_conv2d(x, offset, weight, bias, mask, stride, padding, dilation, relu):
        out = op.DeformConv(
            x, weight, offset, bias, mask, strides=stride, pads=padding * 2, dilations=dilation
        )
        return op.Relu(out) if relu else out

    def stable_sort(x, stable=None, dim=-1, descending=False):
        # Of equal values TopK has the lower index first.
        length = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    return {
        torch.ops.fastinst.deform_conv2d.default: deform_conv2d,
        torch.ops.aten.sort.stable: stable_sort,
    }


def _name_dimensions(graph) -> None:
    """The dimensions that may vary, by what they are rather than by a symbol."""
    logits, masks, indices = OUTPUTS
    names = {
        "images": ("batch", "rgb", "height", "width"),
        logits: ("batch", "queries", "classes"),
        masks: ("batch", "queries", "rows", "columns"),
        indices: ("batch", "queries"),
    }
    for value in (*graph.inputs, *graph.outputs):
        for axis, name in enumerate(names[value.name]):
            if not isinstance(value.shape[axis], int):
                value.shape[axis] = name
