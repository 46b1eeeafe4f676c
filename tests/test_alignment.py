"""Whether masks fit their images: found without a model, and found out when they do not."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastinst.data.dataset import Annotation, Dataset, ImageRecord
from fastinst.examination.alignment import ABOVE_CHANCE, FEWEST_IMAGES, measure_alignment

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Noisy images of some grey discs, each with masks as polygons."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    images = []
    for number in range(24):
        pixels = rng.normal(100, 12, (HEIGHT, WIDTH))
        annotations = []
        for k in range(3):
            radius = rng.uniform(8, 16)
            centre = rng.uniform((20, 20), (WIDTH - 20, HEIGHT - 20))
            pixels[np.hypot(x - centre[0], y - centre[1]) < radius] += rng.choice((-60, 60))
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            circle = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            annotations.append(Annotation(3 * number + k, 0, [circle.ravel()], False))
        path = folder / f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        images.append(ImageRecord(number, path, HEIGHT, WIDTH, tuple(annotations)))
    return Dataset(folder, folder, ("disc",), (1,), tuple(images), ())


def with_annotations_of(dataset, sources):
    images = [
        replace(record, annotations=dataset.images[source].annotations)
        for record, source in zip(dataset.images, sources, strict=True)
    ]
    return replace(dataset, images=tuple(images))


def moved(dataset, move):
    def moved_annotation(annotation):
        polygons = [move(p.reshape(-1, 2)).ravel() for p in annotation.segmentation]
        return replace(annotation, segmentation=polygons)

    return replace(
        dataset,
        images=tuple(
            replace(record, annotations=tuple(map(moved_annotation, record.annotations)))
            for record in dataset.images
        ),
    )


def test_masks_on_their_images(dataset):
    measured = measure_alignment(dataset)
    assert measured.score > 0.99
    assert measured.misfits == ()
    assert measured.compared == len(dataset)


def test_masks_on_other_images(dataset):
    shuffled = with_annotations_of(dataset, np.roll(np.arange(24), 5))
    assert measure_alignment(shuffled).score < ABOVE_CHANCE - 0.1


@pytest.mark.parametrize("move", [lambda p: (WIDTH, 0) - p * (1, -1), lambda p: p / 2])
def test_masks_that_are_mirrored_or_of_another_size(dataset, move):
    assert measure_alignment(moved(dataset, move)).score < ABOVE_CHANCE


def test_two_images_that_were_mixed_up_are_named(dataset):
    order = np.arange(24)
    order[[4, 9]] = 9, 4
    measured = measure_alignment(with_annotations_of(dataset, order))
    assert measured.score > ABOVE_CHANCE
    assert {record.id for record in measured.misfits} == {4, 9}


def test_too_few_images_unreadable_ones_and_crowds_are_no_evidence(dataset, tmp_path):
    few = replace(dataset, images=dataset.images[: FEWEST_IMAGES - 1])
    assert measure_alignment(few) is None
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = replace(dataset.images[20], path=tmp_path / "broken.png")
    crowd = replace(
        dataset.images[21],
        annotations=tuple(replace(a, iscrowd=True) for a in dataset.images[21].annotations),
    )
    images = (*few.images, broken, crowd)
    assert measure_alignment(replace(dataset, images=images)) is None
    measured = measure_alignment(replace(dataset, images=(*images, dataset.images[22])))
    assert measured.compared == FEWEST_IMAGES


def test_flat_images_say_nothing(dataset, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "flat.png")
    flat = tuple(replace(record, path=tmp_path / "flat.png") for record in dataset.images)
    assert measure_alignment(replace(dataset, images=flat)).score == 0.5


def test_the_sample_is_bounded_and_chosen_by_the_seed(dataset):
    assert measure_alignment(dataset, most_images=10).compared == 10
    shuffled = with_annotations_of(dataset, np.roll(np.arange(24), 5))
    scores = [measure_alignment(shuffled, 10, seed).score for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
