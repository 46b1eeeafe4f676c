"""What a data set was when a run began, and in what it differs now."""

import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastinst.data.dataset import Dataset, ImageRecord

_END = "\0"  # of a file's name, in which it cannot occur


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What `difference` needs to know of a data set, in plain values that a checkpoint can hold.

    Images are known by id, file name below the image folder (which may move), size in pixels and
    in bytes, and annotations. Their content is not read, so an edit that keeps a file's length
    goes unnoticed.
    """
    prefix = os.path.join(dataset.image_folder, "")
    names = [str(record.path).removeprefix(prefix) for record in dataset.images]
    checksums = [_checksum(record) for record in dataset.images]
    return {
        "class_names": list(dataset.class_names),
        "image_ids": torch.tensor([record.id for record in dataset.images], dtype=torch.int64),
        "file_names": "".join(name + _END for name in names),
        "file_sizes": torch.tensor([_file_size(r) for r in dataset.images], dtype=torch.int64),
        "checksums": torch.from_numpy(np.array(checksums, np.uint32).view(np.int32)),
    }


def difference(saved: dict[str, Any], current: dict[str, Any]) -> str | None:
    """In what the data set of the second fingerprint differs from that of the first, in one line
    that names classes and images; None if they are the same.
    """
    found = _class_differences(saved["class_names"], current["class_names"])
    before, after = _by_id(saved), _by_id(current)
    names = {id_: name for id_, (name, *_) in (before | after).items()}

    def images(ids: Sequence[int], one: str, many: str) -> None:
        """Adds e.g. "image 3 (a.jpg) is gone" or "images 3 (a.jpg), 4 (b.jpg) ... are gone"."""
        listed = ", ".join(f"{id_} ({names[id_]})" for id_ in ids[:3])
        if len(ids) == 1:
            found.append(one.format(f"image {listed}"))
        elif ids:
            more = ", ..." if len(ids) > 3 else ""
            found.append(many.format(f"{len(ids)} images") + f": {listed}{more}")

    images([i for i in before if i not in after], "{} is gone", "{} are gone")
    images([i for i in after if i not in before], "{} is new", "{} are new")
    both = [i for i in after if i in before]
    renamed = [i for i in both if before[i][0] != after[i][0]]
    images(renamed, "{} had another file", "{} had other files")
    same = [i for i in both if before[i][0] == after[i][0]]
    resized = [i for i in same if before[i][1] != after[i][1]]
    images(resized, "the file of {} has another length", "the files of {} have other lengths")
    # Labels are counted by class: other classes would change the annotations of every image.
    if saved["class_names"] == current["class_names"]:
        changed = [i for i in same if before[i][2] != after[i][2]]
        what = "the annotations (or the stated size) of {} changed"
        images(changed, what, what)
    if not found and list(before) != list(after):
        found.append("the images are in another order")
    return "; ".join(found) or None


def _checksum(record: ImageRecord) -> int:
    """Of the size and of all annotations, except their ids, in their order."""
    pieces = [b"%d %d" % (record.height, record.width)]
    for annotation in (*record.annotations, *record.invisible):
        pieces.append(b" %d %d" % (annotation.label, annotation.iscrowd))
        if isinstance(annotation.segmentation, dict):
            rle = annotation.segmentation
            counts = rle["counts"]
            pieces.append(counts if isinstance(counts, bytes) else str(counts).encode())
        else:
            for polygon in annotation.segmentation:
                points = np.ascontiguousarray(polygon, np.float64)
                pieces += (b" %d " % points.size, points)
    return zlib.crc32(b"".join(pieces))


def _file_size(record: ImageRecord) -> int:
    """In bytes; -1 if there is no such file."""
    try:
        return os.stat(record.path).st_size
    except OSError:
        return -1


def _by_id(fingerprint: dict[str, Any]) -> dict[int, tuple[str, int, int]]:
    """File name, length and checksum of every image."""
    keys = ("image_ids", "file_sizes", "checksums")
    ids, sizes, checksums = (fingerprint[key].tolist() for key in keys)
    names = fingerprint["file_names"].split(_END)[:-1]
    return dict(zip(ids, zip(names, sizes, checksums, strict=True), strict=True))


def _class_differences(saved: Sequence[str], current: Sequence[str]) -> list[str]:
    found = [f"class {name!r} is gone" for name in saved if name not in current]
    found += [f"class {name!r} is new" for name in current if name not in saved]
    if not found and list(saved) != list(current):
        found.append("the classes are in another order")
    return found
