"""Models small enough to export in seconds, with weights that are far from special."""

import torch

import fastinst
from fastinst import backbone
from fastinst.model import FastInst

# `small_model` as the baseline.
MASK2FORMER = {
    "dual_path": False,
    "activation_guided": False,
    "mask_guided": False,
    "learnable_positions": False,
    "num_aux_queries": 0,
    "num_layers": 3,
}


def small_model(monkeypatch, deformable: bool = False, num_classes: int = 3, **options) -> FastInst:
    """One decoder layer of 64 channels after a network of four blocks, in evaluation mode.

    Without deformable convolutions its batch norms are trained ones, with them frozen.
    """
    monkeypatch.setitem(
        backbone.ARCHITECTURES,
        "small",
        backbone.Architecture(
            backbone.Bottleneck if deformable else backbone.BasicBlock,
            (1, 1, 1, 1),
            variant_d=deformable,
            deformable=(False, False, deformable, deformable),
        ),
    )
    small = {
        "backbone": "small",
        "frozen_batch_norm": deformable,
        "hidden_dim": 64,
        "num_heads": 2,
        "ffn_dim": 64,
        "num_queries": 20,
        "test_short_edge": 96,
        "test_max_edge": 128,
    }
    model = fastinst.create_model("fastinst-d1-r18-192", num_classes, **small | options)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_mean", "bias", "positions.weight")):
                tensor.uniform_(-0.2, 0.2)
            elif name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
                tensor.uniform_(0.5, 1.5)
            elif "conv2.offset" in name:
                tensor.uniform_(-0.05, 0.05)
    return model.eval()
