"""Operators without their kernels, and with them again afterwards."""

import warnings

import pytest
import torch

from fastinst import ops
from fastinst.ops.kernels import definitions_only

DEVICE = "cpu"


@pytest.fixture
def kernel():
    """A kernel of select_queries for the CPU that returns nothing but notes its calls."""
    calls = []

    def count(class_logits, features, positions, num_queries, local_maximum_first):
        calls.append(num_queries)
        kept = features.flatten(2)[:, :, :num_queries].mT.clone()
        return kept, kept.clone(), torch.zeros(kept.shape[:2], dtype=torch.int64)

    with torch.library._scoped_library("fastinst", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl("select_queries", count, "CPU", allow_override=True)
        yield calls


@torch.inference_mode()
def test_definitions_run_inside_only(kernel):
    logits, maps = torch.randn(2, 1, 4, 3, 3, device=DEVICE).unbind()

    def choose():
        return ops.select_queries(logits, maps, maps, 2)[2]

    assert choose().sum() == 0 and kernel == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with definitions_only("cpu"):
            assert choose().sum() > 0 and kernel == [2]
    assert choose().sum() == 0 and kernel == [2, 2]


def test_every_operator_has_its_definition():
    before = ops.active_kernels("cpu")
    with definitions_only("cpu"):
        maps = torch.randn(1, 2, 4, 4, device=DEVICE, requires_grad=True)
        offset = torch.zeros(1, 18, 4, 4, device=DEVICE)
        weight = torch.randn(2, 2, 3, 3, device=DEVICE)
        ops.deform_conv2d(maps, offset, weight, padding=1).sum().backward()
        plain = torch.nn.functional.conv2d(maps, weight, padding=1)
        expected = torch.autograd.grad(plain.sum(), maps)[0]
    torch.testing.assert_close(maps.grad, expected)
    assert ops.active_kernels("cpu") == before
