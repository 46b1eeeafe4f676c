"""A picture of a model's worst mistakes, each beside the ground truth."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.images import read_image
from fastinst.metrics.mistakes import (
    KINDS,
    MIN_SCORE,
    Mistake,
    Regions,
    find_mistakes,
    regions,
    worst,
)
from fastinst.results import Instances
from fastinst.visualize import BACKGROUND, framed, grid, overlay, text_line

COLUMNS = 4
CELL = 240  # pixels, both edges of each of the two pictures of a mistake
CONTEXT = 0.4  # of the objects' extent, on each side
SMALLEST_WINDOW = 48  # image pixels, both edges


def draw_gallery(
    dataset: Dataset,
    results: dict[int, list[dict]],
    kinds: Sequence[str] = tuple(KINDS),
    min_score: float = MIN_SCORE,
    progress: bool = True,
) -> np.ndarray:
    """The worst COLUMNS mistakes of each kind: on the left the annotations, on the right results.

    results: by image id, with masks, in the COCO results format; of the images that count
    kinds: of `KINDS`, in the order in which they are shown
    min_score: results that score less are taken for not found
    Returns uint8 [H, W, 3].
    Raises InputError for an image that cannot be read.
    """
    records = [record for record in dataset.images if record.id in results]

    def image(record: ImageRecord) -> Regions:
        return regions(record, results[record.id], dataset, min_score)

    mistakes: dict[str, list[Mistake]] = {kind: [] for kind in KINDS}
    for record in tqdm(records, "mistakes", disable=not progress):
        for mistake in find_mistakes(record, image(record)):
            mistakes[mistake.kind].append(mistake)
    width = COLUMNS * (2 * CELL + 4) + (COLUMNS - 1) * 16
    rows = []
    for kind in kinds:
        if of_kind := mistakes[kind]:
            title = f"{KINDS[kind]} ({len(of_kind)} in all)"
            rows.append(text_line(title, width, 22, 28))
            chosen = worst(of_kind, COLUMNS)
            cells = [_cell(mistake, image(mistake.record), dataset) for mistake in chosen]
            blank = np.full_like(cells[0], BACKGROUND)
            rows.append(np.concatenate(_spaced(cells + [blank] * (COLUMNS - len(cells))), axis=1))
    return framed(np.concatenate(rows or [text_line("no mistakes", width, 22, 28)]), 16)


def _spaced(cells: list[np.ndarray]) -> list[np.ndarray]:
    gap = np.full((cells[0].shape[0], 16, 3), BACKGROUND, np.uint8)
    return [part for cell in cells for part in (gap, cell)][1:]


def _cell(mistake: Mistake, image: Regions, dataset: Dataset) -> np.ndarray:
    """Two pictures of the same window, above the words that tell what is wrong."""
    record, found, truth = mistake.record, image.found, image.truth
    boxes = []
    if mistake.object is not None:
        boxes.append(rle.toBbox(truth.codes[mistake.object]))
    if mistake.result is not None:
        boxes.append(rle.toBbox(found.codes[mistake.result]))
    window = _window(np.array(boxes), record.height, record.width)
    pixels = read_image(record.path, (record.height, record.width))

    if mistake.kind == "missed":
        objects, shown = [mistake.object], list(range(len(found)))
    else:
        objects = [i for i in range(len(truth)) if not truth.crowd[i]]
        shown = sorted((mistake.result, *mistake.beside))
    left = _picture(
        pixels,
        window,
        [truth.codes[i] for i in objects],
        truth.labels[objects],
        np.ones(len(objects)),
        dataset,
        show_scores=False,
    )
    right = _picture(
        pixels,
        window,
        [found.codes[i] for i in shown],
        found.labels[shown],
        found.scores[shown],
        dataset,
        show_scores=True,
    )
    pair = grid([left, right], columns=2)
    caption = [text_line(text, pair.shape[1], 15, 20) for text in _caption(mistake, image, dataset)]
    return np.concatenate([pair, *caption, np.full((12, pair.shape[1], 3), BACKGROUND, np.uint8)])


def _caption(mistake: Mistake, image: Regions, dataset: Dataset) -> tuple[str, str]:
    """The image's name; then what was found and what is there."""
    words = []
    if mistake.result is not None:
        name = dataset.class_names[image.found.labels[mistake.result]]
        words.append(f"{name} {image.found.scores[mistake.result]:.2f}")
    if mistake.object is not None:
        name = dataset.class_names[image.truth.labels[mistake.object]]
        if mistake.result is None:
            words.append(f"{name}, {mistake.rank:,.0f} pixels")
        else:
            words.append(f"IoU {mistake.iou:.2f} with {name}")
    else:
        words.append("no object here")
    return mistake.record.path.name, ", ".join(words)


def _window(boxes: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """A square (left, top, right, bottom) around the boxes; it may leave the image."""
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    edge = max((high - low).max() * (1 + 2 * CONTEXT), SMALLEST_WINDOW)
    edge = min(edge, max(height, width))
    left, top = (low + high - edge) / 2
    # Rather show more of the image than what is outside it.
    left = min(max(left, 0), max(width - edge, 0)) if edge <= width else (width - edge) / 2
    top = min(max(top, 0), max(height - edge, 0)) if edge <= height else (height - edge) / 2
    left, top, edge = round(left), round(top), round(edge)
    return left, top, left + edge, top + edge


def _picture(pixels, window, codes, labels, scores, dataset, show_scores) -> np.ndarray:
    """The window at CELL x CELL pixels with instances drawn over it."""
    crop = Image.fromarray(pixels).crop(window)
    image = np.array(crop.resize((CELL, CELL), Image.Resampling.BICUBIC))
    left, top, right, _ = window
    places = left + (np.arange(CELL) + 0.5) * (right - left) / CELL
    columns = np.floor(places).astype(int)
    rows = np.floor(places - left + top).astype(int)
    inside = (rows >= 0) & (rows < pixels.shape[0]), (columns >= 0) & (columns < pixels.shape[1])
    masks = np.zeros((len(codes), CELL, CELL), bool)
    for mask, code in zip(masks, codes, strict=True):
        whole = rle.decode(code)
        mask[np.ix_(*inside)] = whole[np.ix_(rows[inside[0]], columns[inside[1]])]
    visible = masks.any(axis=(1, 2))
    instances = Instances.from_masks(
        torch.from_numpy(np.asarray(scores)[visible]),
        torch.from_numpy(np.asarray(labels)[visible]),
        torch.from_numpy(masks[visible]),
    )
    return overlay(image, instances, dataset.class_names, show_scores=show_scores)
