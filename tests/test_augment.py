"""Resizing, and that images, masks and labels stay together under augmentation."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from scipy import ndimage

from fastinst.data.augment import Augmentation, augment, resize_shortest_edge, shortest_edge_size
from fastinst.data.dataset import Annotation

SMALL = Augmentation.for_size(160, 213)
STILL = Augmentation(short_edges=(100,), max_edge=999, crop_probability=0, flip_probability=0)


def polygon(id_: int, label: int, *points: float, iscrowd: bool = False) -> Annotation:
    return Annotation(id_, label, [np.array(points, float)], iscrowd)


def as_rle(annotation: Annotation, height: int, width: int) -> Annotation:
    mask = np.asfortranarray(annotation.mask(height, width), np.uint8)
    return dataclasses.replace(annotation, segmentation=mask_utils.encode(mask))


def scene(height=120, width=150) -> tuple[np.ndarray, list[Annotation]]:
    """Object k is painted in red 80 k; the scene has no symmetry that could hide a wrong flip."""
    annotations = [
        polygon(1, 4, 10, 8, 70, 20, 55, 70, 15, 60),
        polygon(2, 7, 90.5, 30.2, 140, 60, 120, 110, 80, 90),
        Annotation(
            3,
            2,
            [np.array([20.0, 80, 60, 80, 20, 112]), np.array([70.0, 3, 99.7, 3, 99.7, 21.8])],
            False,
        ),
    ]
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 2] = 200
    for k, annotation in enumerate(annotations, start=1):
        image[annotation.mask(height, width)] = (80 * k, 0, 0)
    return image, annotations


def away_from_borders(mask: np.ndarray) -> np.ndarray:
    disc = np.hypot(*np.mgrid[-3:4, -3:4]) <= 3
    return ndimage.binary_erosion(mask, disc)


# Resizing


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # Worked out by hand; the last column has what rounding once instead of twice would miss.
        ((480, 640), (640, 853)),
        ((640, 480), (853, 640)),
        ((427, 640), (569, 853)),
        ((100, 100), (640, 640)),
        ((1, 1), (640, 640)),
        ((10, 100_000), (1, 853)),
        ((100_000, 10), (853, 1)),
        ((333, 500), (568, 853)),
    ],
)
def test_test_size(size, expected):
    assert shortest_edge_size(*size, 640, 853) == expected
    height, width = size
    if height * width < 10**6:
        image = np.zeros((*size, 3), np.uint8)
        assert resize_shortest_edge(image, 640, 853).shape == (*expected, 3)


def test_test_resize_is_pillows_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    expected = Image.fromarray(image).resize((45, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_shortest_edge(image, 32, 99), np.array(expected))


def test_settings():
    assert Augmentation.release().short_edges == (416, 448, 480, 512, 544, 576, 608, 640)
    assert Augmentation.for_size(640, 853) == Augmentation.release()
    half = Augmentation.for_size(320, 427)
    assert (half.short_edges[0], half.short_edges[-1], half.max_edge) == (208, 320, 427)
    assert (half.crop_resize, half.crop_range) == ((200, 250, 300), (192, 300))


# Augmentation


@pytest.mark.parametrize("rle", [False, True])
def test_masks_stay_on_their_objects(rle):
    image, annotations = scene()
    if rle:
        annotations = [as_rle(a, *image.shape[:2]) for a in annotations]
    seen = set()
    for seed in range(60):
        view, labels, masks = augment(image, annotations, np.random.default_rng(seed), SMALL)
        assert view.dtype == np.uint8 and masks.dtype == bool and labels.dtype == np.int64
        assert masks.shape == (len(labels), *view.shape[:2])
        red = view[:, :, 0].astype(int)
        for k, label in enumerate((4, 7, 2), start=1):
            if label not in labels:
                assert away_from_borders(np.abs(red - 80 * k) < 5).sum() == 0
                continue
            mask = masks[labels.tolist().index(label)]
            assert (np.abs(red - 80 * k) < 5)[away_from_borders(mask)].all()
            assert (view[:, :, 2] > 0)[away_from_borders(~masks.any(axis=0))].all()
            seen.add(label)
    assert seen == {2, 4, 7}


@pytest.mark.parametrize("rle", [False, True])
def test_without_any_change_masks_are_the_annotations(rle):
    image, annotations = scene()
    expected = np.stack([a.mask(*image.shape[:2]) for a in annotations])
    if rle:
        annotations = [as_rle(a, *image.shape[:2]) for a in annotations]
    settings = dataclasses.replace(STILL, short_edges=(120,))
    view, labels, masks = augment(image, annotations, np.random.default_rng(0), settings)
    np.testing.assert_array_equal(view, image)
    np.testing.assert_array_equal(masks, expected)
    assert labels.tolist() == [4, 7, 2]


def test_a_flip_mirrors_image_and_masks():
    image, annotations = scene()
    annotations[1] = as_rle(annotations[1], *image.shape[:2])
    settings = dataclasses.replace(STILL, short_edges=(120,), flip_probability=1)
    view, _, masks = augment(image, annotations, np.random.default_rng(0), settings)
    np.testing.assert_array_equal(view, image[:, ::-1])
    expected = np.stack([a.mask(*image.shape[:2])[:, ::-1] for a in annotations])
    np.testing.assert_array_equal(masks[1], expected[1])
    # pycocotools rounds coordinates to the right, so a mirrored polygon may differ at the border.
    for mask, mirrored in zip(masks, expected, strict=True):
        assert (mask != mirrored)[
            away_from_borders(mirrored) | away_from_borders(~mirrored)
        ].sum() == 0


def test_polygons_are_filled_at_the_final_size():
    """Enlarged by 8, a polygon's border stays a line and does not become a staircase."""
    triangle = polygon(1, 0, 2, 2, 18, 2, 2, 18)
    settings = dataclasses.replace(STILL, short_edges=(160,))
    image = np.zeros((20, 20, 3), np.uint8)
    _, _, masks = augment(image, [triangle], np.random.default_rng(0), settings)
    enlarged = polygon(1, 0, 16, 16, 144, 16, 16, 144).mask(160, 160)
    np.testing.assert_array_equal(masks[0], enlarged)


