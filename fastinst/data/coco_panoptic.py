"""COCO panoptic annotations: a JSON, and beside it a folder of PNGs whose colours are ids.

Format: https://cocodataset.org/#format-data
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fastinst.data.coco_tables import (
    column,
    missing_files,
    read_categories,
    read_images,
    read_tables,
)
from fastinst.data.dataset import Annotation, Dataset, ImageRecord, MissingSplit
from fastinst.data.garbage_collection import no_garbage_collection
from fastinst.data.id_maps import encode_segments, ids_of_colours
from fastinst.data.images import quiet_pillow
from fastinst.data.layouts import SPLITS, find_image_folder
from fastinst.errors import InputError

FIX = (
    "Download https://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip, "
    "unpack it and the two zip files in it, so that there are\n"
    "  FOLDER/annotations/panoptic_train2017.json\n"
    "  FOLDER/annotations/panoptic_train2017/*.png\n"
    "  FOLDER/train2017/*.jpg"
)


@no_garbage_collection()
def load_coco_panoptic(
    path: str | Path, split: str, image_folder: str | Path | None = None
) -> Dataset:
    """Read and check a COCO panoptic JSON and its PNGs, in the folder of the JSON's own name; no
    image is opened.

    Things and stuff alike are annotations, each segment one. Pixels whose id the JSON does not
    list are void, and segments without pixels are invisible; both are listed in `skipped`.

    path: the JSON; or a folder with panoptic_train*.json or panoptic_val*.json in annotations/ or
        in itself
    split: "train" or "val"; a JSON is taken for either
    image_folder: where the images are, if it is not to be found out
    Raises MissingSplit if there is no JSON of this split, MissingImages if the images are not
    found, InputError for anything else that is wrong, naming the file and the entry.
    """
    json_path = _find_json(Path(path), split)
    mask_folder = json_path.with_suffix("")
    tables = read_tables(json_path)
    category_ids, class_names = read_categories(tables[2], json_path)
    if not any("isthing" in row for row in tables[2]):
        raise InputError(
            f"{json_path}: no panoptic annotations, for no category says by isthing whether it is "
            f"a thing or stuff. {FIX}"
        )
    flags = column(tables[2], "isthing", int, "category", json_path)
    is_thing = {row["id"]: flag == 1 for row, flag in zip(tables[2], flags, strict=True)}
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    if image_folder is None:
        names = column(tables[0][:5], "file_name", str, "image", json_path)
        image_folder = find_image_folder(json_path, names)
    elif not Path(image_folder).is_dir():
        raise InputError(f"{image_folder}: no such folder of images")
    image_folder = Path(image_folder)
    images = read_images(tables[0], json_path, image_folder)
    rows = _annotations(tables[1], images, labels, json_path)
    absent = missing_files(mask_folder, [row["file_name"] for row in rows.values()])
    if absent:
        raise InputError(
            f"{json_path}: {len(absent)} of its {len(rows)} PNGs are not in {mask_folder}: "
            f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}. {FIX}"
        )

    def read(image_id: int) -> list[tuple[int, dict, int]]:
        row = rows.get(image_id)
        return _read_segments(mask_folder / row["file_name"], images[image_id][1]) if row else []

    records, skipped, count = [], [], 0
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        decoded = tqdm(
            pool.map(read, images),
            f"reading {mask_folder.name}",
            len(images),
            unit="image",
            leave=False,
            disable=None,
        )
        for (image_id, (name, size)), segments in zip(images.items(), decoded, strict=True):
            infos = rows[image_id]["segments_info"] if image_id in rows else []
            codes = {id_: (code, area) for id_, code, area in segments if id_ != 0}
            seen, unseen = [], []
            for info in infos:
                count += 1
                code, area = codes.pop(info["id"], ([], 0))
                annotation = Annotation(
                    count, labels[info["category_id"]], code, bool(info.get("iscrowd")), area
                )
                (seen if area else unseen).append(annotation)
                if not area:
                    skipped.append(f"segment {info['id']} of image {image_id} ({name}): no pixel")
            skipped += (
                f"segment {id_} of image {image_id} ({name}): not listed, so void" for id_ in codes
            )
            path = image_folder / name
            records.append(ImageRecord(image_id, path, *size, tuple(seen), tuple(unseen)))
    return Dataset(
        json_path,
        image_folder,
        class_names,
        category_ids,
        tuple(records),
        tuple(skipped),
        tuple(is_thing[category_id] for category_id in category_ids),
    )


def _find_json(path: Path, split: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    names = [f"panoptic_{name}*.json" for name in SPLITS[split]]
    found = {match for name in names for match in path.glob(name)}
    found |= {match for name in names for match in path.glob(f"annotations/{name}")}
    if not found:
        raise MissingSplit(f"{path}: no annotations/panoptic_{split}*.json. {FIX}")
    if len(found) > 1:
        raise InputError(
            f"{path}: {len(found)} files could hold the {split} annotations "
            f"({', '.join(sorted(match.name for match in found))}); name the one to use"
        )
    return found.pop()


def _annotations(
    annotations: list[dict], images: dict, labels: dict[int, int], json_path: Path
) -> dict[int, dict]:
    """The checked entry of each image that has one."""
    owners = column(annotations, "image_id", int, "annotation", json_path)
    column(annotations, "file_name", str, "annotation", json_path)
    column(annotations, "segments_info", list, "annotation", json_path)
    rows = {}
    for owner, row in zip(owners, annotations, strict=True):
        where = f"{json_path}: the annotation of image {owner}"
        if owner not in images:
            raise InputError(f"{where}: no such image is listed")
        if owner in rows:
            raise InputError(f"{where} is there twice")
        ids = column(row["segments_info"], "id", int, "segment", json_path)
        kinds = column(row["segments_info"], "category_id", int, "segment", json_path)
        if len(set(ids)) < len(ids) or not all(0 < id_ < 1 << 24 for id_ in ids):
            raise InputError(f"{where}: its segments' ids are not different numbers of 1 to 2^24")
        unknown = set(kinds) - labels.keys()
        if unknown:
            raise InputError(f"{where} names the category {min(unknown)}, which is not listed")
        rows[owner] = row
    return rows


def _read_segments(path: Path, size: tuple[int, int]) -> list[tuple[int, dict, int]]:
    try:
        with Image.open(path) as image:
            ids = ids_of_colours(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise InputError(f"{path}: cannot be read as panoptic ids: {error!r}") from error
    if ids.shape != size:
        raise InputError(
            f"{path}: it is {ids.shape[1]} x {ids.shape[0]}, its image {size[1]} x {size[0]}"
        )
    return encode_segments(ids)
