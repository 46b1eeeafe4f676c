"""Cityscapes: leftImg8bit and gtFine as they are unpacked, instances of its 8 classes with any.

Format: https://www.cityscapes-dataset.com, and the label ids of
https://github.com/mcordts/cityscapesScripts
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils
from tqdm import tqdm

from fastinst.data.dataset import Annotation, Dataset, ImageRecord, MissingSplit
from fastinst.data.images import quiet_pillow
from fastinst.errors import InputError

CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
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


def load_cityscapes(root: str | Path, split: str) -> Dataset:
    """Read the instances of a split, "train" or "val"; no image is opened.

    They come from *_instanceIds.png or, where that is missing, *_polygons.json. A group of
    objects that nobody told apart is a crowd. Ids count from 1 in the order of the file names;
    category ids are the label ids of Cityscapes.
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
        folder = root / TRUTH / split / image.parent.name
        if folder not in listings:
            listings[folder] = set(folder.iterdir()) if folder.is_dir() else set()
        stem = folder / image.name.removesuffix(f"_{IMAGES}.png")
        candidates = [
            Path(f"{stem}_{TRUTH}_{kind}") for kind in ("instanceIds.png", "polygons.json")
        ]
        found = [path for path in candidates if path in listings[folder]]
        truths += found[:1]
        missing += [] if found else candidates[:1]
    if missing:
        names = ", ".join(str(path.relative_to(root)) for path in missing[:5])
        raise InputError(
            f"{root}: {len(missing)} of {len(images)} images have no annotations: "
            f"{names}{', ...' if len(missing) > 5 else ''}. {FIX}"
        )

    labels = {class_id: label for label, class_id in enumerate(CLASSES)}
    records, count = [], 0
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        read = tqdm(
            pool.map(_read_instances, truths),
            f"reading {TRUTH}/{split}",
            len(truths),
            unit="image",
            leave=False,
            disable=None,
        )
        for image, ((height, width), instances) in zip(images, read, strict=True):
            annotations = []
            for instance_id, code, area in instances:
                count += 1
                crowd = instance_id < 1000
                label = labels[instance_id if crowd else instance_id // 1000]
                annotations.append(Annotation(count, label, code, crowd, area))
            records.append(ImageRecord(len(records) + 1, image, height, width, tuple(annotations)))
    return Dataset(
        root / TRUTH / split,
        root / IMAGES / split,
        tuple(CLASSES.values()),
        tuple(CLASSES),
        tuple(records),
        (),
    )


Instance = tuple[int, dict, int]


def _read_instances(path: Path) -> tuple[tuple[int, int], list[Instance]]:
    """The size of an image and its (instance id, RLE, area)."""
    try:
        ids = _draw(json.loads(path.read_bytes())) if path.suffix == ".json" else _decode(path)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise InputError(f"{path}: cannot be read as Cityscapes instances: {error!r}") from error
    return ids.shape, encode_instances(ids)


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"its pixels are {image.mode}, not 16-bit ids")
        return np.asarray(image, dtype=np.uint16)


def _draw(content: dict) -> np.ndarray:
    """The ids that *_instanceIds.png would have: later polygons lie over earlier ones.

    The instances of a class count from 0; what is no instance only hides what it covers.
    """
    canvas = Image.new("I", (content["imgWidth"], content["imgHeight"]))
    draw, counts = ImageDraw.Draw(canvas), {class_id: 0 for class_id in CLASSES}
    class_ids = {name: class_id for class_id, name in CLASSES.items()}
    for thing in content["objects"]:
        name, points = thing["label"], [tuple(point) for point in thing["polygon"]]
        # Plates are annotated on top of cars but belong to them.
        if thing.get("deleted") or name == "license plate" or len(points) < 3:
            continue
        class_id = class_ids.get(name)
        value = class_ids.get(name.removesuffix("group"), 0)
        if class_id is not None:
            value = 1000 * class_id + counts[class_id]
            counts[class_id] += 1
        draw.polygon(points, fill=value)
    return np.asarray(canvas).astype(np.uint16)


def encode_instances(ids: np.ndarray) -> list[Instance]:
    """(id, compressed RLE, pixels) of each instance or group of CLASSES, by ascending id.

    ids: [H, W] integers: 1000 * class + number, or just the class for a group
    All masks come out of one pass over the image's columns, since a mask each takes far longer.
    """
    height, width = ids.shape
    flat = ids.T.reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts].astype(np.int64)
    wanted = np.isin(np.where(values < 1000, values, values // 1000), list(CLASSES))
    starts, ends, values = starts[wanted], ends[wanted], values[wanted]
    order = np.argsort(values, kind="stable")
    instances = []
    for run in np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(order) else ():
        borders = np.stack([starts[run], ends[run]], axis=1).ravel()
        if borders[-1] < flat.size:
            borders = np.append(borders, flat.size)
        counts = np.diff(borders, prepend=0)
        code = {"size": [height, width], "counts": counts.tolist()}
        code = mask_utils.frPyObjects(code, height, width)
        instances.append((int(values[run[0]]), code, int(counts[1::2].sum())))
    return instances
