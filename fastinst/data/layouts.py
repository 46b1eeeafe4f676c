"""Where the annotations and the images of a COCO dataset lie, in any common layout."""

import json
import re
from pathlib import Path

from fastinst.data.dataset import MissingSplit
from fastinst.errors import InputError

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
LAYOUTS = (
    "annotations/instances_{}*.json",
    "annotations/{}*.json",
    "{}/_annotations.coco.json",
    "instances_{}*.json",
    "{}*.json",
)


class MissingImages(InputError):
    """A COCO JSON's images are not where they usually are; the message says where that is."""


def find_coco(
    path: str | Path, split: str, image_folder: str | Path | None = None
) -> tuple[Path, Path]:
    """The COCO JSON of a split and the folder of its images.

    path: a JSON, which is taken whatever the split, or a dataset's folder in one of the LAYOUTS
        (`{}` being the split, "valid" and the like included). A folder with one JSON only is that
        dataset for either split, unless the JSON is named after the other one.
    split: "train" or "val"
    image_folder: where the images are, if it is not to be found out
    Raises MissingSplit if there is no such JSON, MissingImages if there is no folder with its
    images, InputError if there is more than one JSON.
    """
    path = Path(path)
    if path.is_dir():
        json_path = _find_json(path, split)
    elif path.is_file():
        json_path = path
    else:
        raise InputError(f"{path}: no such file or folder")
    if image_folder is None:
        return json_path, find_image_folder(json_path)
    if not Path(image_folder).is_dir():
        raise InputError(f"{image_folder}: no such folder of images")
    return json_path, Path(image_folder)


def named_jsons(folder: Path, split: str) -> set[Path]:
    """The files of a folder in one of the LAYOUTS."""
    for name in SPLITS[split]:
        found = {match for layout in LAYOUTS for match in folder.glob(layout.format(name))}
        if found:
            return found
    return set()


def _find_json(folder: Path, split: str) -> Path:
    found = named_jsons(folder, split)
    if not found:
        others = {name for names in SPLITS.values() for name in names} - set(SPLITS[split])
        found = {*folder.glob("*.json"), *folder.glob("annotations/*.json")}
        found = {match for match in found if not others & _words(match.stem)}
    if len(found) == 1:
        return found.pop()
    if found:
        names = ", ".join(sorted(str(match.relative_to(folder)) for match in found)[:5])
        raise InputError(
            f"{folder}: {len(found)} files could hold the {split} annotations ({names}); "
            "name the one to use instead of the folder"
        )
    looked_for = "\n  ".join(layout.format(SPLITS[split][0]) for layout in LAYOUTS)
    raise MissingSplit(
        f"{folder}: no COCO annotations for the split {split!r}. Looked for\n  {looked_for}\n"
        f"where {' or '.join(SPLITS[split])} may name the split. A usual layout is\n"
        f"  {folder}/annotations/instances_{split}.json\n  {folder}/{split}/*.jpg"
    )


def is_for_testing(source: Path) -> bool:
    """Whether the `source` of a validation set is named "test", as it may be by SPLITS."""
    words = _words("/".join(source.parts[-2:]))
    return "test" in words and words.isdisjoint(set(SPLITS["val"]) - {"test"})


def _words(stem: str) -> set[str]:
    return set(re.split("[^a-z]+", stem.lower()))


def find_image_folder(json_path: Path, names: list[str] | None = None) -> Path:
    """Where the images of a COCO JSON are; raises MissingImages if they are in no usual place.

    names: of some of them, if the file has been read already
    """
    names = _first_file_names(json_path) if names is None else names
    if not names:  # whatever is wrong with the file, load_coco says it better
        return json_path.parent
    tag = json_path.stem.removeprefix("instances_")
    synonyms = next((names for names in SPLITS.values() if _words(tag) & set(names)), ())
    folders = []
    for base in json_path.absolute().parents[:2]:
        roots = (base, base / "images")
        folders += [root / tag for root in roots]
        for name in synonyms:
            folders += [match for root in roots for match in sorted(root.glob(f"{name}*/"))]
        folders += reversed(roots)
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        # One hit is enough: with the next folder the wrong split could stand in for missing files.
        if any((folder / name).is_file() for name in names):
            return folder
    searched = "\n  ".join(str(folder) for folder in folders)
    raise MissingImages(
        f"{json_path}: its images ({', '.join(names)}, ...) are in none of\n  {searched}\n"
        f"--images FOLDER says where they are"
    )


def _first_file_names(json_path: Path, count: int = 5) -> list[str]:
    """Without parsing the file: COCO's takes ten seconds, and load_coco does it anyway."""
    pattern = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)+")')
    names, tail = [], ""
    with open(json_path, encoding="utf-8-sig", errors="replace") as file:
        while len(names) < count and (text := file.read(1 << 20)):
            names += pattern.findall(tail + text)
            tail = text[-1000:]
    try:
        return list(dict.fromkeys(json.loads(name) for name in names))[:count]
    except json.JSONDecodeError:
        return []
