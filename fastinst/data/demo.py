"""A generated COCO dataset to try everything on: python -m fastinst.data.demo OUT

Textured discs, squares, triangles and rings that hide each other, on textured backgrounds. Small
enough to learn within minutes on a CPU, and with what real COCO files have: polygons, objects in
several parts, holes (RLE), crowd regions and gaps between the category ids.
"""

import argparse
import colorsys
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from scipy import ndimage
from tqdm import tqdm

from fastinst.data.dataset import Annotation
from fastinst.errors import InputError, run

CATEGORY_IDS = {"disc": 1, "square": 2, "triangle": 4, "ring": 7}
# Per class the hues it has most of the time and its usual pattern; the rest is drawn at random.
HUES = {"disc": 0.03, "square": 0.58, "triangle": 0.36, "ring": 0.85}
PATTERNS = {"disc": "spots", "square": "checks", "triangle": "stripes", "ring": "plain"}


@dataclass
class Shape:
    """A drawn object: its visible mask, bool [H, W], and how many pixels it had when drawn.

    corners: float [P, 2] (x, y) of a polygon, None for round shapes
    """

    name: str
    mask: np.ndarray
    area: int
    corners: np.ndarray | None = None
    crowd: bool = False


def write_demo(out: str | Path, train: int = 320, val: int = 48, seed: int = 0) -> Path:
    """Write `train` and `val` images to OUT/{train,val} and their JSONs to OUT/annotations.

    The same arguments give the same files; a folder that already has them is left as it is.
    Raises InputError if `out` holds anything else. Nothing is left behind by an interruption.
    """
    out = Path(out)
    info = {"description": "fastinst demo", "train": train, "val": val, "seed": seed}
    if min(train, val) < 1 or seed < 0:
        raise InputError("the demo set needs at least 1 image per split and a seed from 0 on")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _info(out) != info:
            raise InputError(
                f"{out} exists and is not this demo set; remove it or name another folder"
            )
        return out
    temporary = out.absolute().parent / f".{out.name}.{os.getpid()}"
    try:
        (temporary / "annotations").mkdir(parents=True)
        for number, (split, count) in enumerate({"train": train, "val": val}.items()):
            (temporary / split).mkdir()
            dataset = {
                "info": info,
                "images": [],
                "annotations": [],
                "categories": [{"id": id_, "name": name} for name, id_ in CATEGORY_IDS.items()],
            }
            for i in tqdm(
                range(count), f"drawing {split}", unit="image", leave=False, disable=None
            ):
                image, shapes = draw(np.random.default_rng((seed, number, i)))
                _add(dataset, f"{i:06d}.jpg", image, shapes)
                Image.fromarray(image).save(temporary / split / f"{i:06d}.jpg", quality=92)
            path = temporary / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(dataset))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _info(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "annotations" / "instances_val.json").read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _add(dataset: dict, file_name: str, image: np.ndarray, shapes: list[Shape]) -> None:
    height, width = image.shape[:2]
    image_id = len(dataset["images"]) + 1
    dataset["images"].append(
        {"id": image_id, "file_name": file_name, "height": height, "width": width}
    )
    for shape in shapes:
        segmentation = _segmentation(shape)
        # Not shape.mask: filling a polygon may differ from drawing it by some border pixels.
        rows, columns = np.nonzero(Annotation(0, 0, segmentation, False).mask(height, width))
        left, top = int(columns.min()), int(rows.min())
        dataset["annotations"].append(
            {
                "id": len(dataset["annotations"]) + 1,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[shape.name],
                "iscrowd": int(shape.crowd),
                "area": len(rows),
                "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                "segmentation": segmentation,
            }
        )


def _segmentation(shape: Shape) -> list[list[float]] | dict:
    """As COCO would have it: RLE with plain counts for crowds, and polygons wherever they will do.

    A polygon's own corners if nothing hides it, the outlines of the parts of what has been cut
    into several, and compressed RLE for the rest: round, half hidden or with a hole.
    """
    mask = shape.mask
    if shape.crowd:
        pixels = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(pixels, prepend=False))
        counts = np.diff(changes, prepend=0, append=pixels.size).tolist()
        return {"size": list(mask.shape), "counts": counts}
    if shape.corners is not None and mask.sum() == shape.area:
        return [shape.corners.round(2).ravel().tolist()]
    parts, count = ndimage.label(mask)
    if count > 1:
        outlines = [_outline(parts == part) for part in range(1, count + 1)]
        if (Annotation(0, 0, outlines, False).mask(*mask.shape) == mask).all():  # no holes
            return outlines
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def _outline(mask: np.ndarray) -> list[float]:
    """The outer border of a connected mask as a polygon along the edges of its pixels."""
    inside = np.pad(mask, 1)
    step = {}  # from a pixel's corner to the next ones, with the mask to the right
    for dy, dx, start, end in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (1, 1)),
        (1, 0, (1, 1), (0, 1)),
        (0, -1, (0, 1), (0, 0)),
    ):
        border = inside & ~np.roll(inside, (-dy, -dx), (0, 1))
        for y, x in np.argwhere(border).tolist():
            step.setdefault((x - 1 + start[0], y - 1 + start[1]), []).append(
                (x - 1 + end[0], y - 1 + end[1])
            )
    first = point = min(step)
    path = []
    while point != first or not path:
        following = step[point].pop()
        path.append(point)
        point = following
    path = np.array(path)
    before, after = path - np.roll(path, 1, 0), np.roll(path, -1, 0) - path
    return path[(before != after).any(axis=1)].ravel().tolist()


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """One picture, uint8 [H, W, 3], and what is visible of its shapes, from back to front."""
    height, width = (int(side) for side in rng.integers(160, 225, 2))
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    canvas = _background(rng, x, y)
    shapes = [_draw_crowd(rng, canvas, x, y)] if rng.random() < 0.12 else []
    missing = int(rng.integers(2, 6))
    for _ in range(60):
        name = str(rng.choice(list(CATEGORY_IDS)))
        low, high = (0.1, 0.2) if rng.random() < 0.1 else (0.2, 0.45)
        size = rng.uniform(low, high) * min(height, width)
        center = rng.uniform(0.35 * size, np.array((width, height)) - 0.35 * size)
        angle = rng.uniform(0, 2 * np.pi)
        distance, corners = _distance(name, x, y, center, size, angle)
        mask = distance < 0
        if any((shape.mask & ~mask).sum() < 0.5 * shape.area for shape in shapes):
            continue  # what is left of the shape behind would be hard to tell
        for shape in shapes:
            shape.mask &= ~mask
        shadow, _ = _distance(name, x, y, center + 0.04 * size, size, angle)
        canvas *= 1 - 0.4 * _coverage(shadow / (0.06 * size))
        color = _surface(rng, name, x - center[0], y - center[1], size, angle)
        color *= 1 - 0.45 * _coverage(-distance / (0.02 * size) - 1)  # a darker rim
        canvas += _coverage(distance) * (color - canvas)
        shapes.append(Shape(name, mask, int(mask.sum()), corners))
        missing -= 1
        if not missing:
            break
    canvas += rng.normal(0, 0.015, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8), shapes


