"""The generated dataset."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO

from fastinst.data import demo
from fastinst.data.coco import load_coco
from fastinst.data.dataset import Annotation
from fastinst.data.demo import write_demo
from fastinst.data.images import read_image
from fastinst.data.layouts import find_coco
from fastinst.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("data") / "demo", train=40, val=6, seed=0)


def tree(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_is_a_clean_coco_dataset(folder):
    for split, count in (("train", 40), ("val", 6)):
        dataset = load_coco(*find_coco(folder, split))
        assert len(dataset) == count and not dataset.skipped
        assert dataset.class_names == ("disc", "square", "triangle", "ring")
        assert dataset.category_ids == (1, 2, 4, 7)
        truth = COCO(dataset.source)
        for record in dataset.images:
            read_image(record.path, (record.height, record.width))
            assert 160 <= min(record.height, record.width) <= max(record.height, record.width) < 225
            assert 2 <= sum(not a.iscrowd for a in record.annotations) <= 5
            for annotation in record.annotations:
                mask = annotation.mask(record.height, record.width)
                row = truth.anns[annotation.id]
                rows, columns = np.nonzero(mask)
                assert row["area"] == mask.sum() > 0
                x, y, w, h = row["bbox"]
                assert (x, y, x + w - 1, y + h - 1) == (
                    columns.min(), rows.min(), columns.max(), rows.max(),
                )  # fmt: skip


def test_it_has_every_kind_of_segmentation(folder):
    dataset = load_coco(*find_coco(folder, "train"))
    annotations = [a for record in dataset.images for a in record.annotations]
    polygons = [a.segmentation for a in annotations if isinstance(a.segmentation, list)]
    assert {len(p[0]) for p in polygons if len(p) == 1} >= {6, 8}
    assert any(len(p) > 1 for p in polygons)
    rles = [a for a in annotations if isinstance(a.segmentation, dict)]
    assert any(isinstance(a.segmentation["counts"], str) for a in rles)
    assert any(a.iscrowd and isinstance(a.segmentation["counts"], list) for a in rles)
    assert {a.label for a in annotations} == {0, 1, 2, 3}


def test_masks_of_an_image_do_not_overlap(folder):
    dataset = load_coco(*find_coco(folder, "train"))
    for record in dataset.images:
        masks = [a.mask(record.height, record.width) for a in record.annotations]
        overlap = np.sum(masks, axis=0) > 1
        assert overlap.sum() < 0.01 * overlap.size  # polygons may share border pixels


def test_masks_lie_on_what_is_drawn(folder):
    """The darker rim of a shape is just inside of its mask's border."""
    dataset = load_coco(*find_coco(folder, "train"))
    inner, outer = [], []
    for record in dataset.images:
        image = read_image(record.path).astype(float)
        for annotation in record.annotations:
            mask = annotation.mask(record.height, record.width)
            inside = image[mask].mean(axis=0)
            inner.append(np.abs(image[mask] - inside).mean())
            outer.append(np.abs(image[~mask] - inside).mean())
    assert np.median(inner) < 0.6 * np.median(outer)


def test_outlines_of_parts_fill_the_same_pixels():
    rng = np.random.default_rng(0)
    polygons = 0
    for _ in range(40):
        mask = np.kron(rng.random((6, 7)) < 0.4, np.ones((3, 2))) > 0
        if not mask.any():
            continue
        shape = demo.Shape("square", mask, mask.size + 1)
        segmentation = demo._segmentation(shape)
        polygons += isinstance(segmentation, list)
        np.testing.assert_array_equal(Annotation(0, 0, segmentation, False).mask(*mask.shape), mask)
        shape.crowd = True
        crowd = Annotation(0, 0, demo._segmentation(shape), True)
        np.testing.assert_array_equal(crowd.mask(*mask.shape), mask)
    assert polygons > 20


def test_the_seed_decides_everything(folder, tmp_path):
    assert tree(write_demo(tmp_path / "again", 40, 6, 0)) == tree(folder)
    other = tree(write_demo(tmp_path / "other", 2, 1, 1))
    assert other["train/000000.jpg"] != tree(folder)["train/000000.jpg"]
    assert other["train/000000.jpg"] != other["val/000000.jpg"]


def test_a_finished_set_is_reused_and_nothing_else_is_touched(tmp_path):
    out = tmp_path / "deep" / "demo"
    write_demo(out, 2, 1, 0)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert write_demo(out, 2, 1, 0) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(InputError, match="demo exists and is not this demo set"):
        write_demo(out, 3, 1, 0)

    other = tmp_path / "mine"
    other.mkdir()
    write_demo(other, 1, 1, 0)  # empty, so it may be used
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("do not lose")
    for path in (foreign, foreign / "thesis.txt"):
        with pytest.raises(InputError, match=f"{path.name} exists and is not this demo set"):
            write_demo(path, 1, 1, 0)
    assert tree(foreign) == {"thesis.txt": b"do not lose"}


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def draw(rng):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(1)
        return original(rng)

    original = demo.draw
    monkeypatch.setattr(demo, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "demo", 5, 1, 0)
    assert len(drawn) == 2 and list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "fastinst.data.demo", str(out)]
    done = subprocess.run([*command, "--train", "2", "--val", "1"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(out), done.stderr
    assert len(json.loads((out / "annotations/instances_train.json").read_text())["images"]) == 2


def test_numbers_that_make_no_dataset(tmp_path):
    for numbers in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(InputError, match="at least 1 image"):
            write_demo(tmp_path / "demo", *numbers)
