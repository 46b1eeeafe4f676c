"""Checks of the image files: unreadable ones, copies, images that two splits share."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.images import decode_image, quiet_pillow
from fastinst.errors import InputError
from fastinst.examination.findings import Finding, counted, place

SIDE = 16  # of the thumbnails that are compared
# Copies saved smaller and at JPEG quality 50 correlate by 0.987 and more, different images of
# nuclei, COCO and the demo set by 0.83 at most.
ALIKE = 0.98
DULL = 4.0  # grey levels: thumbnails that vary less are alike without being copies


class Content(NamedTuple):
    """What is compared of an image file.

    digest: of its bytes
    thumbnail: float32 [SIDE * SIDE], zero mean and unit length, or all zeros if it is too dull
    fault: why the image cannot be used, or ""; the others are empty then
    """

    record: ImageRecord
    digest: bytes
    thumbnail: np.ndarray
    fault: str


def sample_records(dataset: Dataset, most: int | None, seed: int = 0) -> list[ImageRecord]:
    """All images of a data set, or `most` of them chosen at random by `seed`."""
    if most is None or len(dataset) <= most:
        return list(dataset.images)
    chosen = np.random.default_rng(seed).choice(len(dataset), most, replace=False)
    return [dataset.images[i] for i in sorted(chosen.tolist())]


def read_contents(records: Sequence[ImageRecord], what: str = "") -> list[Content]:
    """Decode images in threads, JPEGs at a fraction of their size; `what` names them in the bar."""
    with quiet_pillow(), ThreadPoolExecutor() as pool:
        contents = pool.map(_read_content, records)
        title = f"reading {what} images"
        return list(tqdm(contents, title, len(records), unit="image", leave=False, disable=None))


def _read_content(record: ImageRecord) -> Content:
    try:
        size = (record.height, record.width)
        reduction = max(r for r in (1, 2, 4, 8) if r == 1 or min(size) >= r * 4 * SIDE)
        image, _ = decode_image(record.path, size, reduction)
        digest = hashlib.blake2b(record.path.read_bytes(), digest_size=16).digest()
    except (InputError, OSError) as error:
        return Content(record, b"", np.zeros(SIDE * SIDE, np.float32), str(error))
    grey = image.convert("F" if image.mode.startswith(("I", "F")) else "L")
    thumbnail = np.array(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    thumbnail -= thumbnail.mean()
    length = np.linalg.norm(thumbnail)
    thumbnail *= length > DULL * SIDE
    return Content(record, digest, thumbnail / max(length, 1.0), "")


def unreadable_images(split: str, contents: Iterable[Content]) -> Iterator[Finding]:
    bad = [content for content in contents if content.fault]
    if bad:
        yield Finding(
            "fatal",
            f"{counted(len(bad), 'image')} of {split} cannot be used",
            tuple(
                f"{place(record)}: {fault.removeprefix(f'{record.path}: ')}"
                for record, _, _, fault in bad
            ),
            "repair them, or take them out of the annotations",
        )


def duplicate_images(split: str, contents: Iterable[Content]) -> Iterator[Finding]:
    """Files of one split with the same bytes."""
    same = defaultdict(list)
    for content in contents:
        if not content.fault:
            same[content.digest].append(content.record)
    groups = [group for group in same.values() if len(group) > 1]
    if groups:
        yield Finding(
            "warning",
            f"{counted(sum(map(len, groups)) - len(groups), 'image')} of {split} too many: the "
            "same file under several names",
            tuple(" = ".join(map(place, group)) for group in groups),
            "keep one of each, with all objects annotated: they weigh double, and annotations "
            "that differ contradict each other",
        )


def leaked_images(train: Sequence[Content], val: Sequence[Content]) -> Iterator[Finding]:
    """Images of the validation set that are training images too, as files or as look-alikes."""
    digests = {content.digest: content.record for content in train if not content.fault}
    same, alike, rest = [], [], []
    for content in val:
        if content.fault:
            continue
        if content.digest in digests:
            same.append((content.record, digests[content.digest]))
        else:
            rest.append(content)
    for content, (twin, likeness) in zip(rest, _nearest(rest, train), strict=True):
        if likeness >= ALIKE:
            alike.append((content.record, train[twin].record))
    fix = "take them out of one of the two, or the AP is of what the model has learnt by heart"
    for pairs, how in ((same, "the same as"), (alike, "looking like")):
        if pairs:
            yield Finding(
                "warning",
                f"{counted(len(pairs), 'image')} of val {how} training images",
                tuple(f"{place(a)} in val, {place(b)} in train" for a, b in pairs),
                fix,
            )


def _nearest(some: Sequence[Content], others: Sequence[Content]) -> Iterator[tuple[int, float]]:
    """For each of `some` the most similar of `others`, by its place, and the correlation."""
    if not some or not others:
        return
    thumbnails = np.stack([content.thumbnail for content in others]).T
    for start in range(0, len(some), 1024):  # COCO's 5,000 times 118,287 are not held at once
        block = np.stack([content.thumbnail for content in some[start : start + 1024]])
        likeness = block @ thumbnails
        best = likeness.argmax(axis=1)
        yield from zip(best.tolist(), likeness.max(axis=1).tolist(), strict=True)
