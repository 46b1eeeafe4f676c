"""What a training run starts with."""

import pytest
import torch

from fastinst import create_model
from fastinst.training.initial_model import MASK_PRIOR, initial_model
from fastinst.weights import save_checkpoint

NAME, OPTIONS = "fastinst-d1-r18-192", {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32}


def start(weights=None, name=NAME):
    return initial_model(
        *(name, 3, OPTIONS),
        size=64,
        weights=weights,
        batch_norm="train",
        images_per_norm=4,
        say=lambda line: None,
    )


@pytest.mark.parametrize("name", [NAME, "mask2former-light-r50-640"])
def test_new_masks_start_at_the_prior(name):
    model = start(name=name)
    for head in model.decoder.heads:
        masks = head(torch.randn(2, 20, 64), torch.randn(2, 50, 64).relu()).masks()
        assert 0.4 * MASK_PRIOR < masks.sigmoid().median() < 2 * MASK_PRIOR


def test_weights_start_as_they_are(tmp_path):
    saved = create_model(NAME, 3, **OPTIONS, frozen_batch_norm=False)
    save_checkpoint(tmp_path / "weights.pt", saved, None, None)
    state = start(tmp_path / "weights.pt").state_dict()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(state[name], tensor), name
