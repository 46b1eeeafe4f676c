"""The operators that FastInst is made of, each defined once.

Every one is a `torch.library.custom_op` whose Python body is its definition in plain PyTorch;
a compiled kernel may override it for one device under the same name.
"""

from fastinst.ops.deform_conv2d import deform_conv2d
from fastinst.ops.masked_cross_attention import masked_cross_attention
from fastinst.ops.read_out_masks import read_out_masks
from fastinst.ops.select_queries import activation_rank, select_queries

__all__ = [
    "activation_rank",
    "deform_conv2d",
    "masked_cross_attention",
    "read_out_masks",
    "select_queries",
]
