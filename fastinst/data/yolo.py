"""YOLO's segmentation format: beside each image a text file with a polygon per line.

Format: https://docs.ultralytics.com/datasets/segment/
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count, cycle
from os.path import commonpath
from pathlib import Path

from tqdm import tqdm

from fastinst.data.dataset import Annotation, Dataset, ImageRecord, MissingSplit, unique_names
from fastinst.data.garbage_collection import no_garbage_collection
from fastinst.data.images import image_size, quiet_pillow
from fastinst.data.layouts import SPLITS
from fastinst.data.segmentation import INVISIBLE, check_segmentations
from fastinst.data.yolo_layouts import find_yolo, label_folder
from fastinst.errors import InputError

# The number of a line, its class (-1 for none), and its points or why it has none.
Line = tuple[int, int, list[float] | str]


@no_garbage_collection()
def load_yolo(path: str | Path, split: str) -> Dataset:
    """Read and check a YOLO data set; of the images only the headers are read, for their sizes.

    path, split: as for `find_yolo`
    An image without a label file has no objects. Lines without a usable polygon, boxes among
    them, are left out and listed in `skipped`, as are label files without an image. Images count
    from 1 in the order of their paths, annotations from 1 in the order of the lines; category ids
    are YOLO's class numbers. Without class names anywhere, "class 0" and so on are made up.
    Raises MissingSplit if there is no such split; InputError for images or label files that cannot
    be read, for classes without a name and if no image has a label file.
    """
    files = find_yolo(path, split)
    label_paths, labels = _read_all(files.images)
    if all(lines is None for lines in labels):
        raise InputError(
            f"{files.source}: none of {len(labels)} images has a label file, which for "
            f"{files.images[0]} would be {label_paths[0]}. Without objects a file may be empty"
        )
    names = files.class_names
    if names is None:
        names = _made_up_names(labels, path, split)
    for label_path, lines in zip(label_paths, labels, strict=True):
        for line, number, _ in lines or ():
            if number >= 0 and number not in names:
                raise InputError(
                    f"{label_path}, line {line}: class {number}, and {files.names_source} has no "
                    f"name for it, only for {', '.join(map(str, sorted(names)[:20]))}"
                )
    images, skipped = _records(files.images, label_paths, labels, sorted(names))
    expected = set(label_paths)
    for folder in files.label_folders:
        for label_path in sorted(folder.glob("*.txt")):
            if label_path not in expected and label_path.name != "classes.txt":
                skipped.append(f"{label_path}: there is no image of this name")
    return Dataset(
        files.source,
        Path(commonpath({image.parent for image in files.images})),
        unique_names(names),
        tuple(sorted(names)),
        tuple(images),
        tuple(skipped),
    )


def _read_all(images: Sequence[Path]) -> tuple[list[Path], list[list[Line] | None]]:
    """The label file of each image and its lines."""
    folders = {folder: label_folder(folder) for folder in {image.parent for image in images}}
    label_paths = [folders[image.parent] / f"{image.stem}.txt" for image in images]
    with ThreadPoolExecutor() as pool:
        return label_paths, list(pool.map(read_labels, label_paths))


def read_labels(path: Path) -> list[Line] | None:
    """The objects of one label file, or None if there is no such file.

    Returns (number of the line, class number, x0, y0, x1, y1, ... as fractions of the image's
    width and height) for each object; instead of the fractions, the reason for a line without.
    The class number is -1 where there is none.
    Raises InputError, naming the file, if it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as YOLO labels: {error}") from error
    lines = enumerate(text.split("\n"), start=1)
    return [(number, *_parse(line)) for number, line in lines if line.strip()]


def _parse(line: str) -> tuple[int, list[float] | str]:
    try:
        number, *points = map(float, line.split())
    except ValueError:
        return -1, f"{line[:40]!r} are not all numbers"
    if not number.is_integer() or number < 0:
        return -1, f"its class {number:g} is no whole number from 0"
    if len(points) == 4:
        return int(number), "it is a box (class x y width height), and a box is no mask"
    if any(not -1 <= x <= 2 for x in points if x == x):
        return int(number), "its coordinates are no fractions of the image's width and height"
    return int(number), points


def _records(
    images: Sequence[Path],
    label_paths: Sequence[Path],
    labels: Sequence[list[Line] | None],
    numbers: Sequence[int],
) -> tuple[list[ImageRecord], list[str]]:
    """The images with their checked annotations, and what was left out of them."""
    sizes = _image_sizes(images)
    rows, row_sizes = [], []
    for lines, size in zip(labels, sizes, strict=True):
        for _, _, points in lines or ():
            usable = [] if isinstance(points, str) else points
            scaled = [x * side for x, side in zip(usable, cycle(size[::-1]), strict=False)]
            rows.append({"segmentation": [scaled]})
            row_sizes.append(size)
    checked = iter(check_segmentations(rows, row_sizes))

    label_of = {number: label for label, number in enumerate(numbers)}
    ids, records, skipped = count(1), [], []
    for i, lines in enumerate(labels):
        visible, invisible = [], []
        for line, number, points in lines or ():
            id_, segmentation, kept = next(ids), next(checked), visible
            if isinstance(points, str):
                segmentation = points
            if isinstance(segmentation, str):
                skipped.append(f"{label_paths[i]}, line {line} ({images[i].name}): {segmentation}")
                if segmentation not in INVISIBLE:
                    continue
                kept, segmentation = invisible, []
            kept.append(Annotation(id_, label_of[number], segmentation, iscrowd=False))
        records.append(ImageRecord(i + 1, images[i], *sizes[i], tuple(visible), tuple(invisible)))
    return records, skipped


def _image_sizes(images: Sequence[Path]) -> list[tuple[int, int]]:
    def size_or_fault(path: Path) -> tuple[int, int] | str:
        try:
            return image_size(path)
        except InputError as error:
            return str(error)

    with quiet_pillow(), ThreadPoolExecutor() as pool:
        found = pool.map(size_or_fault, images)
        bar = tqdm(found, "reading image sizes", len(images), leave=False, disable=None)
        sizes = list(bar)
    faults = [size for size in sizes if isinstance(size, str)]
    if faults:
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        title = f"{len(faults)} of {len(sizes)} images are unusable:"
        raise InputError("\n  ".join([title, *faults[:10], *more]))
    return sizes


def _made_up_names(labels: Sequence, path: str | Path, split: str) -> dict[int, str]:
    """Names for the classes of both splits, so that these have the same."""
    both = [*labels]
    for other in set(SPLITS) - {split}:
        with suppress(MissingSplit):
            both += _read_all(find_yolo(path, other).images)[1]
    numbers = {number for lines in both for _, number, _ in lines or () if number >= 0}
    return {number: f"class {number}" for number in numbers or {0}}
