"""COCO instance annotations: a JSON and the checked records in it.

Format: https://cocodataset.org/#format-data
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fastinst.data.dataset import Annotation, Dataset, ImageRecord, unique_names
from fastinst.data.garbage_collection import no_garbage_collection
from fastinst.data.segmentation import INVISIBLE, check_segmentations
from fastinst.errors import InputError


@no_garbage_collection()
def load_coco(json_path: str | Path, image_folder: str | Path) -> Dataset:
    """Read and check a COCO JSON; no image is opened.

    Annotations without a usable segmentation are left out and listed in `skipped`.
    Raises InputError for anything that makes the rest of the file doubtful: no COCO structure,
    missing fields, ids used twice or unknown, images that are not in the folder.
    """
    json_path, image_folder = Path(json_path), Path(image_folder)
    images, annotations, categories = _read_tables(json_path)

    category_ids = _unique_ids(categories, "category", json_path)
    names = _column(categories, "name", str, "category", json_path)
    class_names = unique_names(dict(zip(category_ids, names, strict=True)))
    category_ids = sorted(category_ids)

    image_ids = _unique_ids(images, "image", json_path)
    file_names = _column(images, "file_name", str, "image", json_path)
    for row in images:
        for side in ("height", "width"):
            if type(row.get(side)) is float and row[side].is_integer():
                row[side] = int(row[side])
    sides = [_column(images, side, int, "image", json_path) for side in ("height", "width")]
    sizes = dict(zip(image_ids, zip(*sides, strict=True), strict=True))
    for image_id, size in sizes.items():
        if min(size) < 1:
            raise InputError(f"{json_path}: image {image_id} has height and width {size}")
    missing = _missing_files(image_folder, file_names)
    if missing:
        raise InputError(
            f"{json_path}: {len(missing)} of its {len(images)} images are not in {image_folder}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )

    ids = _unique_ids(annotations, "annotation", json_path)
    owners = _references(annotations, "image", image_ids, ids, json_path)
    kinds = _references(annotations, "category", category_ids, ids, json_path)
    segmentations = check_segmentations(annotations, [sizes[owner] for owner in owners])
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    names = dict(zip(image_ids, file_names, strict=True))
    visible, invisible = ({image_id: [] for image_id in image_ids} for _ in range(2))
    skipped = []
    for row, id_, owner, kind, segmentation in zip(
        annotations, ids, owners, kinds, segmentations, strict=True
    ):
        kept = visible
        if isinstance(segmentation, str):
            skipped.append(f"annotation {id_} of image {owner} ({names[owner]}): {segmentation}")
            if segmentation not in INVISIBLE:
                continue
            kept, segmentation = invisible, []
        crowd, area = bool(row.get("iscrowd")), row.get("area")
        area = area if type(area) in (int, float) else None
        kept[owner].append(Annotation(id_, labels[kind], segmentation, crowd, area))
    return Dataset(
        json_path,
        image_folder,
        class_names,
        tuple(category_ids),
        tuple(
            ImageRecord(
                image_id,
                image_folder / names[image_id],
                *size,
                tuple(visible[image_id]),
                tuple(invisible[image_id]),
            )
            for image_id, size in sizes.items()
        ),
        tuple(skipped),
    )


def _read_tables(json_path: Path) -> list[list[dict]]:
    try:
        with open(json_path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{json_path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{json_path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{json_path}: not COCO: it holds a {type(data).__name__}, not an object")
    for name in ("images", "annotations", "categories"):
        if not isinstance(data.get(name), list):
            state = f"is a {type(data[name]).__name__}" if name in data else "is missing"
            raise InputError(f"{json_path}: not COCO: its list of {name} {state}")
        if not data[name] and name != "annotations":
            raise InputError(f"{json_path}: its list of {name} is empty")
    if any(isinstance(row, dict) and "segments_info" in row for row in data["annotations"][:1]):
        raise InputError(f"{json_path}: a COCO panoptic file; the instances file is needed")
    return [data["images"], data["annotations"], data["categories"]]


def _column(rows: list[dict], field: str, kind: type, what: str, json_path: Path) -> list:
    """One field of all rows. Whole columns are checked at once, since COCO has 860,000 rows."""
    try:
        values = [row[field] for row in rows]
    except (KeyError, TypeError):
        values = [row.get(field) if isinstance(row, dict) else None for row in rows]
    if not set(map(type, values)) <= {kind}:
        i = next(i for i, value in enumerate(values) if type(value) is not kind)
        row = json.dumps(rows[i])
        raise InputError(
            f"{json_path}: {what} {row if len(row) < 200 else row[:200] + '...'} (number {i + 1}) "
            f"has no {field} of type {kind.__name__}"
        )
    return values


def _unique_ids(rows: list[dict], what: str, json_path: Path) -> list[int]:
    ids = _column(rows, "id", int, what, json_path)
    if len(set(ids)) < len(ids):
        culprit, count = Counter(ids).most_common(1)[0]
        raise InputError(f"{json_path}: {count} {what} entries have the id {culprit}")
    return ids


def _references(
    annotations: list[dict], what: str, known: list[int], ids: list[int], json_path: Path
) -> list[int]:
    references = _column(annotations, f"{what}_id", int, "annotation", json_path)
    unknown = set(references) - set(known)
    if unknown:
        i = next(i for i, reference in enumerate(references) if reference in unknown)
        raise InputError(
            f"{json_path}: annotation {ids[i]} refers to {what} {references[i]}, which is not "
            f"listed ({sum(r in unknown for r in references)} annotations like it)"
        )
    return references


def _missing_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Folders are listed instead of asking for each file, which network disks answer slowly."""
    listings, missing = {}, []
    for name in names:
        sub, base = os.path.split(name)
        if sub not in listings:
            place = folder / sub
            listings[sub] = set(os.listdir(place)) if place.is_dir() else set()
        if base not in listings[sub]:
            missing.append(name)
    return missing
