"""Small models whose every part does something, and batches for them."""

import torch
from torch import Tensor

import fastinst
from fastinst.model import FastInst

SMALL = {"num_classes": 3, "hidden_dim": 64, "num_heads": 2, "ffn_dim": 64}
TINY = "fastinst-d1-r18-192"


def make_model(name: str = TINY, **overrides) -> FastInst:
    """With statistics that are not those of an identity, and offsets that are not zero."""
    torch.manual_seed(0)
    model = fastinst.create_model(name, **SMALL | overrides).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", "bias")):
                value.add_(0.1 * torch.randn_like(value))
            elif key.endswith("offset.weight"):
                value.normal_(std=0.001)  # offsets of some pixels
    return model


def random_batch(network, *sizes) -> Tensor:
    return network.preprocess([torch.randint(256, (3, *s), dtype=torch.uint8) for s in sizes])[0]


def relative_error(value, expected) -> float:
    return ((value.double() - expected).norm() / expected.norm()).item()
