"""The tables in a COCO JSON, instances or panoptic: images, categories, and checked columns.

All raise InputError, naming the file and the entry, for what makes the rest of it doubtful:
missing fields, ids used twice or unknown, images that are not in the folder.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from fastinst.data.dataset import unique_names
from fastinst.errors import InputError


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; raises InputError if it cannot be read as such."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read as JSON: {reason}") from error


def read_tables(json_path: Path) -> list[list[dict]]:
    """The images, annotations and categories, none of them checked.

    Raises InputError if the file has no such lists, or no images or categories in them.
    """
    data = read_json(json_path)
    if not isinstance(data, dict):
        raise InputError(f"{json_path}: not COCO: it holds a {type(data).__name__}, not an object")
    for name in ("images", "annotations", "categories"):
        if not isinstance(data.get(name), list):
            state = f"is a {type(data[name]).__name__}" if name in data else "is missing"
            raise InputError(f"{json_path}: not COCO: its list of {name} {state}")
        if not data[name] and name != "annotations":
            raise InputError(f"{json_path}: its list of {name} is empty")
    return [data["images"], data["annotations"], data["categories"]]


def read_categories(
    categories: list[dict], json_path: Path
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and class names by label; labels follow the order of the ids."""
    ids = unique_ids(categories, "category", json_path)
    names = column(categories, "name", str, "category", json_path)
    return tuple(sorted(ids)), unique_names(dict(zip(ids, names, strict=True)))


def read_images(
    images: list[dict], json_path: Path, image_folder: Path
) -> dict[int, tuple[str, tuple[int, int]]]:
    """{id: (file name, (height, width))}, the files being in the folder."""
    image_ids = unique_ids(images, "image", json_path)
    file_names = column(images, "file_name", str, "image", json_path)
    for row in images:
        for side in ("height", "width"):
            if type(row.get(side)) is float and row[side].is_integer():
                row[side] = int(row[side])
    sides = [column(images, side, int, "image", json_path) for side in ("height", "width")]
    sizes = list(zip(*sides, strict=True))
    for image_id, size in zip(image_ids, sizes, strict=True):
        if min(size) < 1:
            raise InputError(f"{json_path}: image {image_id} has height and width {size}")
    missing = missing_files(image_folder, file_names)
    if missing:
        raise InputError(
            f"{json_path}: {len(missing)} of its {len(images)} images are not in {image_folder}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    return dict(zip(image_ids, zip(file_names, sizes, strict=True), strict=True))


def column(rows: list[dict], field: str, kind: type, what: str, json_path: Path) -> list:
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


def unique_ids(rows: list[dict], what: str, json_path: Path) -> list[int]:
    ids = column(rows, "id", int, what, json_path)
    if len(set(ids)) < len(ids):
        culprit, count = Counter(ids).most_common(1)[0]
        raise InputError(f"{json_path}: {count} {what} entries have the id {culprit}")
    return ids


def references(
    annotations: list[dict], what: str, known: Collection[int], ids: list[int], json_path: Path
) -> list[int]:
    """The image or category that each annotation, of these ids, names: one of the known."""
    references = column(annotations, f"{what}_id", int, "annotation", json_path)
    unknown = set(references) - set(known)
    if unknown:
        i = next(i for i, reference in enumerate(references) if reference in unknown)
        raise InputError(
            f"{json_path}: annotation {ids[i]} refers to {what} {references[i]}, which is not "
            f"listed ({sum(r in unknown for r in references)} annotations like it)"
        )
    return references


def missing_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that the folder does not have.

    Folders are listed instead of asking for each file, which network disks answer slowly.
    """
    listings, missing = {}, []
    for name in names:
        sub, base = os.path.split(name)
        if sub not in listings:
            place = folder / sub
            listings[sub] = set(os.listdir(place)) if place.is_dir() else set()
        if base not in listings[sub]:
            missing.append(name)
    return missing
