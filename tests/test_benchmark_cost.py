"""What a model costs, and the model with random weights that stands for trained ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastinst.results
from fastinst import create_model, ops
from fastinst.benchmarking import cost
from fastinst.predictor import Predictor

CPU = torch.device("cpu")
NAME = "fastinst-d1-r18-192"


def image(height, width):
    return np.random.default_rng(1).integers(256, size=(height, width, 3), dtype=np.uint8)


def test_working_memory():
    def call():
        return torch.ones(64 << 20, dtype=torch.uint8).clone()  # two of them at once

    needed = cost.working_memory(call, CPU)
    if needed is None:
        pytest.skip("this system does not tell")
    assert 120 << 20 < needed < 170 << 20
    assert cost.working_memory(lambda: None, CPU) < 8 << 20


@torch.inference_mode()
def test_random_weights_read_out_every_query(monkeypatch):
    """Of fresh weights, few queries have all of the best (query, class) pairs."""
    seen = []

    read_out_masks = ops.read_out_masks

    def count(masks, *args, **kwargs):
        seen.append(masks)
        return read_out_masks(masks, *args, **kwargs)

    monkeypatch.setattr(fastinst.results.ops, "read_out_masks", count)
    distinct = []
    for model in (create_model(NAME).eval(), cost.random_model(NAME).eval()):
        Predictor(model, engine=False)(image(48, 64))
        distinct.append(len(seen[-1].flatten(1).unique(dim=0)))
    assert distinct[0] < distinct[1] == 100


@torch.inference_mode()
def test_random_weights_fit_float16():
    model = cost.random_model("fastinst-d3-r101-640").eval()
    batch, _ = model.preprocess([torch.from_numpy(image(64, 64)).permute(2, 0, 1)])
    assert max(feature.abs().max() for feature in model.backbone(batch)) < 6e3


def test_flops_of_our_operators():
    """They count as the convolution and the two products that they stand for."""

    def count(function, *args):
        with FlopCounterMode(display=False, custom_mapping=cost.FLOPS) as counter:
            function(*(torch.empty(shape, device="meta") for shape in args))
        return counter.get_total_flops()

    shapes = (2, 6, 9, 8), (5, 6, 3, 3)
    plain = count(lambda x, w: F.conv2d(x, w, stride=2, padding=1), *shapes)
    deformable = count(
        lambda x, w, o: ops.deform_conv2d(x, o, w, stride=2, padding=1), *shapes, (2, 18, 5, 4)
    )
    assert deformable == plain > 0

    shapes = (2, 3, 7, 4), (2, 3, 11, 4), (2, 3, 11, 4)
    plain = count(lambda q, k, v: (q @ k.transpose(2, 3)) @ v, *shapes)
    masked = count(
        lambda q, k, v, a: ops.masked_cross_attention(q, k, v, a > 0), *shapes, (2, 6, 11)
    )
    assert masked == plain > 0
    assert count(ops.attention_to_queries, *shapes) == plain

    shapes = (2, 5, 8), (2, 11, 8), (2, 5)
    plain = count(lambda e, x, b: e @ x.transpose(1, 2), *shapes)
    assert count(ops.attention_mask, *shapes) == plain > 0
