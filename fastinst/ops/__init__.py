"""The operators that FastInst is made of, each defined once.

Every one is a `torch.library.custom_op` whose Python body is its definition in plain PyTorch;
a compiled kernel may override it for one device under the same name.
"""

import torch

from fastinst.ops.deform_conv2d import deform_conv2d
from fastinst.ops.masked_cross_attention import masked_cross_attention
from fastinst.ops.read_out_masks import read_out_masks
from fastinst.ops.select_queries import activation_rank, select_queries

__all__ = [
    "activation_rank",
    "active_kernels",
    "deform_conv2d",
    "masked_cross_attention",
    "read_out_masks",
    "select_queries",
]


def active_kernels(device_type: str) -> dict[str, str]:
    """For each operator by name, what computes it on a device: "compiled" or "reference".

    A reference serves every device under one alias key of the dispatcher, so an operator has a
    kernel under a device's own key only if one has been registered for that device.
    """
    key = torch._C._dispatch_key_for_device(device_type)
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastinst::")]
    return {
        name.removeprefix("fastinst::"): "compiled"
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        else "reference"
        for name in sorted(names)
    }
