"""Pictures of instances: masks, contours and labels over an image, and pictures side by side."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fastinst.contours import Pen
from fastinst.data.dataset import ImageRecord
from fastinst.files import write_whole
from fastinst.ops import pack_bits, unpack_bits
from fastinst.ops.bits import packed_length
from fastinst.ops.read_out_masks import mask_boxes
from fastinst.picture_labels import Box, Labels
from fastinst.results import Instances

BACKGROUND = (24, 24, 27)
FOREGROUND = (244, 244, 245)


def overlay(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    show_scores: bool = True,
    colour_classes: bool = False,
    opacity: float = 0.45,
) -> np.ndarray:
    """Draw instances over an image: coloured masks, contours and labels such as "cat 0.93".

    image: uint8 [H, W, 3]
    instances: of this image, best first; on any device
    class_names: by label; where there is only one class, labels show the score alone
    show_scores: False leaves the scores out (ground truth has none)
    colour_classes: a colour for each class, the same in all images, instead of one for each
        instance
    opacity: of the masks, 0 to 1
    Labels overlap neither one another nor small instances; where there is no room, the better
    instance gets its label.
    Returns a new uint8 [H, W, 3].
    """
    instances = instances.to("cpu")
    height, width = image.shape[:2]
    unit = line_unit(height, width)
    pen = Pen(unit)
    picture = Image.fromarray(image)
    boxes = [tuple(box) for box in instances.boxes.round().long().tolist()]
    kinds = instances.labels.tolist()
    colours = [colour(kind if colour_classes else i) for i, kind in enumerate(kinds)]

    # Small instances are drawn over large ones, or nobody would see them.
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    for i in sorted(range(len(areas)), key=areas.__getitem__, reverse=True):
        if areas[i] > 0:
            _paint(picture, instances, i, boxes[i], colours[i], opacity, pen)

    labels = Labels((height, width), size=max(10, round(11 * unit)))
    for i, (score, kind) in enumerate(zip(instances.scores.tolist(), kinds, strict=True)):
        words = [class_names[kind]] if len(class_names) > 1 else []
        words += [f"{score:.2f}"] if show_scores else []
        if words and areas[i] > 0:
            labels.add(" ".join(words), colours[i], boxes[i], _mask_window(instances, i, boxes[i]))
    for label, place in labels.placed():
        picture.paste(label, place[:2], label)
    return np.array(picture)


def line_unit(height: int, width: int) -> float:
    """How wide a contour is in an image: it grows with it."""
    return max(1.0, math.sqrt(height * width) / 600)


def colour(index: int) -> tuple[int, int, int]:
    """Colours of which any few in a row differ clearly: hues one golden section apart."""
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.95, 0.8))[index % 3]
    rgb = colorsys.hsv_to_rgb((0.58 + index * 0.61803) % 1, saturation, value)
    return tuple(round(255 * channel) for channel in rgb)


def _mask_window(instances: Instances, i: int, box: Box) -> np.ndarray:
    """uint8 0 or 1, the part of mask i within a box that lies in the image.

    A mask is unpacked only where it is looked at: all masks of a photograph take gigabytes.
    """
    left, top, right, bottom = box
    first = left // 32
    words = instances.packed[i, top:bottom, first : (right + 31) // 32]
    return unpack_bits(words, right - 32 * first)[:, left - 32 * first :].numpy().view(np.uint8)


def _paint(
    picture: Image.Image,
    instances: Instances,
    i: int,
    box: Box,
    colour: tuple[int, int, int],
    opacity: float,
    pen: Pen,
) -> None:
    """Blend one mask and its contour into the picture."""
    left, top = max(0, box[0] - pen.reach), max(0, box[1] - pen.reach)
    right, bottom = min(picture.width, box[2] + pen.reach), min(picture.height, box[3] + pen.reach)
    inside = _mask_window(instances, i, (left, top, right, bottom))
    weight = np.maximum(pen.borders(inside), inside * np.uint8(255 * opacity))
    picture.paste(colour, (left, top), Image.fromarray(weight))


def ground_truth_instances(record: ImageRecord) -> Instances:
    """The annotations of an image as Instances with score 1, without crowds."""
    annotations = [a for a in record.annotations if not a.iscrowd]
    count, (height, width) = len(annotations), (record.height, record.width)
    boxes = torch.zeros(count, 4)
    packed = torch.zeros(count, height, packed_length(width), dtype=torch.int32)
    for i, annotation in enumerate(annotations):  # all of them at once may be gigabytes
        mask = torch.from_numpy(annotation.mask(height, width))[None]
        boxes[i : i + 1], packed[i : i + 1] = mask_boxes(mask), pack_bits(mask)
    labels = torch.tensor([a.label for a in annotations], dtype=torch.int64)
    return Instances(torch.ones(count), labels, boxes, packed, (height, width))


def fitted(image: np.ndarray, instances: Instances, edge: int) -> tuple[np.ndarray, Instances]:
    """An image uint8 [H, W, 3] and its instances, scaled to a longer edge of so many pixels.

    Contours and labels are sharp where they are drawn at the size they are seen at.
    """
    scale = edge / max(instances.size)
    height, width = (max(1, round(side * scale)) for side in instances.size)
    pixels = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    masks = torch.zeros(len(instances), height, width, dtype=torch.bool)
    for mask, instance in zip(masks, instances.to("cpu"), strict=True):
        grey = Image.fromarray(instance.masks[0].numpy().view(np.uint8) * np.uint8(255))
        grey = grey.resize((width, height), Image.Resampling.BILINEAR)
        mask[:] = torch.from_numpy(np.array(grey)) >= 128
    scaled = Instances.from_masks(instances.scores, instances.labels, masks, instances.class_names)
    return np.array(pixels), scaled


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Put uint8 [H, W, 3] pictures of any sizes into a table, row by row, each in its cell's
    middle; a row is as high as its highest picture, a column as wide as its widest one."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(p.shape[0] for p in row) for row in rows]
    widths = [max(p.shape[1] for p in pictures[c::columns]) for c in range(len(rows[0]))]
    gap = max(4, max(widths) // 100)
    shape = (sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1), 3)
    canvas = np.full(shape, BACKGROUND, dtype=np.uint8)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture, width in zip(row, widths, strict=False):
            h, w = picture.shape[:2]
            top, left = y + (height - h) // 2, x + (width - w) // 2
            canvas[top : top + h, left : left + w] = picture
            x += width + gap
        y += height + gap
    return canvas


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Two uint8 [H, W, 3] pictures next to each other, each below its title."""
    return grid([titled(left, titles[0]), titled(right, titles[1])], columns=2)


