"""Where the images, labels and class names of a YOLO data set lie, in any common layout."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastinst.data.data_yaml import read_data_yaml
from fastinst.data.dataset import MissingSplit
from fastinst.data.images import SUFFIXES
from fastinst.data.layouts import SPLITS
from fastinst.errors import InputError

LAYOUTS = ("images/{}", "{}/images", "{}.txt", "{}", "images/{}*")
KEYS = ("path", "names", "nc", *(name for names in SPLITS.values() for name in names))
CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")


@dataclass(frozen=True)
class YoloFiles:
    """The files of one split.

    source: the folder of the label files, or the file that lists the images
    images: sorted, each once
    label_folders: those that hold labels of these images and of no other split's
    class_names: by class number; None if no file tells them
    names_source: the file that does
    """

    source: Path
    images: tuple[Path, ...]
    label_folders: tuple[Path, ...]
    class_names: dict[int, str] | None
    names_source: Path | None


def is_yolo(folder: Path) -> bool:
    """Whether anything in a folder says that it is a YOLO data set."""
    if _find_yaml(folder) or any(any(folder.glob(place)) for place in ("labels", "*/labels")):
        return True
    places = (folder, *(folder / name for names in SPLITS.values() for name in names))
    texts = (path for place in places for path in place.glob("*.txt"))
    return any(path.with_suffix(suffix).is_file() for path in texts for suffix in SUFFIXES)


def find_yolo(path: str | Path, split: str) -> YoloFiles:
    """The files of a split.

    path: a data.yaml; a text file that lists images, which is taken whatever the split; or a
        folder with a data.yaml or in one of the LAYOUTS (`{}` being the split, "valid" and the
        like included) or with images and labels that are split no further
    Raises MissingSplit if there is no such split, InputError if anything named is not there.
    """
    path = Path(path)
    if path.suffix == ".txt":
        root, yaml_path, places = path.parent, None, [path]
    elif path.is_dir():
        root, yaml_path, places = path, _find_yaml(path), []
    else:
        root, yaml_path, places = path.parent, path, []
    yaml = read_data_yaml(yaml_path, KEYS) if yaml_path else {}
    places = places or _places_of_yaml(yaml, yaml_path, split) or _places_of_folder(root, split)

    images = []
    for place in places:
        images += _images_below(place) if place.is_dir() else _listed_images(place, root)
    folders = dict.fromkeys(image.parent for image in images)
    class_names, names_source = _class_names(yaml, yaml_path, root)
    only_folders = all(place.is_dir() for place in places)
    return YoloFiles(
        yaml_path if len(places) > 1 else label_folder(places[0]) if only_folders else places[0],
        tuple(sorted(set(images))),
        tuple(label_folder(f) for f in folders if label_folder(f) != f) if only_folders else (),
        class_names,
        names_source,
    )


def label_folder(folder: Path) -> Path:
    """Where the label files of a folder of images lie: in its twin below `labels` instead of the
    last `images` in its path, or, if there is none, beside the images."""
    parts = folder.parts
    for i in reversed(range(len(parts))):
        twin = Path(*parts[:i], "labels", *parts[i + 1 :])
        if parts[i] == "images" and twin.is_dir():
            return twin
    return folder


def _find_yaml(folder: Path) -> Path | None:
    """Its data.yaml, which may have another name if no other file looks like one."""
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    found = [
        path
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))
        if re.search(rb"^(train|val|names)\s*:", path.read_bytes(), re.MULTILINE)
    ]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder}: {len(found)} files could describe the data set ({names}); "
            "name the one to use instead of the folder"
        )
    return found[0] if found else None


def _places_of_yaml(yaml: dict, yaml_path: Path | None, split: str) -> list[Path]:
    """The folders and lists of images that a data.yaml names for a split."""
    key = next((name for name in SPLITS[split] if yaml.get(name)), None)
    if key is None:
        return []
    values = yaml[key] if isinstance(yaml[key], list) else [yaml[key]]
    root = yaml.get("path") or "."
    if not all(isinstance(value, str) for value in (root, *values)):
        raise InputError(
            f"{yaml_path}: 'path' and {key!r} must be paths, and {key!r} may be a list"
        )
    places = []
    for value in values:
        # "../train/images" of some exporters means a folder that is beside data.yaml after all.
        inside = re.sub(r"^(\.\./)+", "", value)
        folder = yaml_path.parent
        candidates = [
            folder / root / value,
            folder / value,
            folder / root / inside,
            folder / inside,
        ]
        candidates = [Path(os.path.normpath(candidate)) for candidate in candidates]
        place = next((candidate for candidate in candidates if candidate.exists()), None)
        if place is None:
            tried = "\n  ".join(dict.fromkeys(map(str, candidates)))
            raise InputError(
                f"{yaml_path}: {key}: {value} is not there; correct it or 'path', or remove "
                f"it. Looked for\n  {tried}"
            )
        places.append(place)
    return places


def _places_of_folder(root: Path, split: str) -> list[Path]:
    for name in SPLITS[split]:
        for layout in LAYOUTS:
            places = [
                place
                for place in sorted(root.glob(layout.format(name)))
                if (_has_labels(place) if place.is_dir() else layout.endswith(".txt"))
            ]
            if len(places) > 1:
                names = ", ".join(str(place.relative_to(root)) for place in places)
                raise InputError(
                    f"{root}: {len(places)} folders could hold the {split} images ({names}); "
                    "write a data.yaml that names the one to use"
                )
            if places:
                return places
    for place in (root / "images", root):
        if any(_is_image(name) for name in (os.listdir(place) if place.is_dir() else ())):
            return [place]
    looked_for = "\n  ".join(layout.format(SPLITS[split][0]) for layout in LAYOUTS)
    raise MissingSplit(
        f"{root}: no YOLO images for the split {split!r}. Looked for\n  {looked_for}\n"
        f"where {' or '.join(SPLITS[split])} may name the split, and for such a key in data.yaml"
    )


def _has_labels(folder: Path) -> bool:
    return label_folder(folder) != folder or any(folder.glob("*.txt"))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _images_below(place: Path) -> list[Path]:
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(place, followlinks=True)
        for name in names
        if _is_image(name) and not name.startswith(".")
    ]
    if not found:
        raise InputError(f"{place}: no images ({', '.join(sorted(SUFFIXES))}) in it")
    return found


def _listed_images(list_path: Path, root: Path) -> list[Path]:
    try:
        text = list_path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{list_path}: cannot be read as a list of images: {error}") from error
    images, missing = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        candidates = (list_path.parent / line, root / line)
        found = next((path for path in candidates if path.is_file()), None)
        (images if found else missing).append(found or line)
    if missing:
        count, more = len(images) + len(missing), ", ..." if len(missing) > 5 else ""
        raise InputError(
            f"{list_path}: {len(missing)} of its {count} images are not there: "
            f"{', '.join(missing[:5])}{more}; paths start from its folder or that of data.yaml"
        )
    if not images:
        raise InputError(f"{list_path}: it lists no images")
    return list(dict.fromkeys(Path(os.path.normpath(path)) for path in images))


def _class_names(
    yaml: dict, yaml_path: Path | None, root: Path
) -> tuple[dict[int, str] | None, Path | None]:
    names, count = yaml.get("names"), yaml.get("nc")
    if names is not None:
        try:
            numbered = names.items() if isinstance(names, dict) else enumerate(_list(names))
            names = {int(number): name for number, name in numbered}
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{yaml_path}: its 'names' are neither a list nor numbered: {error}"
            ) from error
        if not names or None in names.values() or min(names) < 0:
            raise InputError(f"{yaml_path}: its 'names' must not be empty, nor a number negative")
        if count is not None and count != str(len(names)):
            raise InputError(f"{yaml_path}: it has nc {count} and {len(names)} names")
        return names, yaml_path
    for name in CLASS_FILES:
        if (root / name).is_file():
            return _names_of_lines(root / name), root / name
    return None, None


def _list(names: object) -> Iterable:
    if not isinstance(names, list):
        raise TypeError(f"a {type(names).__name__}")
    return names


def _names_of_lines(path: Path) -> dict[int, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of class names: {error}") from error
    names = [line.strip() for line in lines]
    if not all(names) or not names:
        raise InputError(f"{path}: it must hold one class name per line, and no empty line")
    return dict(enumerate(names))
