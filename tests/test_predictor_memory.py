"""A Predictor whose memory runs out."""

import warnings

import pytest
import torch
from PIL import Image
from predictor_cases import Colours, colour_of, patch

from fastinst import Predictor
from fastinst.errors import InputError


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.66 GB)"),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so_once(error):
    network = Colours(memory=3 * 64 * 96, error=error)
    predictor = Predictor(network)
    images = [patch((64, 96), i % 3) for i in range(16)]
    with pytest.warns(
        UserWarning, match="cpu has not enough memory for 16 images.*; 2 work"
    ) as told:
        found = predictor(images, batch_size=16)
    assert [colour_of(one)[0] for one in found] == [i % 3 for i in range(16)]
    assert [shape[0] for shape in network.shapes] == [16, 8, 4] + [2] * 8
    assert len(told) == 1
    network.shapes.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(predictor(images, batch_size=16)) == 16
    assert [shape[0] for shape in network.shapes] == [2] * 8


def test_one_image_too_large_for_the_memory_is_named():
    predictor = Predictor(Colours(memory=10))
    with pytest.raises(InputError, match="image of 500 x 400 pixels, resized to 80 x 64, .* cpu"):
        predictor(patch((400, 500), 0))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_of_a_stream_only_the_image_that_is_too_large_is_lost(batch_size, tmp_path):
    """A long one is padded to more pixels; only it does not fit, in whatever batch."""
    long, square = patch((100, 150), 1), patch((64, 64), 2)
    Image.fromarray(long).save(tmp_path / "long.png")
    images = [square, tmp_path / "long.png", square, long, square]
    predictor = Predictor(Colours(memory=64 * 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(predictor.stream(images, batch_size, yield_errors=True))
    assert [isinstance(one, InputError) for one in found] == [False, True, False, True, False]
    assert all(colour_of(one) == (2, (64, 64)) for one in found[::2])
    assert str(found[1]).startswith(f"{tmp_path / 'long.png'}: an image of 150 x 100 pixels")
    assert str(found[3]).startswith("image 3: an image of 150 x 100 pixels")
    with pytest.raises(InputError, match="^image 0: an image of 150 x 100"):
        predictor([long, square])


def test_other_errors_are_not_taken_for_memory():
    network = Colours(memory=10, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        Predictor(network)([patch((64, 96), 0)] * 4, batch_size=4)
    assert len(network.shapes) == 1
