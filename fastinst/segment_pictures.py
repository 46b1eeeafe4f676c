"""Pictures of images divided into segments: areas of colour, the lines between them, labels."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from fastinst.contours import Pen
from fastinst.picture_labels import Box, Labels
from fastinst.segments import Segment, SegmentMap
from fastinst.visualize import colour, line_unit

LINE = (250, 250, 250)
# How much of a segment's colour there is in its area, beside the image's own.
THING_OPACITY, STUFF_OPACITY = 0.6, 0.5

Colour = tuple[int, int, int]


def overlay_segments(
    image: np.ndarray,
    found: SegmentMap,
    class_names: Sequence[str],
    is_thing: Sequence[bool],
    *,
    show_scores: bool = True,
    colour_classes: bool = False,
) -> np.ndarray:
    """Draw segments over an image: areas of colour with fine lines between them, and labels.

    Each thing has a vivid colour of its own and a label such as "car 0.93"; stuff has a calm one,
    the same for its class in all images, and its name where there is room for it. Void stays as
    it is.

    image: uint8 [H, W, 3]
    found: of this image, on any device
    class_names, is_thing: by label
    show_scores: False leaves the scores out (ground truth has none)
    colour_classes: things too have the colour of their class
    Returns a new uint8 [H, W, 3].
    """
    ids = found.ids.cpu().numpy()
    boxes = ndimage.find_objects(ids)
    there = [s for s in found.segments if s.id <= len(boxes) and boxes[s.id - 1] is not None]
    things = sorted((s for s in there if is_thing[s.label]), key=lambda s: -s.score)
    stuff = [segment for segment in there if not is_thing[segment.label]]
    colours = {s.id: colour(s.label if colour_classes else i) for i, s in enumerate(things)}
    colours |= {segment.id: calm_colour(segment.label) for segment in stuff}

    # Areas
    table = np.zeros((1 + ids.max(initial=0), 4), np.uint8)
    for segments, opacity in ((things, THING_OPACITY), (stuff, STUFF_OPACITY)):
        for segment in segments:
            table[segment.id] = (*colours[segment.id], round(255 * opacity))
    painted = table[ids]
    unit = line_unit(*ids.shape)
    picture = Image.fromarray(image)
    areas = Image.fromarray(np.ascontiguousarray(painted[..., :3]))
    picture.paste(areas, mask=Image.fromarray(np.ascontiguousarray(painted[..., 3])))
    picture.paste(LINE, (0, 0), Image.fromarray(Pen(max(1.0, unit / 2)).borders(ids)))

    # Labels: things first, which are more and smaller
    labels = Labels(ids.shape, size=max(10, round(11 * unit)))
    for segment in things:
        box, mask = _part(ids, segment, boxes[segment.id - 1])
        score = f" {segment.score:.2f}" if show_scores else ""
        labels.add(class_names[segment.label] + score, colours[segment.id], box, mask)
    for segment in stuff:
        box, mask = _largest(*_part(ids, segment, boxes[segment.id - 1]))
        labels.add(class_names[segment.label], colours[segment.id], box, mask, beside=False)
    for label, place in labels.placed():
        picture.paste(label, place[:2], label)
    return np.array(picture)


def calm_colour(label: int) -> Colour:
    """Of a class of stuff: no colour of `visualize.colour` is as pale."""
    saturation, value = ((0.35, 0.8), (0.5, 0.68), (0.28, 0.92))[label % 3]
    rgb = colorsys.hsv_to_rgb((0.33 + label * 0.61803) % 1, saturation, value)
    return tuple(round(255 * channel) for channel in rgb)


def _part(ids: np.ndarray, segment: Segment, place: tuple[slice, slice]) -> tuple[Box, np.ndarray]:
    """A segment's box, and its mask within."""
    rows, columns = place
    return (columns.start, rows.start, columns.stop, rows.stop), ids[place] == segment.id


def _largest(box: Box, mask: np.ndarray) -> tuple[Box, np.ndarray]:
    """The largest connected part of a mask: stuff lies about in many, and is named once."""
    parts, count = ndimage.label(mask)
    largest = 1 + np.bincount(parts.ravel(), minlength=count + 1)[1:].argmax()
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    left, top = box[:2]
    where = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
    return where, parts[rows, columns] == largest
