"""Whether the masks of a data set lie on the objects of their images, judged without a model.

Objects end where the image changes. So on the whole the outlines of an image's masks run along
its strong gradients, and along those of any other image only by chance. That compares images
with one another and needs no idea of what an object looks like, a colour or a threshold.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.images import read_reduced
from fastinst.data.objects import Objects
from fastinst.data.view import View
from fastinst.errors import InputError
from fastinst.ops.bits import unpack_bits

# Of annotations dealt to images at random, fewer than one data set in a thousand gets there; the
# correct ones of nuclei, COCO and the demo set are at 0.99 and above.
ABOVE_CHANCE = 0.8
# Of what images usually fit their own masks better than others. All of nuclei, COCO and the demo
# set are at 0.3 and above, eight in ten of those with the masks of another image below 0.25.
MISFIT = 0.25
FEWEST_IMAGES = 8  # with fewer, chance gets above that bar too often
LONGEST_EDGE = 320  # of the images compared, where an outline drawn by hand is some pixels off
MOST_POINTS = 2048  # of outlines, per image


class Alignment(NamedTuple):
    """How well masks and images belong together.

    score: the share of pairs of images that fit their masks worse once the masks are swapped:
        1.0 if no two could have been mixed up, 0.5 if the masks are on the images by chance
    misfits: images that fit their own masks hardly better than others
    compared: number of images
    """

    score: float
    misfits: tuple[ImageRecord, ...]
    compared: int


def measure_alignment(dataset: Dataset, most_images: int = 64, seed: int = 0) -> Alignment | None:
    """Lays the masks of every image on every other one; see `ABOVE_CHANCE` for the bar.

    most_images: how many are compared, chosen at random by `seed`; the time is about 20 ms for
        each on one core, and some more for large ones. Those that cannot be read are passed over.
    Returns None if there are fewer than `FEWEST_IMAGES` images with an outline to judge.
    """
    order = np.random.default_rng(seed).permutation(len(dataset.images))
    records, outlines, edges = [], [], []
    # Not more are tried, lest a set of broken images takes for ever.
    for index in order[: 2 * most_images].tolist():
        if len(records) == most_images:
            break
        record = dataset.images[index]
        points = outline_points(record, MOST_POINTS, seed)
        if not len(points):
            continue
        try:
            edges.append(_edge_ranks(record))
        except InputError:
            continue
        outlines.append(points)
        records.append(record)
    if len(records) < FEWEST_IMAGES:
        return None

    # Some masks fit anywhere, and some images fit any mask: a swap keeps both, so neither counts.
    fit = np.array([[_fit(points, ranks) for ranks in edges] for points in outlines])
    own = np.diagonal(fit)
    gain = (own[:, None] + own - fit - fit.T)[np.triu_indices(len(fit), 1)].round(9)
    score = float((gain > 0).mean() + (gain == 0).mean() / 2)
    surplus = own - (fit.mean(axis=0) + fit.mean(axis=1) - fit.mean())
    misfits = np.flatnonzero(surplus <= MISFIT * np.median(surplus)).tolist()
    return Alignment(score, tuple(records[i] for i in misfits), len(records))


def outline_points(record: ImageRecord, most: int, seed: int) -> np.ndarray:
    """Pixels of the image's masks with a neighbour outside, float [P, 2] (y, x) in [0, 1).

    Crowds and the image's border have no outline. P is at most `most`, a random choice.
    """
    height, width = _compared_size(record)
    view = View((0, 0, record.width, record.height), height, width)
    _, words = view.masks(Objects(record.annotations))
    masks = unpack_bits(torch.from_numpy(words), width).numpy()
    inner = masks[:, :-2, 1:-1] & masks[:, 2:, 1:-1] & masks[:, 1:-1, :-2] & masks[:, 1:-1, 2:]
    pixels = np.argwhere(masks[:, 1:-1, 1:-1] & ~inner)[:, 1:]
    if len(pixels) > most:
        pixels = np.random.default_rng(seed).choice(pixels, most, replace=False)
    return (pixels + 1.5) / (height, width)


def _compared_size(record: ImageRecord) -> tuple[int, int]:
    scale = min(1, LONGEST_EDGE / max(record.height, record.width))
    return max(1, round(scale * record.height)), max(1, round(scale * record.width))


def _edge_ranks(record: ImageRecord) -> np.ndarray:
    """Float [h, w]: for each pixel the share of the image's pixels of a smaller gradient.

    Ranks, because then a sharp image is no better place for a mask than a dull one.
    """
    height, width = _compared_size(record)
    reduction = max(r for r in (1, 2, 4, 8) if r * height <= record.height)
    image, _ = read_reduced(record.path, (record.height, record.width), reduction)
    image = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    channels = np.moveaxis(np.asarray(image, np.float32), 2, 0)
    gradient = sum(ndimage.gaussian_gradient_magnitude(channel, 1.0) for channel in channels)
    levels, where, counts = np.unique(gradient, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2) / gradient.size
    return ranks[where].reshape(gradient.shape)


def _fit(points: np.ndarray, ranks: np.ndarray) -> float:
    rows, columns = (points * ranks.shape).astype(int).T
    return float(ranks[rows, columns].mean())
