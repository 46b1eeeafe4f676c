"""Cityscapes' own evaluation of results that `CityscapesResults` has written.

The definitions are those of the package cityscapesscripts, which is run as it is; it is an
optional extra: pip install "fastinst[cityscapes]".
"""

import contextlib
import copy
import importlib
import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from fastinst.data.cityscapes import FIX, frame_name, truth_file
from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.panoptic_results import PanopticResults
from fastinst.errors import InputError
from fastinst.metrics.panoptic_quality import NUMBERS
from fastinst.segments import SegmentMap

_EVALUATION = "cityscapesscripts.evaluation."
_RERUN = "Evaluate all images, or name the folder of a complete run"


def check_cityscapesscripts() -> None:
    """Raise InputError, with the fix, if the package is not installed."""
    _scripts("evalInstanceLevelSemanticLabeling")


def evaluate_cityscapes(
    dataset: Dataset, task: str, folder: str | Path, records: Sequence[ImageRecord] | None = None
) -> dict:
    """The numbers of Cityscapes' evaluation, in percent; nan for what is nowhere.

    dataset: of `load_cityscapes`, for the same task
    folder: with the results
    records: the images that count, by default all of the data set's
    Returns a dict with `images`, how many took part, `per_class`, {class name: numbers}, and
        "instance": AP, AP50
        "panoptic": PQ, SQ, RQ; and in `things` and `stuff` the same over these classes
        "semantic": mIoU, and iIoU, which weighs pixels by the size of their instance
    Raises InputError, with the fix, if the package, files of gtFine or results are missing.
    """
    records = dataset.images if records is None else records
    evaluate = {"instance": _instances, "panoptic": _panoptic, "semantic": _semantic}[task]
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        # Means over no values, for classes that are nowhere.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        try:
            numbers = evaluate(dataset, Path(folder), records)
        except SystemExit as error:  # the scripts' way to say what is wrong
            reason = said.getvalue().strip().splitlines()[-1].removeprefix("ERROR: ")
            raise InputError(f"{folder}: Cityscapes' evaluation says: {reason}") from error
    return {**numbers, "images": len(records)}


def _instances(dataset: Dataset, folder: Path, records: Sequence[ImageRecord]) -> dict:
    scripts = _scripts("evalInstanceLevelSemanticLabeling")
    truths = _truths(records, "instanceIds.png")
    predictions = _results(folder, records, "_pred.txt")
    args = _arguments(scripts, predictionPath=str(folder.absolute()))
    scripts.setInstanceLabels(args)
    # Not by evaluateImgLists, which leaves files in the package and in the current folder.
    instances = scripts.instances2dict(truths)
    matches = scripts.matchGtWithPreds(predictions, truths, instances, args)
    averages = scripts.computeAverages(scripts.evaluateMatches(matches, args), args)
    return {
        "AP": 100 * float(averages["allAp"]),
        "AP50": 100 * float(averages["allAp50%"]),
        "per_class": {
            name: {"AP": 100 * float(numbers["ap"]), "AP50": 100 * float(numbers["ap50%"])}
            for name, numbers in averages["classes"].items()
        },
    }


def _panoptic(dataset: Dataset, folder: Path, records: Sequence[ImageRecord]) -> dict:
    scripts = _scripts("evalPanopticSemanticLabeling")
    _existing([folder / "panoptic.json"], "results", _RERUN)
    rows = json.loads((folder / "panoptic.json").read_bytes())["annotations"]
    predictions = {row["image_id"]: row for row in rows}
    _results(folder / "panoptic", records, ".png")
    categories = {
        category_id: {"isthing": int(is_thing)}
        for category_id, is_thing in zip(dataset.category_ids, dataset.is_thing, strict=True)
    }
    with tempfile.TemporaryDirectory() as temporary:
        # What the package's createPanopticImgs makes of a whole split, and much slower.
        truth = PanopticResults(Path(temporary) / "truth.json", dataset.category_ids)
        for record in records:
            truth.add(frame_name(record.path), SegmentMap.of(record))
        absent = [
            row["image_id"] for row in truth.annotations if row["image_id"] not in predictions
        ]
        if absent:
            raise InputError(f"{folder / 'panoptic.json'} has no {absent[0]}. {_RERUN}")
        pairs = [(row, predictions[row["image_id"]]) for row in truth.annotations]
        statistic = scripts.pq_compute_single_core(
            0, pairs, truth.folder, folder / "panoptic", categories
        )

    def average(chosen: Callable[[int], bool]) -> dict[str, float]:
        kept = {id_: row for id_, row in categories.items() if chosen(id_)}
        try:
            numbers, _ = statistic.pq_average(kept, None)
        except ZeroDivisionError:  # none of these classes is anywhere
            return dict.fromkeys(NUMBERS, math.nan)
        return {name: 100 * float(numbers[name.lower()]) for name in NUMBERS}

    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    return {
        **average(lambda _: True),
        "things": average(lambda id_: categories[id_]["isthing"]),
        "stuff": average(lambda id_: not categories[id_]["isthing"]),
        "per_class": {name: average(own.__eq__) for own, name in names.items()},
    }


def _semantic(dataset: Dataset, folder: Path, records: Sequence[ImageRecord]) -> dict:
    scripts = _scripts("evalPixelLevelSemanticLabeling")
    _truths(records, "instanceIds.png")
    truths = _truths(records, "labelIds.png")
    predictions = _results(folder, records, "_labelIds.png")
    results = scripts.evaluateImgLists(predictions, truths, _arguments(scripts, JSONOutput=False))
    return {
        "mIoU": 100 * results["averageScoreClasses"],
        "iIoU": 100 * results["averageScoreInstClasses"],
        "per_class": {
            name: {
                "IoU": 100 * results["classScores"][name],
                "iIoU": 100 * results["classInstScores"][name],
            }
            for name in dataset.class_names
        },
    }


def _scripts(name: str) -> ModuleType:
    try:
        module = importlib.import_module(_EVALUATION + name)
    except ImportError as error:
        raise InputError(
            f"Cityscapes' evaluation needs the package cityscapesscripts ({error}): "
            f"pip install cityscapesscripts"
        ) from error
    if not hasattr(np, "in1d"):  # gone since NumPy 2.4, and their 2.3.0 still calls it
        module.np = SimpleNamespace(**vars(np), in1d=np.isin)
    return module


def _arguments(scripts: ModuleType, **changes: Any) -> Any:
    args = copy.copy(scripts.args)
    vars(args).update({"quiet": True} | changes)
    return args


def _truths(records: Sequence[ImageRecord], kind: str) -> list[str]:
    return _existing([truth_file(record.path, kind) for record in records], "annotations", FIX)


def _results(folder: Path, records: Sequence[ImageRecord], end: str) -> list[str]:
    paths = [folder / f"{frame_name(record.path)}{end}" for record in records]
    return _existing(paths, "results", _RERUN)


def _existing(paths: list[Path], what: str, fix: str) -> list[str]:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images have no {what} for Cityscapes' evaluation, "
            f"as {missing[0]}. {fix}"
        )
    return [str(path) for path in paths]
