"""Checks of the classes: those that never occur, hardly occur, or differ between the splits."""

from collections.abc import Iterator

import numpy as np

from fastinst.data.dataset import Dataset
from fastinst.examination.findings import Finding, counted
from fastinst.examination.object_table import ObjectTable

FEW = 10  # objects, of which hardly a class is learnt
UNBALANCED = 100  # times as many objects in the most frequent class as in the rarest one


def class_counts(dataset: Dataset, objects: ObjectTable) -> np.ndarray:
    """int64 [K], the objects of each class without crowds."""
    return np.bincount(objects.label[~objects.crowd], minlength=len(dataset.class_names))


def different_classes(train: Dataset, val: Dataset) -> Iterator[Finding]:
    if train.class_names == val.class_names:
        return
    ours, theirs = set(train.class_names), set(val.class_names)
    places = [f"only in train: {', '.join(sorted(ours - theirs))}"] if ours - theirs else []
    places += [f"only in val: {', '.join(sorted(theirs - ours))}"] if theirs - ours else []
    if not places:
        i = next(i for i, name in enumerate(train.class_names) if name != val.class_names[i])
        places.append(
            f"the same names in another order: class {i} is {train.class_names[i]!r} in train "
            f"and {val.class_names[i]!r} in val"
        )
    yield Finding(
        "fatal",
        f"{train.source} and {val.source} have different classes",
        tuple(places),
        "give both the same list of categories, with the same ids",
    )


def id_gaps(dataset: Dataset) -> Iterator[Finding]:
    ids = dataset.category_ids
    if ids not in (tuple(range(len(ids))), tuple(range(1, len(ids) + 1))):
        yield Finding(
            "note",
            f"The category ids have gaps, from {ids[0]} to {ids[-1]} for {len(ids):,} classes. The "
            "model numbers them on from 0, its results have them back",
        )


def class_frequencies(
    train: Dataset, in_train: np.ndarray, in_val: np.ndarray | None
) -> Iterator[Finding]:
    """in_train, in_val: int64 [K], objects per class; None without a validation set"""
    names = np.array(train.class_names, object)
    if not in_train.any():
        return  # `annotation_checks.nothing_to_learn` says so
    absent = in_train == 0
    if in_val is not None and (untrained := absent & (in_val > 0)).any():
        yield Finding(
            "warning",
            f"{counted(untrained.sum(), 'class', 'classes')} of val without an object in train: "
            "an AP of 0",
            tuple(f"{names[i]}: {in_val[i]:,} in val" for i in np.flatnonzero(untrained)),
            "move images of them to train, or take the classes out of val",
        )
        absent &= in_val == 0
    # Roboflow writes the name of the whole set as category 0, the supercategory of all others.
    if absent[0] and train.category_ids[0] == 0 and not absent[1:].any():
        yield Finding(
            "note",
            f"Category 0, {names[0]!r}, never occurs; exports by Roboflow have such a one, which "
            "names the whole set and is no class",
            fix="take it out of the categories, or leave it: it costs nothing but a class",
        )
    elif absent.any():
        yield Finding(
            "warning",
            f"{counted(absent.sum(), 'class', 'classes')} of {len(names)} without an object in "
            "train",
            tuple(names[absent]),
            "take them out of the categories, unless the weights you start from know them",
        )
    few = (in_train > 0) & (in_train < FEW)
    if few.any():
        yield Finding(
            "warning",
            f"{counted(few.sum(), 'class', 'classes')} with fewer than {FEW} objects in train",
            tuple(f"{names[i]}: {in_train[i]}" for i in np.argsort(in_train) if few[i]),
            "annotate more of them, or join them to other classes",
        )
    present = in_train[in_train > 0]
    if not few.any() and present.max() >= UNBALANCED * present.min():
        most, least = names[in_train.argmax()], names[in_train == present.min()][0]
        yield Finding(
            "note",
            f"Very unbalanced: {present.max():,} {most} for {present.min():,} {least} in train. "
            "Judge by the AP of each class, not by the mean alone",
        )
