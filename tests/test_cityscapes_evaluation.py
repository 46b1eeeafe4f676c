"""Results in Cityscapes' formats, and Cityscapes' own evaluation of them."""

import contextlib
import importlib
import importlib.util
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import shift
from small_cityscapes import write_cityscapes

from fastinst.data.cityscapes import load_cityscapes
from fastinst.data.cityscapes_results import CityscapesResults
from fastinst.data.id_maps import ids_of_colours
from fastinst.errors import InputError
from fastinst.metrics.cityscapes import check_cityscapesscripts, evaluate_cityscapes
from fastinst.metrics.panoptic_quality import PanopticQuality
from fastinst.metrics.semantic import SemanticEvaluator
from fastinst.results import Instances
from fastinst.segments import Segment, SegmentMap

needs_scripts = pytest.mark.skipif(
    importlib.util.find_spec("cityscapesscripts") is None,
    reason="pip install cityscapesscripts, whose evaluation this runs",
)


@pytest.fixture
def root(tmp_path):
    return write_cityscapes(tmp_path / "city scapes")


def shifted(mask, rng, most=3):
    return shift(mask, rng.integers(-most, most + 1, 2), order=0)


def found_instances(record, rng):
    """Most of the objects, moved a little; some twice, some with another class, and some noise."""
    masks, labels = [], []
    for annotation in record.annotations:
        for _ in range(rng.integers(0, 3)):
            masks.append(shifted(annotation.mask(record.height, record.width), rng))
            labels.append(annotation.label if rng.random() < 0.8 else int(rng.integers(8)))
    masks.append(np.kron(rng.random((8, 16)) < 0.2, np.ones((8, 8), bool)))
    masks.append(np.zeros((record.height, record.width), bool))
    labels += [2, 0]
    scores = torch.as_tensor(rng.random(len(masks)))
    return Instances.from_masks(scores, torch.tensor(labels), torch.as_tensor(np.stack(masks)))


def found_segments(record, rng):
    ids, segments = np.zeros((record.height, record.width), np.int32), []
    for annotation in record.annotations:
        if rng.random() < 0.85:
            ids[shifted(annotation.mask(*ids.shape), rng)] = len(segments) + 1
            label = annotation.label if rng.random() < 0.8 else int(rng.integers(19))
            segments.append(Segment(len(segments) + 1, label))
    left = set(np.unique(ids).tolist())
    return SegmentMap(torch.as_tensor(ids), tuple(s for s in segments if s.id in left))


def write_results(root, folder, task, find):
    dataset = load_cityscapes(root, "val", task)
    results = CityscapesResults(folder, task, dataset.category_ids)
    found = {}
    for record in dataset.images:
        found[record.id] = find(record)
        results.add(record, found[record.id])
    results.finish()
    return dataset, found


def truth_labels(record):
    return SegmentMap.of(record).labels()


def objects(record):
    annotations = [a for a in record.annotations if not a.iscrowd]
    masks = [a.mask(record.height, record.width) for a in annotations]
    labels = torch.tensor([a.label for a in annotations])
    return Instances.from_masks(
        torch.linspace(0.9, 0.5, len(masks)), labels, torch.as_tensor(np.stack(masks))
    )


def test_instances_as_the_evaluation_reads_them(root, tmp_path):
    dataset, _ = write_results(root, tmp_path / "out", "instance", objects)
    record = dataset.images[0]
    name = record.path.name.removesuffix("_leftImg8bit.png")
    lines = (tmp_path / "out" / f"{name}_pred.txt").read_text().splitlines()
    annotations = [a for a in record.annotations if not a.iscrowd]
    assert len(lines) == len(annotations)
    for line, annotation in zip(lines, annotations, strict=True):
        path, category_id, score = line.split(" ")
        assert int(category_id) == dataset.category_ids[annotation.label]
        assert 0.5 <= float(score) <= 0.9
        with Image.open(tmp_path / "out" / path) as image:
            mask = np.array(image.convert("L")) != 0
        np.testing.assert_array_equal(mask, annotation.mask(record.height, record.width))


def test_labels_are_written_as_cityscapes_ids(root, tmp_path):
    dataset, found = write_results(root, tmp_path / "out", "semantic", truth_labels)
    for record in dataset.images:
        name = record.path.name.removesuffix("_leftImg8bit.png")
        written = np.array(Image.open(tmp_path / "out" / f"{name}_labelIds.png"))
        labels = found[record.id].numpy()
        expected = [dataset.category_ids[k] if k < 19 else 0 for k in labels.ravel()]
        assert written.ravel().tolist() == expected


