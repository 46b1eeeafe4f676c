"""Results of any model, out of a JSON file in the COCO results format.

Format: https://cocodataset.org/#format-results
"""

import json
from pathlib import Path

from fastinst.data.coco_tables import read_json
from fastinst.data.dataset import Annotation, Dataset
from fastinst.data.garbage_collection import no_garbage_collection
from fastinst.data.segmentation import INVISIBLE, check_segmentations
from fastinst.errors import InputError

# Of scores and of boxes' pixels; integers of any length are JSON too.
LARGEST = 1e30


@no_garbage_collection()
def read_predictions(path: Path | str, dataset: Dataset) -> dict[int, list[dict]]:
    """The results by image id, each with a "segmentation", a "bbox" or both.

    All have masks or none has, and the same for boxes. Masks come as compressed run-length codes;
    in the file they may also be polygons or uncompressed. One that covers no pixel is kept: it is
    wrong wherever it is.
    Raises InputError, which names the entry, for what is no result of this data set.
    """
    results = _read_list(Path(path))
    sizes = {record.id: (record.height, record.width) for record in dataset.images}
    categories = set(dataset.category_ids)
    fields = [name for name in ("segmentation", "bbox") if results and results[0].get(name)]
    for i, result in enumerate(results):
        fault = _fault(result, fields, sizes, categories)
        if fault:
            raise InputError(f"{path}: result {i + 1} of {len(results)} {fault}")

    codes = _codes(path, results, sizes) if "segmentation" in fields else None
    by_image: dict[int, list[dict]] = {}
    for i, result in enumerate(results):
        kept = {name: result[name] for name in ("image_id", "category_id", "score", *fields)}
        if codes is not None:
            kept["segmentation"] = codes[i]
        by_image.setdefault(result["image_id"], []).append(kept)
    return by_image


def _read_list(path: Path) -> list[dict]:
    results = read_json(path)
    if isinstance(results, dict) and isinstance(results.get("annotations"), list):
        raise InputError(
            f"{path}: it is a data set, not results: those are a list of entries with image_id, "
            f"category_id, score and segmentation or bbox, as evaluate.py --results writes it"
        )
    if not isinstance(results, list):
        raise InputError(f"{path}: not COCO results: it holds no list")
    for i, result in enumerate(results):
        if not isinstance(result, dict):
            raise InputError(f"{path}: result {i + 1} of {len(results)} is no object")
    return results


def _fault(result: dict, fields: list[str], sizes: dict, categories: set[int]) -> str:
    """What is wrong with an entry but for its mask; nothing if all is right."""
    image_id, category_id = result.get("image_id"), result.get("category_id")
    if type(image_id) is not int or image_id not in sizes:
        return f"is of image {json.dumps(image_id)}, which the data set does not have"
    if type(category_id) is not int or category_id not in categories:
        known = ", ".join(map(str, sorted(categories)[:5])) + (
            ", ..." if len(categories) > 5 else ""
        )
        return (
            f"(image {image_id}) is of category {json.dumps(category_id)}, which the data set does "
            f"not have: its ids are {known}"
        )
    if not _is_number(result.get("score")):
        return f"(image {image_id}) has no score that is a number"
    if not fields:
        return f"(image {image_id}) has neither a segmentation nor a bbox"
    for name in fields:
        if not result.get(name):
            return f"(image {image_id}) has no {name}, but result 1 has: all need the same"
    if "bbox" in fields:
        box = result["bbox"]
        numbers = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
        if not numbers or min(box[2:]) < 0:
            return f"(image {image_id}) has no bbox of left, top, width and height"
    return ""


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # nan is not


def _codes(path: Path | str, results: list[dict], sizes: dict) -> list[dict]:
    """The compressed run-length code of each result's mask."""
    ordered = [sizes[result["image_id"]] for result in results]
    codes = []
    for i, mask in enumerate(check_segmentations(results, ordered)):
        if isinstance(mask, str):
            if mask not in INVISIBLE:
                name = f"result {i + 1} of {len(results)} (image {results[i]['image_id']})"
                raise InputError(f"{path}: {name} has no usable mask: {mask}")
            mask = []
        codes.append(Annotation(i, 0, mask, False).rle(*ordered[i]))
    return codes
