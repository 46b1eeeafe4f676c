"""Whatever someone has an image in, to RGB pixels."""

import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastinst.data.images import quiet_pillow, read_image, to_rgb
from fastinst.errors import InputError

AnyImage = str | os.PathLike | Image.Image | np.ndarray | Tensor | Callable[[], "AnyImage"]


def is_image(value: object) -> bool:
    """Whether `rgb_pixels` would take it for one image, good or bad, and not for several."""
    return isinstance(value, AnyImage.__args__[:-1]) or callable(value)


def rgb_pixels(image: AnyImage, name: str) -> np.ndarray:
    """The image as uint8 [H, W, 3] RGB, upright.

    Args:
        image: a path, as `read_image` reads it; a PIL image of any mode, turned as its EXIF
            orientation says; an array uint8 [H, W, 3] in RGB, [H, W, 4] of which alpha is dropped,
            or [H, W] in grey; a tensor uint8 [3, H, W] in RGB; or a function that returns any of
            these
        name: what messages call it

    Raises:
        InputError: anything else, a file that cannot be read, or no pixels. That an array is in
            BGR, as OpenCV has it, nobody can see: give `array[:, :, ::-1]`.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        with quiet_pillow():
            try:
                image.load()  # which turns a TIFF
                image = ImageOps.exif_transpose(image)
            except Exception as error:  # as `read_image`
                raise InputError(f"{name}: cannot be decoded: {error}") from error
            return to_rgb(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise InputError(
                f"{name}: a tensor must have shape [3, height, width], got {_describe(image)}"
            )
        if image.dtype != torch.uint8:
            raise InputError(f"{name}: a tensor must be uint8, 0 to 255, got {_describe(image)}")
        return _from_array(image.cpu().permute(1, 2, 0).numpy(), name)
    if callable(image):
        return rgb_pixels(image(), name)
    raise InputError(
        f"{name}: an image is a path, a PIL image, a uint8 array [height, width, 3] or a uint8 "
        f"tensor [3, height, width], got {type(image).__name__}"
    )


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(
            f"{name}: an array must have shape [height, width, 3], [height, width, 4] or "
            f"[height, width], got {_describe(array)}"
        )
    if array.dtype != np.uint8:
        raise InputError(f"{name}: an array must be uint8, 0 to 255, got {_describe(array)}")
    if 0 in array.shape:
        raise InputError(f"{name} has no pixels: {_describe(array)}")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def _describe(values: np.ndarray | Tensor) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)}"
