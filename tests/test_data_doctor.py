"""What the doctor finds in a data set: each trouble put in on purpose, and named."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_coco import CATEGORY_IDS, write_coco

from fastinst.config import make_config
from fastinst.data.coco import load_coco
from fastinst.data.dataset import Annotation
from fastinst.examination.annotation_checks import boxes_as_masks
from fastinst.examination.object_table import measure_objects
from fastinst.examination.report import examine

EDGES = (("short_edge", 64), ("max_edge", 96))
SIZES = {f"{kind}_{edge}": n for kind in ("train", "test") for edge, n in EDGES}
CONFIG = make_config("fastinst-d1-r18-192", num_classes=3, num_queries=10, **SIZES)


def scene(seed, count=3):
    """Rectangles of random places, sizes and classes, for `write_coco`."""
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(count):
        left, top = 8 * rng.integers(0, 8), 8 * rng.integers(0, 5)
        width, height = 8 * rng.integers(1, 4, 2)
        objects.append((int(rng.integers(3)), *map(int, (left, top, left + width, top + height))))
    return objects


def load(folder, scenes):
    path = write_coco(folder, scenes)
    return load_coco(path, folder / "val")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return load(tmp_path_factory.mktemp("train") / "a set", [scene(i) for i in range(16)])


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return load(tmp_path_factory.mktemp("val"), [scene(100 + i) for i in range(4)])


def with_annotations(dataset, index, change):
    images = list(dataset.images)
    images[index] = replace(images[index], annotations=change(images[index].annotations))
    return replace(dataset, images=tuple(images))


def found(word, train, val=None, **options):
    """The one finding of which the sentence has `word`."""
    report = examine(train, val, CONFIG, 4, **options)
    findings = [finding for finding in report.findings if word in finding.what]
    assert len(findings) == 1, [finding.what for finding in report.findings]
    return findings[0]


def test_a_set_that_is_well(train, val):
    report = examine(train, val, CONFIG, 4)
    assert report.fatal == []
    whats = [finding.what.partition(",")[0] for finding in report.findings]
    assert whats == ["All masks of train are upright rectangles", "The category ids have gaps"]
    said = []
    report.show(said.append)
    text = "\n".join(said)
    for part in (str(train.source), "16 images", "48 objects", "An epoch is 4 steps", "GiB"):
        assert part in text
    row = next(line for line in said if line.startswith("red"))
    assert int(row.split()[1]) == sum(a.label == 0 for r in train.images for a in r.annotations)


def test_an_annotation_twice_and_a_mask_of_two_classes(train):
    def change(annotations):
        a, b = annotations[:2]
        return (*annotations, replace(a, id=901), replace(b, id=902, label=(b.label + 1) % 3))

    changed = with_annotations(train, 3, change)
    a, b = train.images[3].annotations[:2]
    twice = found("annotated twice", changed)
    assert twice.places == (f"annotations {a.id} and 901 of image 4 (4.png)",)
    assert f"annotations {b.id} and 902 " in found("several classes", changed).places[0]


def test_objects_beyond_the_image_the_farthest_first(train):
    def change(annotations):
        far = Annotation(900, 0, [np.array([80.0, 8, 126, 8, 126, 24, 80, 24])], False)
        near = replace(far, id=901, segmentation=[np.array([-3.0, 8, 20, 8, 20, 24])])
        return (*annotations, near, far)

    finding = found("beyond the image", with_annotations(train, 0, change))
    assert finding.severity == "note"
    assert finding.what.startswith("2 objects of train reaching beyond the image")
    assert finding.places == (
        "annotation 900 of image 1 (1.png): by 30 pixels",
        "annotation 901 of image 1 (1.png): by 3 pixels",
    )


def test_tiny_objects_and_the_size_that_would_do(train):
    small = replace(
        train,
        images=tuple(
            replace(r, annotations=tuple(_shrunk(a) for a in r.annotations)) for r in train.images
        ),
    )
    finding = found("smaller than 8 x 8", small)
    assert finding.severity == "warning"
    size = int(finding.fix.split()[1])
    areas = measure_objects(small).areas_at(small, size, 10**6)
    assert (areas >= 64).mean() >= 0.9
    areas = measure_objects(small).areas_at(small, size - 32, 10**6)
    assert (areas >= 64).mean() < 0.9


def test_lines_need_no_larger_size_but_another_data_set(train):
    line = [np.array([8.0, 8, 40, 40, 8, 8])]
    changed = replace(
        train,
        images=tuple(
            replace(r, annotations=tuple(replace(a, segmentation=line) for a in r.annotations))
            for r in train.images
        ),
    )
    assert found("smaller than 8 x 8", changed).fix.startswith("cut the images into tiles")


def _shrunk(annotation):
    polygons = []
    for polygon in annotation.segmentation:
        points = np.reshape(polygon, (-1, 2))
        polygons.append((points.mean(axis=0) + (points - points.mean(axis=0)) / 4).ravel())
    return replace(annotation, segmentation=polygons)


def test_more_objects_than_queries(train):
    def change(annotations):
        return tuple(replace(annotations[0], id=900 + i) for i in range(11))

    finding = found("queries (10)", with_annotations(train, 5, change))
    assert finding.places == ("image 6 (6.png): 11 objects",)
    assert "num_queries=50" in finding.fix


def test_nothing_to_learn_is_fatal_and_nothing_to_measure_is_not(train, val):
    nothing = replace(train, images=tuple(replace(r, annotations=()) for r in train.images))
    assert found("No image of train", nothing).severity == "fatal"
    assert found("No image of val", train, nothing).severity == "warning"
    crowds = with_annotations(train, 0, lambda annotations: ())
    assert found("without an object", crowds).places == ("image 1 (1.png)",)
    skipped = replace(train, skipped=("annotation 5 of image 2 (2.png): its area is zero",))
    assert found("left out", skipped).places == skipped.skipped


def test_crowds_that_are_most_of_a_set(train):
    changed = train
    for i in range(8):
        changed = with_annotations(
            changed, i, lambda annotations: tuple(replace(a, iscrowd=True) for a in annotations)
        )
    assert "50%" in found("are crowds", changed).what


def test_masks_made_from_boxes(train):
    assert len(list(boxes_as_masks("train", measure_objects(train)))) == 1
    triangle = [np.array([0.0, 0, 40, 0, 0, 40])]
    changed = with_annotations(train, 0, lambda a: (replace(a[0], segmentation=triangle), *a[1:]))
    assert list(boxes_as_masks("train", measure_objects(changed))) == []


def test_classes_that_differ_are_fatal(train, val):
    other = replace(val, class_names=("red", "green", "violet"))
    finding = found("different classes", train, other)
    assert finding.severity == "fatal"
    assert finding.places == ("only in train: blue", "only in val: violet")
    swapped = replace(val, class_names=("red", "blue", "green"))
    assert "another order" in found("different classes", train, swapped).places[0]


@pytest.mark.parametrize(
    ("source", "is_said"),
    [
        ("test/_annotations.coco.json", True),
        ("annotations/instances_test2017.json", True),
        ("test/labels", True),
        ("test/valid/labels", False),
        ("test/val.json", False),
        ("latest/all.json", False),
    ],
)
def test_a_test_set_that_stands_in_for_a_validation_set_is_said(train, val, source, is_said):
    report = examine(train, replace(val, source=train.source.parent / source), CONFIG, 4)
    assert any("test set" in finding.what for finding in report.findings) == is_said


def test_classes_that_never_occur(train, val):
    def without(dataset, label):
        kept = dataset
        for i in range(len(dataset.images)):
            kept = with_annotations(
                kept, i, lambda annotations: tuple(a for a in annotations if a.label != label)
            )
        return kept

    finding = found("of val without an object in train", without(train, 1), val)
    assert finding.places[0].startswith("green: ")
    assert found("of 3 without an object", without(train, 1), without(val, 1)).places == ("green",)
    roboflow = replace(without(train, 0), category_ids=(0, 1, 2))
    assert found("Roboflow", roboflow).severity == "note"


def test_gaps_between_ids_are_harmless(train):
    assert train.category_ids == CATEGORY_IDS
    assert found("gaps", train).severity == "note"


def test_images_that_cannot_be_used_are_fatal_and_all_named(train, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(tmp_path / "other.png")
    images = list(train.images)
    images[2] = replace(images[2], path=tmp_path / "broken.png")
    images[7] = replace(images[7], path=tmp_path / "other.png")
    finding = found("cannot be used", replace(train, images=tuple(images)))
    assert finding.severity == "fatal"
    assert "image 3 (broken.png)" in finding.places[0] and "decoded" in finding.places[0]
    assert "10 x 10" in finding.places[1]


def test_copies_within_a_set_and_between_the_sets(train, val, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(train.images[4].path.read_bytes())
    within = replace(train, images=(*train.images[:-1], replace(train.images[-1], path=copy)))
    places = found("several names", within).places
    assert places == ("image 5 (5.png) = image 16 (copy.png)",)
    smaller = tmp_path / "smaller.jpg"
    with Image.open(train.images[6].path) as image:
        image.resize((72, 48)).save(smaller, quality=50)
    leaking = replace(
        val,
        images=(
            replace(val.images[0], path=copy),
            replace(val.images[1], path=smaller, height=48, width=72),
            *val.images[2:],
        ),
    )
    assert found("the same as training images", train, leaking).places == (
        "image 1 (copy.png) in val, image 5 (5.png) in train",
    )
    assert found("looking like training images", train, leaking).places == (
        "image 2 (smaller.jpg) in val, image 7 (7.png) in train",
    )


def test_what_was_sampled_is_said(train, val):
    report = examine(train, val, CONFIG, 4, most_images=10)
    assert any("10 of them opened" in fact for fact in report.facts)


def test_shuffled_masks_are_found(train):
    images = [
        replace(record, annotations=train.images[i - 5].annotations)
        for i, record in enumerate(train.images)
    ]
    assert found("hardly better", replace(train, images=tuple(images))).severity == "warning"


def test_areas_and_boxes_are_those_of_the_masks(train):
    rle = {"size": [64, 96], "counts": [64 * 10, 30, 34, 30, 64 * 84 - 30]}
    rles = tuple(Annotation(800 + i, 0, rle, i == 1) for i in range(300))
    nothing = Annotation(700, 0, [], False)
    parts = [np.array([0.0, 0, 8, 0, 8, 8, 0, 8]), np.array([16.0, 16, 32, 16, 32, 24, 16, 24])]
    dataset = with_annotations(
        train, 1, lambda a: (*rles, nothing, replace(a[0], segmentation=parts))
    )
    table = measure_objects(dataset)
    own = np.flatnonzero(table.image == 1)
    assert (table.area[own[:300]] == 60).all()
    np.testing.assert_array_equal(table.box[own[0]], (10, 0, 12, 30))
    assert table.area[own[300]] == 0
    assert table.area[own[301]] == 64 + 128
    np.testing.assert_array_equal(table.box[own[301]], (0, 0, 32, 24))
    assert table.crowd[own].sum() == 1
    for i in np.flatnonzero(table.image != 1).tolist():
        mask = table.annotations[i].mask(64, 96)
        assert table.area[i] == pytest.approx(mask.sum(), rel=0.1)
    assert table.per_image(dataset)[1] == 301
