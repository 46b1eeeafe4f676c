"""Cityscapes: leftImg8bit and gtFine as they are unpacked.

All three tasks come from one file of each image: the pixels of *_instanceIds.png are 1000 times
the class and a number, or just the class for stuff and for groups of objects.

Format: https://www.cityscapes-dataset.com, and the label ids of
https://github.com/mcordts/cityscapesScripts
"""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from fastinst.data.dataset import Annotation, Dataset, ImageRecord, MissingSplit
from fastinst.data.id_maps import encode_segments
from fastinst.data.images import quiet_pillow
from fastinst.errors import InputError

THINGS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
STUFF = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
}
IMAGES, TRUTH = "leftImg8bit", "gtFine"
FIX = (
    "Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from "
    "https://www.cityscapes-dataset.com/downloads and unpack both in one folder:\n"
    "  FOLDER/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png\n"
    "  FOLDER/gtFine/{train,val}/CITY/*_gtFine_instanceIds.png"
)


def is_cityscapes(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() or (folder / TRUTH).is_dir()


def frame_name(image: Path) -> str:
    """What the names of all files of an image begin with, such as ulm_000000_000019."""
    return image.name.removesuffix(f"_{IMAGES}.png")


def truth_file(image: Path, kind: str) -> Path:
    """The annotations of an image, such as *_gtFine_labelIds.png, which kind is the end of."""
    root, split, city = image.parents[3], image.parents[1].name, image.parent.name
    return root / TRUTH / split / city / f"{frame_name(image)}_{TRUTH}_{kind}"


def load_cityscapes(root: str | Path, split: str, task: str = "instance") -> Dataset:
    """Read the annotations of a split, "train" or "val"; no image is opened.

    They come from *_instanceIds.png or, where that is missing, *_polygons.json. Ids count from 1
    in the order of the file names; category ids are the label ids of Cityscapes.

    task: what an annotation is:
        "instance": an object of the 8 classes with objects, or a crowd: a group that nobody told
            apart
        "panoptic": that, and of each of the 11 classes of stuff all there is in an image
        "semantic": of each of these 19 classes all there is in an image
    Raises MissingSplit if there are no images of this split, InputError, naming the files, if
    annotations are missing or unreadable.
    """
    root = Path(root)
    images = sorted((root / IMAGES / split).glob(f"*/*_{IMAGES}.png"))
    if not images:
        raise MissingSplit(f"{root}: no images {IMAGES}/{split}/CITY/*_{IMAGES}.png. {FIX}")
    truths, missing = [], []
    listings: dict[Path, set[Path]] = {}
    for image in images:
        candidates = [truth_file(image, kind) for kind in ("instanceIds.png", "polygons.json")]
        folder = candidates[0].parent
        if folder not in listings:
            listings[folder] = set(folder.iterdir()) if folder.is_dir() else set()
        found = [path for path in candidates if path in listings[folder]]
        truths += found[:1]
        missing += [] if found else candidates[:1]
    if missing:
        names = ", ".join(str(path.relative_to(root)) for path in missing[:5])
        raise InputError(
            f"{root}: {len(missing)} of {len(images)} images have no annotations: "
            f"{names}{', ...' if len(missing) > 5 else ''}. {FIX}"
        )

    classes = THINGS if task == "instance" else dict(sorted((STUFF | THINGS).items()))
    labels = {class_id: label for label, class_id in enumerate(classes)}
    records, count = [], 0
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        read = tqdm(
            pool.map(partial(_read_segments, task=task), truths),
            f"reading {TRUTH}/{split}",
            len(truths),
            unit="image",
            leave=False,
            disable=None,
        )
        for image, (size, segments) in zip(images, read, strict=True):
            annotations = []
            for value, code, area in segments:
                class_id = value if value < 1000 else value // 1000
                if class_id in labels:
                    count += 1
                    crowd = task != "semantic" and value in THINGS
                    annotations.append(Annotation(count, labels[class_id], code, crowd, area))
            records.append(ImageRecord(len(records) + 1, image, *size, tuple(annotations)))
    is_thing = None
    if task != "instance":
        is_thing = tuple(task == "panoptic" and class_id in THINGS for class_id in classes)
    return Dataset(
        root / TRUTH / split,
        root / IMAGES / split,
        tuple(classes.values()),
        tuple(classes),
        tuple(records),
        (),
        is_thing,
    )


def _read_segments(path: Path, task: str) -> tuple[tuple[int, int], list[tuple[int, dict, int]]]:
    """The size of an image, and the value, RLE and area of each of its segments."""
    try:
        ids = _draw(json.loads(path.read_bytes())) if path.suffix == ".json" else _decode(path)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise InputError(f"{path}: cannot be read as Cityscapes instances: {error!r}") from error
    if task == "semantic":
        ids = np.where(ids < 1000, ids, ids // 1000)
    return ids.shape, encode_segments(ids)


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"its pixels are {image.mode}, not 16-bit ids")
        return np.asarray(image, dtype=np.uint16)


def _draw(content: dict) -> np.ndarray:
    """The ids that *_instanceIds.png would have: later polygons lie over earlier ones.

    The objects of a class count from 0; what has none of our classes only hides what it covers.
    """
    canvas = Image.new("I", (content["imgWidth"], content["imgHeight"]))
    draw, counts = ImageDraw.Draw(canvas), dict.fromkeys(THINGS, 0)
    class_ids = {name: class_id for class_id, name in (STUFF | THINGS).items()}
    for item in content["objects"]:
        name, points = item["label"], [tuple(point) for point in item["polygon"]]
        # Plates are annotated on top of cars but belong to them.
        if item.get("deleted") or name == "license plate" or len(points) < 3:
            continue
        value = class_ids.get(name)
        if value in counts:
            counts[value] += 1
            value = 1000 * value + counts[value] - 1
        elif value is None and name != "polegroup":  # which is no group of poles, but void
            value = class_ids.get(name.removesuffix("group"))
        draw.polygon(points, fill=value or 0)
    return np.asarray(canvas).astype(np.uint16)
