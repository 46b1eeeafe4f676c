"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4)."""

import math
from collections.abc import Sequence

import numpy as np
import torch.distributed as dist

from fastinst.segments import SegmentMap

NUMBERS = ("PQ", "SQ", "RQ")


class PanopticQuality:
    """Collects of each class how many segments were found, and how well, over images.

    class_names, is_thing: by label
    """

    def __init__(self, class_names: Sequence[str], is_thing: Sequence[bool]):
        self.class_names, self.is_thing = tuple(class_names), np.array(is_thing, bool)
        self.counts = np.zeros((len(class_names), 4))
        self.images = 0

    def update(self, truth: SegmentMap, found: SegmentMap) -> None:
        """Take one more image. Raises ValueError for maps that do not fit, see `compare`."""
        self.counts += compare(truth, found, len(self.class_names))
        self.images += 1

    def gather(self) -> None:
        """Give rank 0 the counts of all processes; without torch.distributed do nothing."""
        if dist.is_initialized():
            rank = dist.get_rank()
            parts = [None] * dist.get_world_size() if rank == 0 else None
            dist.gather_object((self.counts, self.images), parts)
            if rank == 0:
                self.counts = sum(counts for counts, _ in parts)
                self.images = sum(images for _, images in parts)

    def summarize(self) -> dict:
        """The numbers in percent.

        Returns a dict with
            PQ, SQ, RQ: means over the classes that are in the ground truth or were found
            classes: how many these are
            things, stuff: the same over these classes
            per_class: {class name: {PQ, SQ, RQ}}
            images: how many took part
        A number without anything to compute it from is nan.
        """
        quality = _quality(self.counts)
        return {
            **_mean(quality),
            "things": _mean(quality[self.is_thing]),
            "stuff": _mean(quality[~self.is_thing]),
            "per_class": {
                name: dict(zip(NUMBERS, row.tolist(), strict=True))
                for name, row in zip(self.class_names, quality, strict=True)
            },
            "images": self.images,
        }


def compare(truth: SegmentMap, found: SegmentMap, num_classes: int) -> np.ndarray:
    """Of one image and each class [K, 4] float64: the IoUs' sum over all matches, the number of
    matches, of segments that were found but are not there, and of segments that were missed.

    Segments of one class match if their IoU is above 1/2, void pixels of the ground truth not
    counting. A segment that matches nothing and lies more than half in void and crowds of its
    class is none; crowds themselves are neither found nor missed. (The COCO panoptic API takes
    only the last crowd of each class into account, and expects no more.)

    Raises ValueError for maps of different sizes, ids of pixels that are not listed or listed
    twice, labels out of range, and segments in `found` that have no pixel.
    """
    if truth.ids.shape != found.ids.shape:
        raise ValueError(
            f"a map of {tuple(found.ids.shape)} for ground truth of {tuple(truth.ids.shape)}"
        )
    rows, columns = (_places(segment_map, num_classes) for segment_map in (truth, found))
    shape = (1 + len(truth.segments), 1 + len(found.segments))
    table = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    areas, void, shared = table.sum(axis=0)[1:], table[0, 1:], table[1:, 1:]
    if not areas.all():
        raise ValueError(f"segment {found.segments[int(areas.argmin())].id} has no pixel")

    labels = np.array([segment.label for segment in truth.segments], np.int64)
    crowd = np.array([segment.iscrowd for segment in truth.segments], bool)
    found_labels = np.array([segment.label for segment in found.segments], np.int64)
    same = labels[:, None] == found_labels
    union = table.sum(axis=1)[1:, None] + (areas - void) - shared
    iou = np.where(same & ~crowd[:, None], shared / np.maximum(union, 1), 0)
    match = iou > 0.5

    ignored = void + (shared * (same & crowd[:, None])).sum(axis=0)
    false = ~match.any(axis=0) & (ignored / areas <= 0.5)
    missed = ~match.any(axis=1) & ~crowd
    counts = np.zeros((num_classes, 4))
    counts[:, 0] = np.bincount(found_labels, (iou * match).sum(axis=0), num_classes)
    counts[:, 1] = np.bincount(found_labels, match.any(axis=0), num_classes)
    counts[:, 2] = np.bincount(found_labels, false, num_classes)
    counts[:, 3] = np.bincount(labels, missed, num_classes)
    return counts


def _places(segment_map: SegmentMap, num_classes: int) -> np.ndarray:
    """[H * W] int64, of each pixel the place of its segment in the list, from 1; 0 for void."""
    for segment in segment_map.segments:
        if not 0 <= segment.label < num_classes:
            raise ValueError(f"segment {segment.id} has the label {segment.label}")
    ids = np.array([0, *(segment.id for segment in segment_map.segments)], np.int64)
    order = np.argsort(ids)
    if len(np.unique(ids)) < len(ids):
        raise ValueError("two segments have one id, or one has the id 0")
    pixels = segment_map.ids.cpu().numpy().ravel()
    places = order[np.searchsorted(ids, pixels, sorter=order).clip(max=len(ids) - 1)]
    if (ids[places] != pixels).any():
        unknown = pixels[ids[places] != pixels][0]
        raise ValueError(f"a pixel belongs to segment {unknown}, which is not listed")
    return places


def _quality(counts: np.ndarray) -> np.ndarray:
    """[K, 4] counts to [K, 3] PQ, SQ and RQ in percent; nan for a class that did not occur."""
    iou, matched, false, missed = counts.T
    weight = matched + (false + missed) / 2
    with np.errstate(invalid="ignore"):
        pq, rq = iou / weight, matched / weight
    sq = np.where(weight > 0, iou / np.maximum(matched, 1), np.nan)
    return 100 * np.stack([pq, sq, rq], axis=1)


def _mean(quality: np.ndarray) -> dict[str, float]:
    there = quality[~np.isnan(quality[:, 0])]
    means = there.mean(axis=0).tolist() if len(there) else [math.nan] * len(NUMBERS)
    return {**dict(zip(NUMBERS, means, strict=True)), "classes": len(there)}


def format_panoptic(summary: dict) -> str:
    """`PanopticQuality.summarize`'s numbers as text: overall, then a line for each class."""
    rows = {"all": summary, "things": summary["things"], "stuff": summary["stuff"]}
    width = max(map(len, [*rows, *summary["per_class"]]))
    lines = [f"{'':<{width}} {'PQ':>6} {'SQ':>6} {'RQ':>6} {'classes':>8}"]
    lines += [f"{_row(name, row, width)} {row['classes']:>8}" for name, row in rows.items()]
    lines += [_row(name, row, width) for name, row in summary["per_class"].items()]
    lines.append(f"-: neither there nor found ({summary['images']} images)")
    return "\n".join(lines)


def _row(name: str, numbers: dict, width: int) -> str:
    cells = ("-" if math.isnan(numbers[n]) else f"{numbers[n]:.1f}" for n in NUMBERS)
    return " ".join([f"{name:<{width}}", *(f"{cell:>6}" for cell in cells)])
