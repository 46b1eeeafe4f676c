"""Images in whatever form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from fastinst.data.any_image import is_image, rgb_pixels
from fastinst.errors import InputError


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def test_every_form_gives_the_same_pixels(rgb, tmp_path):
    path = tmp_path / "a photo.png"
    picture = Image.fromarray(rgb)
    picture.save(path)
    alpha = np.dstack([rgb, np.full((8, 6), 7, np.uint8)])
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    for image in (
        path, str(path), picture, Image.open(path), Image.fromarray(alpha), rgb, alpha,
        rgb[:, ::-1][:, ::-1], tensor, tensor.contiguous(), lambda: rgb, lambda: path,
    ):  # fmt: skip
        assert is_image(image)
        pixels = rgb_pixels(image, "it")
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, rgb)
        assert pixels.flags.c_contiguous


def test_grey(rgb):
    grey = rgb[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    for image in (grey, grey[:, :, None], Image.fromarray(grey), wide):
        assert np.array_equal(rgb_pixels(image, "it"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "png"])
def test_an_open_image_is_turned_as_its_file_is(rgb, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(rgb).save(path, exif=exif)
    expected = rgb_pixels(path, "it")
    assert expected.shape == (6, 8, 3)
    assert np.array_equal(rgb_pixels(Image.open(path), "it"), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3)), ["uint8", "float64", "(4, 4, 3)"]),
        (np.zeros((3, 4, 5), np.uint8), ["[height, width, 3]", "(3, 4, 5)"]),
        (np.zeros((1, 4, 4, 3), np.uint8), ["(1, 4, 4, 3)"]),
        (np.zeros((4, 0, 3), np.uint8), ["no pixels", "(4, 0, 3)"]),
        (torch.zeros(3, 4, 4), ["uint8", "float32"]),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ["[3, height, width]", "(4, 4, 3)"]),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), ["no pixels"]),
        (Image.new("F", (4, 4)), ["16 bits"]),
        (None, ["NoneType"]),
        (3.5, ["float"]),
        (lambda: None, ["NoneType"]),
    ],
)
def test_anything_else_is_refused_by_name(image, words):
    with pytest.raises(InputError, match="^image 7") as error:
        rgb_pixels(image, "image 7")
    assert all(word in str(error.value) for word in words), error.value


def test_files_are_refused_by_their_path(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for path in (tmp_path / "none.jpg", tmp_path / "text.jpg", tmp_path):
        with pytest.raises(InputError, match=f"^{path}: "):
            rgb_pixels(path, "image 7")


def test_an_open_image_that_is_cut_off(rgb, tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(rgb).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="^image 7: cannot be decoded"):
        rgb_pixels(Image.open(path), "image 7")


def test_several_images_are_not_one(rgb):
    for several in ([rgb], (rgb, rgb), [], iter([rgb]), {Path("a.jpg")}):
        assert not is_image(several)
