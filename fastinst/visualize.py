"""Pictures of instances: masks, contours and labels over an image, and pictures side by side."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fastinst.data.dataset import ImageRecord
from fastinst.files import write_whole
from fastinst.ops.read_out_masks import mask_boxes
from fastinst.results import Instances

BACKGROUND = (24, 24, 27)
FOREGROUND = (244, 244, 245)


def overlay(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    show_scores: bool = True,
    opacity: float = 0.45,
) -> np.ndarray:
    """Draw instances over an image: coloured masks, contours and labels such as "cat 0.93".

    image: uint8 [H, W, 3]
    instances: of this image, best first; on any device
    class_names: by label; where there is only one class, labels show the score alone
    show_scores: False leaves the scores out (ground truth has none)
    opacity: of the masks, 0 to 1
    Labels never overlap one another; where there is no room, the better instance gets its label.
    Returns a new uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    unit = max(1.0, math.sqrt(height * width) / 600)  # the width of a contour grows with the image
    canvas = image.copy()
    boxes = instances.boxes.round().long().tolist()
    colours = [_colour(i) for i in range(len(instances))]

    # Small instances are drawn over large ones, or nobody would see them.
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    for i in sorted(range(len(areas)), key=areas.__getitem__, reverse=True):
        _paint(canvas, instances.masks[i].cpu().numpy(), boxes[i], colours[i], opacity, unit)

    picture = Image.fromarray(canvas)
    font = ImageFont.load_default(size=max(10, round(11 * unit)))
    taken: list[tuple[int, int, int, int]] = []
    for i, (score, label) in enumerate(
        zip(instances.scores.tolist(), instances.labels.tolist(), strict=True)
    ):
        words = [class_names[label]] if len(class_names) > 1 else []
        words += [f"{score:.2f}"] if show_scores else []
        if words and areas[i] > 0:
            mask = instances.masks[i].cpu().numpy()
            _write_label(picture, " ".join(words), mask, boxes[i], colours[i], font, taken)
    return np.array(picture)


def _colour(index: int) -> tuple[int, int, int]:
    """Colours of which any few in a row differ clearly: hues one golden section apart."""
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.95, 0.8))[index % 3]
    rgb = colorsys.hsv_to_rgb((0.58 + index * 0.61803) % 1, saturation, value)
    return tuple(round(255 * channel) for channel in rgb)


def _paint(canvas, mask, box, colour, opacity, unit) -> None:
    """Blend one mask and its contour into canvas, in place."""
    height, width = mask.shape
    margin = math.ceil(3 * unit)
    left, top = max(0, box[0] - margin), max(0, box[1] - margin)
    window = (slice(top, min(height, box[3] + margin)), slice(left, min(width, box[2] + margin)))
    inside = mask[window].astype(np.float32)

    # The contour is what lies between the mask grown and the mask shrunk; this also holds for
    # masks of a single pixel, which have nothing but a contour. The blur makes it smooth.
    size = 2 * round(unit) + 1
    sigma = 0.6 * unit
    grown = ndimage.gaussian_filter(ndimage.maximum_filter(inside, size), sigma)
    shrunk = ndimage.gaussian_filter(ndimage.minimum_filter(inside, size), sigma)
    contour = grown - shrunk

    weight = np.maximum(opacity * inside, contour)[:, :, None]
    blended = canvas[window] * (1 - weight) + np.float32(colour) * weight
    canvas[window] = (blended + 0.5).astype(np.uint8)


def _write_label(picture, text, mask, box, colour, font, taken) -> None:
    """Put a label at its mask where it fits, and note the place in `taken`."""
    pad = max(2, round(font.size / 5))
    text_box = font.getbbox(text)
    ascent, descent = font.getmetrics()
    width, height = text_box[2] - text_box[0] + 2 * pad, ascent + descent + pad
    for x, y in _label_places(mask, box, width, height):
        place = (x, y, x + width, y + height)
        inside = x >= 0 and y >= 0 and place[2] <= picture.width and place[3] <= picture.height
        if inside and not any(_overlap(place, other) for other in taken):
            break
    else:
        return
    taken.append(place)
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), radius=pad, fill=colour)
    # Black on colours of more than this relative luminance (WCAG) contrasts better than white.
    luminance = np.dot((0.2126, 0.7152, 0.0722), (np.array(colour) / 255) ** 2.2)
    ink = (0, 0, 0) if luminance > 0.18 else (255, 255, 255)
    draw.text((x + pad - text_box[0], y + pad // 2), text, ink, font)


def _label_places(mask, box, width, height):
    """Top-left corners for a label of this size, best first; they may leave the image."""
    left, top, right, bottom = box
    # Where a label slides along the image's border instead of leaving it.
    x = min(max(left, 0), mask.shape[1] - width)
    y = min(max(top, 0), mask.shape[0] - height)
    depth = ndimage.distance_transform_cdt(np.pad(mask[top:bottom, left:right], 1))
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    inner = (left + int(column) - 1 - width // 2, top + int(row) - 1 - height // 2)
    if right - left >= width and bottom - top >= 2 * height:
        yield inner
        yield left, top
        yield right - width, top
        yield left, bottom - height
        yield right - width, bottom - height
    else:
        # A label inside would hide a small instance, so it goes around it.
        yield x, top - height
        yield x, bottom
        yield right, y
        yield left - width, y
        yield min(max(inner[0], 0), mask.shape[1] - width), inner[1]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def ground_truth_instances(record: ImageRecord) -> Instances:
    """The annotations of an image as Instances with score 1, without crowds."""
    annotations = [a for a in record.annotations if not a.iscrowd]
    masks = np.zeros((len(annotations), record.height, record.width), dtype=bool)
    for i, annotation in enumerate(annotations):
        masks[i] = annotation.mask(record.height, record.width)
    masks = torch.from_numpy(masks)
    labels = torch.tensor([a.label for a in annotations], dtype=torch.int64)
    return Instances(torch.ones(len(annotations)), labels, masks, mask_boxes(masks).float())


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
