"""Checks of the annotations: duplicates, places, sizes, numbers, shapes."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from fastinst.data.dataset import Annotation, Dataset
from fastinst.examination.findings import Finding, counted, place
from fastinst.examination.object_table import ObjectTable

CELL = 8  # pixels: masks are predicted at an eighth of the image's size
OUTSIDE = 0.3  # the share of objects beyond their image from which its size must be wrong
MANY = 0.1  # the share of objects from which a trouble of single ones is one of the whole set
FEWEST_RECTANGLES = 20


def nothing_to_learn(split: str, dataset: Dataset, objects: ObjectTable) -> Iterator[Finding]:
    """No objects at all, annotations that were left out when reading, images without any."""
    if dataset.skipped:
        yield Finding(
            "warning",
            f"{counted(len(dataset.skipped), 'annotation')} of {split} left out",
            dataset.skipped,
            "mend them, or delete them if nothing is there",
        )
    counts = objects.per_image(dataset)
    if not counts.any():
        yield Finding(
            "fatal" if split == "train" else "warning",
            f"No image of {split} has an object"
            + (", only crowds" if objects.crowd.any() else "")
            + ("" if split == "train" else ", so there will be no AP"),
            fix=f"look into {dataset.source}: are these masks, and of these images?",
        )
        return
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        trained = ", which training leaves out" if split == "train" else ""
        yield Finding(
            "warning" if 2 * len(empty) > len(dataset) else "note",
            f"{counted(len(empty), 'image')} of {len(dataset):,} of {split} without an object"
            + trained,
            tuple(place(dataset.images[i]) for i in empty.tolist()),
        )


def duplicate_annotations(split: str, dataset: Dataset) -> Iterator[Finding]:
    """The same mask on the same image, of one class or of several."""
    twice, contradictory = [], []
    for record in dataset.images:
        same: dict[bytes, list[Annotation]] = defaultdict(list)
        for annotation in record.annotations:
            same[_mask_key(annotation)].append(annotation)
        for group in same.values():
            if len(group) > 1:
                one_class = len({annotation.label for annotation in group}) == 1
                (twice if one_class else contradictory).append(place(record, *group))
    if twice:
        yield Finding(
            "warning",
            f"{counted(len(twice), 'object')} of {split} annotated twice or more, with the same "
            "class and mask",
            tuple(twice),
            "delete all but one: a query can match one only, and is punished for the other",
        )
    if contradictory:
        yield Finding(
            "warning",
            f"{counted(len(contradictory), 'mask')} of {split} in several classes",
            tuple(contradictory),
            "keep the right class",
        )


def _mask_key(annotation: Annotation) -> bytes:
    shape = annotation.segmentation
    if isinstance(shape, dict):
        return str(shape["counts"]).encode()
    return b"|".join(np.asarray(part, np.float64).tobytes() for part in shape)


def outside_objects(split: str, dataset: Dataset, objects: ObjectTable) -> Iterator[Finding]:
    """More than a pixel beyond the image's border, where labels of another size would be."""
    sizes = np.array([(record.width, record.height) for record in dataset.images])[objects.image]
    beyond = np.maximum(-objects.box[:, :2], objects.box[:, 2:] - sizes).max(axis=1, initial=0)
    found = np.flatnonzero(beyond > 1)
    if len(found):
        found = found[np.argsort(-beyond[found], kind="stable")]
        share = len(found) / len(beyond)
        yield Finding(
            "warning" if share > OUTSIDE else "note",
            f"{counted(len(found), 'object')} of {split} reaching beyond the image; what is "
            "outside is cut off",
            tuple(
                f"{place(dataset.images[objects.image[i]], objects.annotations[i])}: "
                f"by {beyond[i]:.0f} pixels"
                for i in found.tolist()
            ),
            "were the images resized after they were annotated?" if share > OUTSIDE else "",
        )


def tiny_objects(
    split: str, dataset: Dataset, objects: ObjectTable, short_edge: int, max_edge: int
) -> Iterator[Finding]:
    """Objects smaller than a cell of the predicted masks."""
    areas = objects.areas_at(dataset, short_edge, max_edge)
    areas[objects.crowd] = np.inf
    tiny = np.flatnonzero(areas < CELL**2)
    total = (~objects.crowd).sum()
    if not len(tiny):
        return
    fix = ""
    if len(tiny) > MANY * total:
        # The size at which nine of ten fill a cell; lines have an area of 0 and never do.
        side = max(np.sqrt(np.sort(areas)[int(MANY * total)]), 1e-3)
        needed = int(np.ceil(short_edge * CELL / side / 32) * 32)
        fix = (
            f"--size {needed} makes nine of ten larger than a cell"
            if needed <= 1344
            else "cut the images into tiles and train on these"
        )
    yield Finding(
        "warning" if fix else "note",
        f"{counted(len(tiny), 'object')} of {total:,} of {split} smaller than {CELL} x {CELL} "
        f"pixels at a shorter edge of {short_edge}, less than one cell of the predicted masks",
        tuple(
            f"{place(dataset.images[objects.image[i]], objects.annotations[i])}: "
            f"{areas[i]:.0f} square pixels"
            for i in tiny[np.argsort(areas[tiny], kind="stable")].tolist()
        ),
        fix,
    )


def more_than_queries(
    split: str, dataset: Dataset, objects: ObjectTable, num_queries: int
) -> Iterator[Finding]:
    counts = objects.per_image(dataset)
    crowded = np.flatnonzero(counts > num_queries)
    if len(crowded):
        most = int(counts.max())
        yield Finding(
            "warning",
            f"{counted(len(crowded), 'image')} of {split} with more objects than the model has "
            f"queries ({num_queries}), each of which finds one",
            tuple(
                f"{place(dataset.images[i])}: {counts[i]} objects"
                for i in crowded[np.argsort(-counts[crowded], kind="stable")].tolist()
            ),
            f"--set num_queries={-(-most // 50) * 50}, or cut the images into tiles",
        )


def many_crowds(split: str, objects: ObjectTable) -> Iterator[Finding]:
    share = objects.crowd.mean() if len(objects.crowd) else 0
    if share > MANY:
        yield Finding(
            "warning",
            f"{share:.0%} of the annotations of {split} are crowds, from which nothing is learnt",
            fix="iscrowd: 1 is for regions of many objects; write 0 for single ones",
        )


def boxes_as_masks(split: str, objects: ObjectTable) -> Iterator[Finding]:
    """Every mask an upright rectangle: made from boxes, most likely."""
    width, height = (objects.box[:, 2:] - objects.box[:, :2]).T
    filled = objects.area >= 0.995 * width * height
    if len(filled) >= FEWEST_RECTANGLES and filled.all():
        yield Finding(
            "warning",
            f"All masks of {split} are upright rectangles, as if made from boxes",
            fix="a model learns to draw rectangles from these; annotate outlines",
        )