def test_segments_are_written_as_coco_s(root, tmp_path):
    dataset, found = write_results(root, tmp_path / "out", "panoptic", SegmentMap.of)
    rows = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    for record, row in zip(dataset.images, rows, strict=True):
        assert record.path.name.startswith(row["image_id"] + "_leftImg8bit")
        with Image.open(tmp_path / "out" / "panoptic" / row["file_name"]) as image:
            np.testing.assert_array_equal(ids_of_colours(image), found[record.id].ids.numpy())
        assert [dataset.category_ids[s.label] for s in found[record.id].segments] == [
            segment["category_id"] for segment in row["segments_info"]
        ]


@needs_scripts
def test_the_truth_itself_is_perfect(root, tmp_path):
    dataset, _ = write_results(root, tmp_path / "instance", "instance", objects)
    numbers = evaluate_cityscapes(dataset, "instance", tmp_path / "instance")
    values = [numbers["AP"], numbers["AP50"], numbers["per_class"]["car"]["AP"]]
    assert values == pytest.approx([100] * 3)
    assert math.isnan(numbers["per_class"]["bus"]["AP"]) and numbers["images"] == 3

    dataset, _ = write_results(root, tmp_path / "panoptic", "panoptic", SegmentMap.of)
    numbers = evaluate_cityscapes(dataset, "panoptic", tmp_path / "panoptic")
    assert numbers["PQ"] == numbers["things"]["SQ"] == numbers["stuff"]["RQ"] == 100
    assert math.isnan(numbers["per_class"]["bus"]["PQ"])

    dataset, _ = write_results(root, tmp_path / "semantic", "semantic", truth_labels)
    numbers = evaluate_cityscapes(dataset, "semantic", tmp_path / "semantic")
    assert numbers["mIoU"] == 100 == numbers["iIoU"] == numbers["per_class"]["sky"]["IoU"]
    assert math.isnan(numbers["per_class"]["bus"]["IoU"])


@needs_scripts
def test_instance_ap_is_that_of_the_package_s_own_run(root, tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    folder = tmp_path / "out"
    dataset, _ = write_results(root, folder, "instance", lambda r: found_instances(r, rng))
    numbers = evaluate_cityscapes(dataset, "instance", folder)
    assert 0 < numbers["AP"] < numbers["AP50"] < 100

    scripts = sys.modules["cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"]
    # NumPy 2.4's integers are none that it can write to the files it leaves here and in itself.
    monkeypatch.setattr(scripts, "writeDict2JSON", lambda *_: None)
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(folder))
    truths = [str(path) for path in root.glob("gtFine/val/*/*_instanceIds.png")]
    with contextlib.redirect_stdout(io.StringIO()):
        predictions = [scripts.getPrediction(path, scripts.args) for path in truths]
        theirs = scripts.evaluateImgLists(predictions, truths, scripts.args)["averages"]
    monkeypatch.setattr(scripts.args, "predictionPath", None)
    monkeypatch.setattr(scripts.args, "predictionWalk", None)
    assert numbers["AP"] == 100 * theirs["allAp"] and numbers["AP50"] == 100 * theirs["allAp50%"]
    for name, row in numbers["per_class"].items():
        expected = {"AP": 100 * theirs["classes"][name]["ap"]}
        expected["AP50"] = 100 * theirs["classes"][name]["ap50%"]
        assert row == pytest.approx(expected, nan_ok=True)


@needs_scripts
def test_panoptic_quality_is_that_of_the_package_s_own_run(root, tmp_path):
    """With the ground truth that the package makes; and it is our panoptic quality too."""
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as scripts
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    rng = np.random.default_rng(3)
    folder = tmp_path / "out"
    dataset, found = write_results(root, folder, "panoptic", lambda r: found_segments(r, rng))
    numbers = evaluate_cityscapes(dataset, "panoptic", folder)
    truth = root / "gtFine" / "cityscapes_panoptic_val"
    with contextlib.redirect_stdout(io.StringIO()):
        convert2panoptic(str(root / "gtFine"), setNames=["val"])
        theirs = scripts.evaluatePanoptic(
            str(truth.with_suffix(".json")),
            *(str(truth), str(folder / "panoptic.json"), str(folder / "panoptic")),
            str(tmp_path / "results.json"),
        )

    ours = PanopticQuality(dataset.class_names, dataset.is_thing)
    for record in dataset.images:
        ours.update(SegmentMap.of(record), found[record.id])
    ours = ours.summarize()
    assert 10 < numbers["PQ"] < 90
    for name in ("PQ", "SQ", "RQ"):
        for part, key in (
            (numbers, "All"),
            (numbers["things"], "Things"),
            (numbers["stuff"], "Stuff"),
        ):
            assert part[name] == pytest.approx(100 * theirs[key][name.lower()], rel=1e-12)
        for part, own in ((numbers, ours), (numbers["things"], ours["things"])):
            assert part[name] == pytest.approx(own[name], rel=1e-12)
    for name, row in numbers["per_class"].items():
        assert row == pytest.approx(ours["per_class"][name], rel=1e-12, nan_ok=True)


