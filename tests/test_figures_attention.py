"""Attention maps are the weights that the model's own attention has, over the right pixels."""

import numpy as np
import pytest
import torch
from predictor_cases import random_images, tiny_model
from torch import nn

from fastinst.errors import InputError
from fastinst.figures.attention_maps import (
    attention_weights,
    auxiliary_attention,
    concentration,
    draw_attention,
)
from fastinst.figures.colour_map import colour_map
from fastinst.figures.observation import load_observable, observe

IMAGE = random_images([(50, 70)])[0]  # resized to 64 x 90, padded to 64 x 96


@pytest.fixture
def predictor():
    return load_observable(tiny_model(num_layers=2, num_aux_queries=3).double())


def last_attention(predictor):
    return predictor.network.decoder.layers[-1].query_attention


def test_the_weights_are_those_of_torch(predictor):
    ours = last_attention(predictor)
    theirs = nn.MultiheadAttention(64, 2, batch_first=True).double()
    nn.init.normal_(ours.in_proj_bias)
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("norm.")}
    theirs.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.randn(2, n, 64, generator=generator, dtype=torch.float64) for n in (5, 7)
    )
    _, expected = theirs(queries, keys, keys, average_attn_weights=False)
    torch.testing.assert_close(attention_weights(ours, queries, keys), expected)


def test_the_maps_are_what_the_last_layer_reads_by(predictor):
    maps = auxiliary_attention(predictor, IMAGE)
    weights = maps.weights
    assert weights.shape == (2, 3, 8, 12) and maps.image_part == (1, 90 / 96)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 3, dtype=torch.float64))

    # The attention's own output follows from them.
    attention = last_attention(predictor).requires_grad_(False)
    seen = observe(predictor, attention, IMAGE)
    x, _, pixels, _, _ = seen.inputs
    values = pixels[0] @ attention.in_proj_weight[-64:].T + attention.in_proj_bias[-64:]
    read = torch.einsum("hnl,lhd->nhd", weights.flatten(2), values.unflatten(1, (2, 32)))
    expected = attention.norm(x[0, -3:] + attention.out_proj(read.flatten(1)))
    torch.testing.assert_close(seen.output[0, -3:], expected)


def test_no_auxiliary_queries():
    predictor = load_observable(tiny_model(num_aux_queries=0))
    with pytest.raises(InputError, match="fastinst-d1-r18-192 has no auxiliary queries"):
        auxiliary_attention(predictor, IMAGE)


def test_another_decoder():
    predictor = load_observable(tiny_model(dual_path=False))
    with pytest.raises(InputError, match="not the dual-path decoder"):
        auxiliary_attention(predictor, IMAGE)


def test_a_map_is_drawn_over_the_image_and_not_over_its_padding():
    weights = torch.zeros(8, 12)
    weights[2, 9], weights[:, 11] = 0.5, 0.9  # the latter in the padding alone
    picture = np.full((64 * 3, 84 * 3, 3), 200, np.uint8)  # 84 of 96 columns are image
    drawn = draw_attention(picture, weights, (1, 84 / 96))
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8 and (picture == 200).all()
    # The middle of pixel (2, 9), of 24 x 24 here, is the lightest.
    row, column = np.unravel_index(drawn.sum(2)[:, :240].argmax(), (192, 240))
    assert abs(row - 60) <= 2 and abs(column - 228) <= 2
    assert np.abs(drawn[60, 228].astype(int) - colour_map(1.0)).max() <= 12
    assert (drawn[150:, :100] == 70).all()  # nothing there: the image, dimmed


def test_the_concentration_is_of_what_is_seen():
    weights = torch.full((8, 12), 1.0)
    weights[2, 10], weights[3, 11] = 25.0, 73.0  # the mean is 2
    assert concentration(weights, (1, 84 / 96)) == 12.5
    assert concentration(weights, (1, 90 / 96)) == 36.5  # half a pixel of it
    assert concentration(weights, (3 / 8, 1)) == 12.5


def test_a_map_of_nothing():
    drawn = draw_attention(np.full((20, 30, 3), 200, np.uint8), torch.zeros(4, 6), (1, 1))
    assert (drawn == 70).all()
