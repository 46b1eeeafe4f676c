"""Reading images, and the sizes of images."""

import warnings

import numpy as np
import pytest
from PIL import Image

from fastinst.data.images import image_size, read_image
from fastinst.errors import InputError


def gradient(height=6, width=8) -> np.ndarray:
    return np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)


def test_color_modes(tmp_path):
    rgb = gradient()
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(read_image(path), rgb)

    rgba = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(read_image(path), rgb)

    Image.fromarray(rgb[:, :, 0]).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(rgb[:, :, :1], 3, axis=2))

    palette = Image.fromarray(rgb).quantize(16)
    palette.save(path, transparency=b"\x00\x80")
    np.testing.assert_array_equal(read_image(path), np.array(palette.convert("RGB")))

    tiff = tmp_path / "a.tiff"
    Image.fromarray(rgb).convert("CMYK").save(tiff)
    assert np.abs(read_image(tiff).astype(int) - rgb).max() <= 2

    Image.fromarray(rgb[:, :, 0] > 99).save(path)
    assert set(read_image(path).ravel()) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 200, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}")[0, :, 1].tolist() == [0, 1, 1, 128, 255]


def test_more_than_16_bits_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match=r"float\.tiff: .*16 bits"):
        read_image(tmp_path / "float.tiff")


def test_exif_orientation_follows_the_annotations(tmp_path):
    stored = gradient(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(stored).save(path, exif=exif)
    upright = np.rot90(stored, -1)
    np.testing.assert_array_equal(read_image(path), upright)
    np.testing.assert_array_equal(read_image(path, (8, 6)), upright)
    np.testing.assert_array_equal(read_image(path, (6, 8)), stored)
    with pytest.raises(
        InputError, match=r"a\.png: the image is 6 x 8, .* 8 x 9 \(width x height\)"
    ):
        read_image(path, (9, 8))


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_tiff_is_always_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tiff"):
        Image.fromarray(gradient(6, 8)).save(tmp_path / f"a.{suffix}", exif=exif)
    upright = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), upright)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff", upright.shape[:2]), upright)
    if orientation > 4:
        with pytest.raises(InputError, match=r"a\.tiff: the image is 6 x 8, .* for 8 x 6"):
            read_image(tmp_path / "a.tiff", (6, 8))


def test_a_wrong_call_is_no_broken_image(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    with pytest.raises(TypeError):
        read_image(tmp_path / "a.png", 6)


def test_broken_images_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg: no such image"):
        read_image(tmp_path / "none.jpg")
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"a\.jpg: cannot be decoded: .*truncated"):
        read_image(path)
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.jpg: cannot be decoded"):
        read_image(path)


def test_large_images_are_read_quietly_and_huge_ones_refused(tmp_path, monkeypatch):
    Image.new("RGB", (50, 30)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert read_image(tmp_path / "a.png").shape == (30, 50, 3)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(InputError, match=r"a\.png: cannot be decoded: .*1500 pixels"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_of_the_header_is_that_of_the_pixels(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(gradient()).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2]


def test_the_size_of_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for name in ("a.png", "none.png"):
        with pytest.raises(InputError, match=f"{name}: no image: "):
            image_size(tmp_path / name)
