"""Images whose pixels are the ids of segments."""

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils


def encode_segments(ids: np.ndarray) -> list[tuple[int, dict, int]]:
    """(id, compressed RLE, pixels) of each id in [H, W] integers, ascending.

    All masks come out of one pass over the image's columns, since a mask each takes far longer.
    """
    height, width = ids.shape
    flat = ids.T.reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    segments = []
    for run in np.split(order, np.flatnonzero(values[order][1:] != values[order][:-1]) + 1):
        borders = np.stack([starts[run], ends[run]], axis=1).ravel()
        if borders[-1] < flat.size:
            borders = np.append(borders, flat.size)
        counts = np.diff(borders, prepend=0)
        code = {"size": [height, width], "counts": counts.tolist()}
        code = mask_utils.frPyObjects(code, height, width)
        segments.append((int(values[run[0]]), code, int(counts[1::2].sum())))
    return segments


def ids_of_colours(image: Image.Image) -> np.ndarray:
    """[H, W] int32 of an RGB image, where COCO has an id as red + 256 green + 65536 blue."""
    if image.mode != "RGB":
        raise ValueError(f"its pixels are {image.mode}, not the RGB of panoptic ids")
    colours = np.asarray(image).astype(np.int32)
    return colours @ np.array([1, 1 << 8, 1 << 16], np.int32)


def colours_of_ids(ids: np.ndarray) -> Image.Image:
    """The RGB image of [H, W] ids from 0 to 2**24 - 1."""
    octets = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)
    return Image.fromarray(np.ascontiguousarray(octets[..., :3]))
