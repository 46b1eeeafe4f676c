"""The operators that FastInst is made of, each defined once.

Every one is a `torch.library.custom_op` whose Python body is its definition in plain PyTorch;
a compiled kernel (`csrc`) may override it for one device under the same name. Only `linear` is
none: it chooses among PyTorch's own.
"""

from fastinst.ops.attention_mask import attention_mask
from fastinst.ops.attention_to_queries import attention_to_queries
from fastinst.ops.bits import pack_bits, unpack_bits
from fastinst.ops.deform_conv2d import deform_conv2d
from fastinst.ops.encode_masks import encode_masks
from fastinst.ops.kernels import active_kernels, load_kernels
from fastinst.ops.linear import linear
from fastinst.ops.masked_cross_attention import masked_cross_attention
from fastinst.ops.point_losses import point_losses
from fastinst.ops.random_points import random_points
from fastinst.ops.read_out_masks import read_out_masks
from fastinst.ops.sample_masks import sample_masks
from fastinst.ops.select_queries import activation_rank, select_queries
from fastinst.ops.uncertain_points import uncertain_points

__all__ = [
    "activation_rank",
    "active_kernels",
    "attention_mask",
    "attention_to_queries",
    "deform_conv2d",
    "encode_masks",
    "linear",
    "masked_cross_attention",
    "pack_bits",
    "point_losses",
    "random_points",
    "read_out_masks",
    "sample_masks",
    "select_queries",
    "uncertain_points",
    "unpack_bits",
]

load_kernels()