def test_rle_masks_take_the_nearest_pixel():
    mask = np.random.default_rng(0).random((40, 50)) < 0.3
    noise = Annotation(1, 0, mask_utils.encode(np.asfortranarray(mask, np.uint8)), False)
    image = np.zeros((40, 50, 3), np.uint8)
    for short, expected in ((160, np.kron(mask, np.ones((4, 4)))), (8, mask[2::5, 2::5])):
        settings = dataclasses.replace(STILL, short_edges=(short,))
        _, _, masks = augment(image, [noise], np.random.default_rng(0), settings)
        np.testing.assert_array_equal(masks[0], expected)


def test_the_crop_shows_a_window_of_the_image():
    """Pixel values encode their position, so the window can be read from the result."""
    y, x = np.mgrid[:240, :240].astype(np.uint8)
    image = np.stack([y, x, np.zeros_like(x)], axis=2)
    settings = Augmentation(
        short_edges=(60,), max_edge=999, crop_probability=1, crop_resize=(120,),
        crop_range=(60, 90), flip_probability=0,
    )  # fmt: skip
    windows = []
    for seed in range(40):
        view, _, _ = augment(image, [], np.random.default_rng(seed), settings)
        rows, columns = view[:, 0, 0].astype(float), view[0, :, 1].astype(float)
        heights, widths = rows[-1] - rows[0], columns[-1] - columns[0]
        # 60 to 90 pixels of the image halved to 120
        assert 116 <= heights * len(rows) / (len(rows) - 1) <= 184
        assert 116 <= widths * len(columns) / (len(columns) - 1) <= 184
        windows.append((rows[0], columns[0], heights, widths))
    assert len({w[2] != w[3] for w in windows}) == 2 or len(set(windows)) > 30
    assert min(w[0] for w in windows) < 20 and max(w[0] + w[2] for w in windows) > 220
    assert min(w[1] for w in windows) < 20 and max(w[1] + w[3] for w in windows) > 220


def test_crowds_and_vanished_objects_are_dropped():
    image, annotations = scene()
    crowd = polygon(9, 5, 0, 0, 50, 0, 50, 50, iscrowd=True)
    sliver = polygon(8, 6, 30, 30, 30.01, 30, 30.01, 30.01)
    given = [crowd, annotations[0], sliver, annotations[1]]
    view, labels, masks = augment(image, given, np.random.default_rng(0), STILL)
    assert labels.tolist() == [4, 7] and masks.any(axis=(1, 2)).all()
    view, labels, masks = augment(image, [crowd], np.random.default_rng(0), STILL)
    assert labels.shape == (0,) and masks.shape == (0, *view.shape[:2])
    assert labels.dtype == np.int64 and masks.dtype == bool


def test_sizes_are_those_of_the_release():
    image = np.zeros((480, 640, 3), np.uint8)
    sizes = [
        augment(image, [], np.random.default_rng(i), Augmentation())[0].shape for i in range(150)
    ]
    whole = {shortest_edge_size(480, 640, s, 853) for s in range(416, 641, 32)}
    shares = np.mean([size[:2] in whole for size in sizes])
    assert 0.35 < shares < 0.65  # the others are cropped
    assert {min(size[:2]) for size in sizes if size[:2] in whole} == set(range(416, 641, 32))
    assert max(max(size[:2]) for size in sizes) <= 853


def test_it_depends_on_the_generator_only():
    image, annotations = scene()
    before = image.copy(), [a.segmentation[0].copy() for a in annotations]
    first, second, other = (
        augment(image, annotations, np.random.default_rng(seed), SMALL) for seed in (5, 5, 6)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()
    np.testing.assert_array_equal(image, before[0])
    for annotation, points in zip(annotations, before[1], strict=True):
        np.testing.assert_array_equal(annotation.segmentation[0], points)


@pytest.mark.parametrize("size", [(1, 1), (10, 10_000), (10_000, 10), (1, 300), (2, 3)])
def test_odd_sizes(size):
    height, width = size
    whole = polygon(1, 0, 0, 0, width, 0, width, height, 0, height)
    corner = polygon(2, 1, -5, -5, 1, -5, 1, 1, -5, 1)
    annotations = [whole, as_rle(whole, *size), corner]
    image = np.full((*size, 3), 9, np.uint8)
    for seed in range(12):
        view, labels, masks = augment(
            image, annotations, np.random.default_rng(seed), Augmentation()
        )
        assert (view == 9).all() and max(view.shape) <= 853
        assert labels.tolist()[:2] == [0, 0] and masks[:2].all()
