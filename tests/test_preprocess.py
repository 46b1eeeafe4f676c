"""Images to a batch: normalised, and padded no more than needed."""

import pytest
import torch
from test_model import random_images, small_model

from fastinst.errors import InputError


@pytest.fixture
def model():
    return small_model()


def test_it_normalises_then_pads_with_zeros(model):
    images = random_images((33, 64), (20, 65))
    batch, sizes = model.preprocess(images)
    assert batch.shape == (2, 3, 64, 96) and sizes == [(33, 64), (20, 65)]
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    for padded, image, (height, width) in zip(batch, images, sizes, strict=True):
        torch.testing.assert_close(padded[:, :height, :width], (image - mean) / std)
        assert not padded[:, height:].any() and not padded[:, :, width:].any()


def test_it_pads_no_more_than_needed(model):
    assert model.preprocess(random_images((32, 64)))[0].shape == (1, 3, 32, 64)
    assert model.preprocess(random_images((1, 1)))[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_it_gives_the_models_dtype(model, dtype):
    images = random_images((32, 32))
    batch, _ = model.to(dtype).preprocess(images)
    assert batch.dtype == dtype and not batch.requires_grad
    expected, _ = small_model().double().preprocess(images)
    assert (batch.double() - expected).abs().max() <= 3 * torch.finfo(dtype).eps + 1e-15


def test_it_uses_the_configs_normalisation():
    model = small_model(pixel_mean=(0.0, 10.0, 20.0), pixel_std=(1.0, 2.0, 4.0))
    batch, _ = model.preprocess([torch.full((3, 32, 32), 100, dtype=torch.uint8)])
    assert batch[0, :, 0, 0].tolist() == [100, 45, 20]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 32, 32), "^image 1 must be a uint8 tensor .* torch.float32"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"^image 1 must be .* \(32, 32, 3\)"),
        (torch.zeros(1, 32, 32, dtype=torch.uint8), "^image 1 must be"),
        (torch.zeros(32, 32, dtype=torch.uint8), "^image 1 must be"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "^image 1 must be"),
        (torch.zeros(3, 0, 32, dtype=torch.uint8), "^image 1 has no pixels"),
    ],
)
def test_it_names_the_image_at_fault(model, image, message):
    with pytest.raises(InputError, match=message):
        model.preprocess([*random_images((32, 32)), image])


def test_it_needs_an_image(model):
    with pytest.raises(InputError, match="at least one image"):
        model.preprocess([])