@needs_scripts
def test_semantic_iou_is_the_package_s_and_ours(root, tmp_path):
    rng = np.random.default_rng(3)
    folder = tmp_path / "out"
    dataset, found = write_results(
        root, folder, "semantic", lambda record: found_segments(record, rng).labels()
    )
    numbers = evaluate_cityscapes(dataset, "semantic", folder)
    ours = SemanticEvaluator(dataset.class_names)
    for record in dataset.images:
        ours.update(truth_labels(record), found[record.id])
    ours = ours.summarize()
    assert 10 < numbers["mIoU"] == pytest.approx(ours["mIoU"], rel=1e-12)
    ious = {name: row["IoU"] for name, row in numbers["per_class"].items()}
    assert ious == pytest.approx(ours["per_class"], rel=1e-12, nan_ok=True)
    assert 0 < numbers["iIoU"] < 100


@needs_scripts
def test_only_the_images_that_are_asked_for_count(root, tmp_path):
    dataset, _ = write_results(root, tmp_path / "out", "instance", objects)
    for path in (tmp_path / "out").glob("ulm*_pred.txt"):
        path.unlink()
    aachen = [record for record in dataset.images if "aachen" in record.path.name]
    numbers = evaluate_cityscapes(dataset, "instance", tmp_path / "out", aachen)
    assert numbers["images"] == len(aachen) == 2 and numbers["AP"] == pytest.approx(100)


@needs_scripts
@pytest.mark.parametrize(
    "task, find, result",
    [
        ("instance", objects, "ulm_000001_000019_pred.txt"),
        ("panoptic", SegmentMap.of, "panoptic/ulm_000001_000019.png"),
        ("panoptic", SegmentMap.of, "panoptic.json"),
        ("semantic", truth_labels, "ulm_000001_000019_labelIds.png"),
    ],
)
def test_what_is_missing_is_named_with_the_fix(root, tmp_path, task, find, result):
    dataset, _ = write_results(root, tmp_path / "out", task, find)
    (tmp_path / "out" / result).unlink()
    with pytest.raises(InputError, match=f"no results .*{result}. Evaluate all images"):
        evaluate_cityscapes(dataset, task, tmp_path / "out")


@needs_scripts
def test_missing_annotations_are_named_with_the_fix(root, tmp_path):
    dataset, _ = write_results(root, tmp_path / "out", "semantic", truth_labels)
    truth = root / "gtFine/val/ulm/ulm_000001_000019_gtFine_labelIds.png"
    truth.unlink()
    message = r"1 of 3 images have no annotations .*labelIds\.png\. Download .*gtFine_train"
    with pytest.raises(InputError, match=message):
        evaluate_cityscapes(dataset, "semantic", tmp_path / "out")
    Image.new("L", (3, 3)).save(truth)
    with pytest.raises(InputError, match="evaluation says: Image widths of .* are not equal"):
        evaluate_cityscapes(dataset, "semantic", tmp_path / "out")


@needs_scripts
def test_nothing_is_left_behind(root, tmp_path, monkeypatch):
    """The package would leave matches.json here and a cache of the ground truth in itself."""
    dataset, _ = write_results(root, tmp_path / "out", "instance", objects)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    evaluate_cityscapes(dataset, "instance", tmp_path / "out")
    assert not list((tmp_path / "here").iterdir())
    (package,) = importlib.import_module("cityscapesscripts.evaluation").__path__
    assert not (Path(package) / "gtInstances.json").exists()


def test_without_the_package_the_fix_is_said(monkeypatch):
    module = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"needs the package cityscapesscripts .*pip install"):
        check_cityscapesscripts()