def _coverage(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel is inside, [H, W, 1] in 0..1, by the signed distance to the border."""
    return np.clip(0.5 - distance, 0, 1)[:, :, None]


def _distance(
    name: str, x: np.ndarray, y: np.ndarray, center: np.ndarray, size: float, angle: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Signed distance in pixels, negative inside, and the corners if it is a polygon."""
    radius = np.hypot(x - center[0], y - center[1])
    if name == "disc":
        return radius - size / 2, None
    if name == "ring":
        return np.abs(radius - 0.38 * size) - 0.12 * size, None
    sides = {"square": 4, "triangle": 3}[name]
    normals = angle + np.arange(sides) * 2 * np.pi / sides
    inner = {"square": 0.44, "triangle": 0.3}[name] * size
    distance = np.max(
        [(x - center[0]) * np.cos(a) + (y - center[1]) * np.sin(a) for a in normals], axis=0
    )
    between = normals + np.pi / sides
    outer = inner / np.cos(np.pi / sides)
    corners = center + outer * np.stack([np.cos(between), np.sin(between)], axis=1)
    return distance - inner, corners


def _surface(
    rng: np.random.Generator, name: str, x: np.ndarray, y: np.ndarray, size: float, angle: float
) -> np.ndarray:
    """The color [H, W, 3] of a shape at pixels relative to its center: pattern and light."""
    hue = HUES[name] + rng.normal(0, 0.04) if rng.random() < 0.8 else rng.random()
    color = _color(hue, rng.uniform(0.55, 0.95), rng.uniform(0.65, 0.95))
    other = _color(hue + rng.normal(0, 0.04), rng.uniform(0.2, 0.6), rng.uniform(0.35, 1.0))
    pattern = PATTERNS[name] if rng.random() < 0.7 else str(rng.choice(list(PATTERNS.values())))
    wave = 2 * np.pi * rng.uniform(3, 5) / size
    u = (x * np.cos(angle) + y * np.sin(angle)) * wave
    v = (y * np.cos(angle) - x * np.sin(angle)) * wave
    value = {
        "stripes": np.sin(u),
        "checks": np.sin(u) * np.sin(v) * 2,
        "spots": np.cos(u) + np.cos(v) - 0.8,
        "plain": np.full_like(u, -1),
    }[pattern]
    mix = np.clip(0.5 + value / wave * 0.7, 0, 1)[:, :, None]
    light = rng.uniform(0, 2 * np.pi)
    shade = 1 + 0.35 * (x * np.cos(light) + y * np.sin(light)) / size
    return ((1 - mix) * color + mix * other) * shade[:, :, None]


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _background(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Clouds of two dull colors, float32 [H, W, 3], with finer ones on top."""
    height, width = x.shape

    def clouds(cells: int) -> np.ndarray:
        grid = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))

    mix = 0.5 + 0.3 * clouds(4) + 0.12 * clouds(11) + 0.06 * clouds(37)
    first, second = (
        _color(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.25, 0.8)) for _ in range(2)
    )
    grain = 1 + 0.06 * clouds(90)
    return (first + np.clip(mix, 0, 1)[:, :, None] * (second - first)) * grain[:, :, None]


def _draw_crowd(
    rng: np.random.Generator, canvas: np.ndarray, x: np.ndarray, y: np.ndarray
) -> Shape:
    """A swarm of tiny discs, painted onto the canvas."""
    height, width = x.shape
    spread = rng.uniform(0.08, 0.12) * min(height, width)
    center = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    dots = rng.normal(center, spread, (int(rng.integers(30, 50)), 2))
    distance = np.full_like(x, np.inf)
    for dot_x, dot_y in dots:
        dot = np.hypot(x - dot_x, y - dot_y) - rng.uniform(2, 3.5)
        color = _color(HUES["disc"] + rng.normal(0, 0.04), 0.8, rng.uniform(0.6, 0.95))
        canvas += _coverage(dot) * (color - canvas)
        np.minimum(distance, dot, out=distance)
    mask = distance < 0
    return Shape("disc", mask, int(mask.sum()), crowd=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="folder to write; it must be new or empty")
    parser.add_argument("--train", type=int, default=320, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=48, help="validation images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images")
    args = parser.parse_args()
    print(write_demo(args.out, args.train, args.val, args.seed))


if __name__ == "__main__":
    run(main)
