"""Deformable convolution beside torchvision's, and beside the plain 3x3 convolution."""

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastinst import ops
from fastinst.rivals.case import PADDED, Case, backward, definition


def deform_conv2d_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    stages = (("res4 stride 2", 16, 256, 2), ("res4", 16, 256, 1), ("res5", 32, 512, 1))
    for layout in (torch.contiguous_format, torch.channels_last):
        for name, down, channels, stride in stages:
            size = [side // down * stride for side in PADDED]
            suffix = ", channels-last" if layout == torch.channels_last else ""
            yield from _deform_conv2d(name + suffix, channels, size, stride, layout, device, dtype)


def _deform_conv2d(name, channels, size, stride, layout, device, dtype) -> Iterator[Case]:
    randn = functools.partial(torch.randn, device=device, dtype=dtype)
    input = randn(1, channels, *size).to(memory_format=layout)
    offset = 2 * randn(1, 18, *(side // stride for side in size))
    weight, bias = randn(channels, channels, 3, 3) / math.sqrt(9 * channels), randn(channels)
    geometry = [stride, stride], [1, 1], [1, 1]

    def kernel(input, offset, weight, bias):
        return ops.deform_conv2d(input, offset, weight, bias, stride, 1)

    def plain(input, weight, bias):
        return F.conv2d(input, weight, bias, stride, 1)

    # Of either layout each convolution is given what suits it best.
    rowwise, plain_weight = input.contiguous(), weight.to(memory_format=layout)
    inputs = (input, offset, weight, bias)
    rivals = {
        "kernel": lambda: kernel(*inputs),
        "definition": lambda: definition("deform_conv2d")(*inputs, None, *geometry, False),
        "F.conv2d 3x3": lambda: plain(input, plain_weight, bias),
    }
    grad = torch.ones_like(offset[:, :1].expand(-1, channels, -1, -1), memory_format=layout)
    backward_definition = definition("deform_conv2d", "backward_definition")
    backward_rivals = {
        "kernel": backward(kernel, *inputs),
        "definition": lambda: backward_definition(grad, *inputs[:3], None, *geometry),
        "F.conv2d 3x3": backward(plain, input, plain_weight, bias),
    }
    absent = {}
    try:
        from torchvision.ops import deform_conv2d as torchvision
    except (ImportError, RuntimeError) as error:  # the latter from one for another torch
        absent["torchvision"] = str(error)
    else:
        call = functools.partial(torchvision, stride=stride, padding=1)
        rivals["torchvision"] = lambda: call(rowwise, *inputs[1:])
        backward_rivals["torchvision"] = backward(call, rowwise, *inputs[1:])
    yield Case("deform_conv2d", name, rivals, absent)
    yield Case("deform_conv2d_backward", name, backward_rivals, absent)
