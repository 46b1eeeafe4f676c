"""The baseline of the speed ratios computes what the model computes."""

import pytest
import torch
from torch import nn

from fastinst import create_model
from fastinst.config import list_models, make_config
from fastinst.errors import InputError
from fastinst.results import postprocess
from fastinst.rivals.release_network import release_network, release_postprocess

SIZES = [(75, 90), (64, 80)]
ORIGINALS = [(60, 100), (130, 119)]


def model_of(name, **overrides):
    """With every tensor random, so that none of them can be left out unnoticed."""
    small = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 96}
    model = create_model(name, num_classes=5, **small, **overrides).double().eval()
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() <= 1:
            positive = key.endswith(("weight", "running_var"))
            value.uniform_(0.5, 1.5) if positive else value.uniform_(-0.2, 0.2)
        if key.endswith("bn3.weight"):
            value.mul_(0.2)
    model.positions.weight.data.normal_()
    return model


@pytest.fixture
def images():
    return [torch.randint(256, (3, *size), dtype=torch.uint8) for size in SIZES]


@pytest.mark.parametrize("name", [n for n in list_models() if make_config(n).is_fastinst])
@torch.inference_mode()
def test_it_equals_the_model(name, images):
    model = model_of(name, num_queries=12)
    batch, sizes = model.preprocess(images)
    network = release_network(model)
    own_batch, own_sizes = network.preprocess(images)
    torch.testing.assert_close(own_batch, batch, rtol=0, atol=1e-12)
    assert own_sizes == sizes
    expected, actual = model(batch), network(own_batch)
    order = actual["query_indices"].sort(dim=1)
    assert torch.equal(order.values, expected["query_indices"])
    for key in ("pred_logits", "pred_masks"):
        assert actual[key].shape == expected[key].shape
        for a, e, index in zip(actual[key], expected[key], order.indices, strict=True):
            torch.testing.assert_close(a[index], e, rtol=1e-9, atol=1e-9 * e.abs().max().item())

    found = postprocess(expected, sizes, ORIGINALS, 20)
    straight = release_postprocess(actual, sizes, ORIGINALS, 20)
    for instances, (scores, labels, masks) in zip(found, straight, strict=True):
        scores, best = scores.sort(descending=True)
        torch.testing.assert_close(scores, instances.scores, rtol=1e-9, atol=0)
        assert masks.dtype == torch.float64
        some = int((scores > 0).sum())  # empty masks come in any order
        assert some > 5
        assert torch.equal(labels[best[:some]], instances.labels[:some])
        assert torch.equal(masks[best[:some]], instances.masks[:some].double())


def test_its_stages_are_its_forward(images):
    network = release_network(model_of("fastinst-d1-r18-192"))
    batch, _ = network.preprocess(images)
    stages = dict(network.stages(batch))
    assert tuple(stages) == ("backbone", "pixel decoder", "decoder")
    outputs = network(batch)
    assert all(torch.equal(outputs[key], value) for key, value in stages["decoder"].items())


def test_it_does_what_the_release_does(images, monkeypatch):
    """Attention with weights and a bool mask for each head, the pixels mapped for every head."""
    network = release_network(model_of("fastinst-d3-r50-640"))
    calls, mapped = [], []

    def spy(self, *args, **kwargs):
        output, weights = forward(self, *args, **kwargs)
        calls.append((kwargs.get("attn_mask"), weights))
        return output, weights

    forward = nn.MultiheadAttention.forward
    monkeypatch.setattr(nn.MultiheadAttention, "forward", spy)
    for head in network.heads:
        head.pixel_map.register_forward_hook(lambda *args: mapped.append(args[2].shape))
    batch, _ = network.preprocess(images)
    network(batch)
    masks = [mask for mask, _ in calls if mask is not None]
    assert len(calls) == 9 and all(weights is not None for _, weights in calls)
    length = batch.shape[2] * batch.shape[3] // 64
    assert [tuple(mask.shape) for mask in masks] == [(4, masks[0].shape[1], length)] * 3
    assert len(mapped) == len(network.heads) == 4 and {shape[0] for shape in mapped} == {length}


def test_the_model_is_left_alone(images):
    model = model_of("fastinst-d1-r18-192").train()
    network = release_network(model)
    network.positions.data.zero_()
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert model.positions.weight.abs().sum() > 0


def test_models_that_the_release_lacks():
    with pytest.raises(InputError, match="the release has FastInst alone"):
        release_network(create_model("mask2former-light-r50-640"))
