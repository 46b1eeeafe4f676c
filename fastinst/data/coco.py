"""COCO instance annotations: a JSON and the checked records in it.

Format: https://cocodataset.org/#format-data
"""

from pathlib import Path

from fastinst.data.coco_tables import (
    read_categories,
    read_images,
    read_tables,
    references,
    unique_ids,
)
from fastinst.data.dataset import Annotation, Dataset, ImageRecord
from fastinst.data.garbage_collection import no_garbage_collection
from fastinst.data.segmentation import INVISIBLE, check_segmentations
from fastinst.errors import InputError

LARGEST = 1e9  # of a box's coordinates, in pixels


@no_garbage_collection()
def load_coco(json_path: str | Path, image_folder: str | Path) -> Dataset:
    """Read and check a COCO JSON; no image is opened.

    Annotations without a usable segmentation are left out and listed in `skipped`.
    Raises InputError for anything that makes the rest of the file doubtful: no COCO structure,
    missing fields, ids used twice or unknown, images that are not in the folder.
    """
    json_path, image_folder = Path(json_path), Path(image_folder)
    images, annotations, categories = read_tables(json_path)
    if any(isinstance(row, dict) and "segments_info" in row for row in annotations[:1]):
        raise InputError(f"{json_path}: a COCO panoptic file; the instances file is needed")
    category_ids, class_names = read_categories(categories, json_path)
    images = read_images(images, json_path, image_folder)
    sizes = {image_id: size for image_id, (_, size) in images.items()}

    ids = unique_ids(annotations, "annotation", json_path)
    owners = references(annotations, "image", images, ids, json_path)
    kinds = references(annotations, "category", category_ids, ids, json_path)
    segmentations = check_segmentations(annotations, [sizes[owner] for owner in owners])
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    visible, invisible = ({image_id: [] for image_id in images} for _ in range(2))
    skipped = []
    for row, id_, owner, kind, segmentation in zip(
        annotations, ids, owners, kinds, segmentations, strict=True
    ):
        kept = visible
        if isinstance(segmentation, str):
            skipped.append(
                f"annotation {id_} of image {owner} ({images[owner][0]}): {segmentation}"
            )
            if segmentation not in INVISIBLE:
                continue
            kept, segmentation = invisible, []
        crowd, area = bool(row.get("iscrowd")), row.get("area")
        area = area if type(area) in (int, float) else None
        box = _box(row.get("bbox"))
        kept[owner].append(Annotation(id_, labels[kind], segmentation, crowd, area, box))
    return Dataset(
        json_path,
        image_folder,
        class_names,
        category_ids,
        tuple(
            ImageRecord(
                image_id,
                image_folder / file_name,
                *size,
                tuple(visible[image_id]),
                tuple(invisible[image_id]),
            )
            for image_id, (file_name, size) in images.items()
        ),
        tuple(skipped),
    )


def _box(given: object) -> tuple[float, ...] | None:
    """A "bbox" if it is one: four numbers, and not nan or any that no image has."""
    if not isinstance(given, list) or len(given) != 4:
        return None
    usable = all(type(x) in (int, float) and abs(x) < LARGEST for x in given)
    return tuple(map(float, given)) if usable else None