def framed(picture: np.ndarray, margin: int) -> np.ndarray:
    """uint8 [H, W, 3] with so many pixels of background on every side."""
    height, width = picture.shape[:2]
    canvas = np.full((height + 2 * margin, width + 2 * margin, 3), BACKGROUND, np.uint8)
    canvas[margin:-margin, margin:-margin] = picture
    return canvas


def text_line(text: str, width: int, size: int, height: int) -> np.ndarray:
    """One line of text, shortened to the width: uint8 [height, width, 3]; size: of the font."""
    font = ImageFont.load_default(size=size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    bar = Image.new("RGB", (width, height), BACKGROUND)
    ImageDraw.Draw(bar).text((0, height / 2), text, FOREGROUND, font, anchor="lm")
    return np.array(bar)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=max(12, round(math.sqrt(height * width) / 35)))
    bar = Image.new("RGB", (width, 2 * font.size), BACKGROUND)
    ImageDraw.Draw(bar).text((width / 2, font.size), title, FOREGROUND, font, anchor="mm")
    return np.concatenate([np.array(bar), picture])


def save_jpeg(path: Path | str, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 3] whole; raises InputError if that fails."""
    with write_whole(path) as file:
        Image.fromarray(picture).save(file, "JPEG", quality=92, subsampling=0)
