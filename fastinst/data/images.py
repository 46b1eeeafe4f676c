"""Finding image files and reading them to RGB arrays."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fastinst.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted.

    Raises InputError, naming the folder, if it does not exist or has none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))}) in it")
    return paths


def find_files(sources: Iterable[Path]) -> list[Path]:
    """The files among the sources and the images directly in the folders, each once.

    Raises InputError, naming it, for a source that does not exist or a folder without images.
    """
    paths = {}
    for source in sources:
        if source.is_dir():
            found = list_images(source)
        elif source.is_file():
            found = [source]
        else:
            raise InputError(f"{source}: no such file or folder")
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image as uint8 [H, W, 3] RGB; alpha is dropped and 16 bits are scaled to 8.

    size: (height, width) that the annotations were made for: the EXIF orientation is applied
        unless only the image as stored has this size. Without it the orientation is applied, and
        to TIFF files always.
    Raises InputError, naming the file, if it cannot be decoded or has another size.
    """
    return read_reduced(path, size, 1)[0]


def read_reduced(
    path: str | Path, size: tuple[int, int] | None, reduction: int
) -> tuple[np.ndarray, int]:
    """`read_image`, but what is cheaper to read at a fraction of its size may come like that.

    reduction: 1, 2, 4 or 8
    Returns the image and by how much it was reduced: 1 or `reduction`.
    """
    with quiet_pillow():
        image, reduction = decode_image(Path(path), size, reduction)
        return to_rgb(image, str(path)), reduction


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """A decoded image of any mode as uint8 [H, W, 3]; alpha is dropped, 16 bits are scaled to 8.

    Raises InputError, beginning with the name, for pixels of more than 16 bits.
    """
    if not image.mode.startswith(("I", "F")):
        return np.array(image.convert("RGB"))
    gray = np.asarray(image)
    if image.mode == "F" or gray.min() < 0 or gray.max() > 65535:
        raise InputError(f"{name}: pixels of more than 16 bits; convert it to 8 bits")
    gray = ((gray.astype(np.int32) + 128) // 257).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow warns of large images and odd metadata, which are no reason to interrupt a run.

    Warning filters belong to the process: threads share one that is set outside of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def decode_image(
    path: Path, size: tuple[int, int] | None, reduction: int = 1
) -> tuple[Image.Image, int]:
    """The decoded image, in its own mode, in the orientation that read_image describes.

    reduction: decode a JPEG that needs no turning at 1/2, 1/4 or 1/8 of its size, rounded up,
        which is faster and still reads the whole file
    Returns the image and its reduction.
    """
    image, stored, orientation, reduction = _decode_as_stored(path, reduction)
    upright = stored[::-1] if orientation >= 5 else stored
    if size is not None and tuple(size) not in (stored, upright):
        raise InputError(
            f"{path}: the image is {upright[1]} x {upright[0]}, "
            f"its annotations are for {size[1]} x {size[0]} (width x height)"
        )
    if orientation == 1 or size not in (None, upright):
        return image, reduction
    return ImageOps.exif_transpose(image), reduction


def _decode_as_stored(path: Path, reduction: int) -> tuple[Image.Image, tuple[int, int], int, int]:
    """The image, its unreduced (height, width), its EXIF orientation, and its reduction."""
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":
                image.load()  # which turns it, whatever the annotations are for
            width, height = image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if min(width, height) < reduction or orientation != 1 or image.format != "JPEG":
                reduction = 1
            if reduction > 1:
                image.draft(None, (width // reduction, height // reduction))
            image.load()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image") from error
    except Exception as error:  # Pillow's decoders, all that runs here, raise nearly anything
        raise InputError(f"{path}: cannot be decoded: {error}") from error
    return image, (height, width), orientation, reduction


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image in its EXIF orientation; but for TIFF, only the header is read.

    Raises InputError, naming the file, if it is no image.
    """
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":  # Pillow turns it: its size when opening, its tags in load()
                image.load()
            width, height = image.size
            # PNG's own getexif decodes all pixels to look for metadata behind them.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise InputError(f"{path}: no image: {error}") from error
    return (width, height) if orientation >= 5 else (height, width)
