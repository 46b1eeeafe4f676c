"""Resizing, and that images, masks and labels stay together under augmentation."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from scipy import ndimage

from fastinst.data.augment import Augmentation, resize_shortest_edge, shortest_edge_size
from fastinst.data.dataset import Annotation, ImageRecord
from fastinst.data.images import read_reduced
from fastinst.data.large_scale_jitter import LargeScaleJitter
from fastinst.data.objects import Objects
from fastinst.data.view import PADDING, View, snapped_view
from fastinst.ops import pack_bits, unpack_bits
from fastinst.rivals.mapper import staged_mapper

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


def augment(
    image: np.ndarray, annotations: list[Annotation], rng: np.random.Generator, settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3], labels and masks bool [N, h, w] of a random view."""
    view = settings.draw(*image.shape[:2], rng)
    rendered = view.render(image)
    labels, words = view.masks(Objects(annotations))
    masks = unpack_bits(torch.from_numpy(words), rendered.shape[2])
    assert torch.equal(pack_bits(masks), torch.from_numpy(words))  # no bit past the width
    return rendered.permute(1, 2, 0).numpy(), labels, masks.numpy()


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


@pytest.mark.parametrize("settings", [SMALL, LargeScaleJitter(160)])
@pytest.mark.parametrize("rle", [False, True])
def test_masks_stay_on_their_objects(rle, settings):
    image, annotations = scene()
    if rle:
        annotations = [as_rle(a, *image.shape[:2]) for a in annotations]
    seen = set()
    for seed in range(60):
        view, labels, masks = augment(image, annotations, np.random.default_rng(seed), settings)
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

        settings = LargeScaleJitter(200)
        view, labels, masks = augment(image, annotations, np.random.default_rng(seed), settings)
        seen = (view == 9).all(axis=2)
        assert view.shape == (200, 200, 3) and (view[~seen] == PADDING).all() and seen[0, 0]
        assert labels.tolist()[:2] == [0, 0]
        assert (masks[:2] == seen).all()


def test_rle_masks_keep_their_holes_and_parts():
    mask = np.zeros((40, 60), bool)
    mask[5:30, 8:40] = True
    mask[12:20, 15:30] = False
    mask[33:38, 50:58] = True
    ring = Annotation(1, 3, mask_utils.encode(np.asfortranarray(mask, np.uint8)), False)
    column = mask.T.ravel()
    changes = np.flatnonzero(column[1:] != column[:-1]) + 1
    counts = np.diff([0, *changes, len(column)]).tolist()
    plain = Annotation(2, 4, {"size": [40, 60], "counts": counts}, False)
    image = np.zeros((40, 60, 3), np.uint8)
    for flip in (0, 1):
        settings = dataclasses.replace(STILL, short_edges=(40,), flip_probability=flip)
        _, labels, masks = augment(image, [ring, plain], np.random.default_rng(0), settings)
        assert labels.tolist() == [3, 4]
        np.testing.assert_array_equal(masks[0], mask[:, ::-1] if flip else mask)
        np.testing.assert_array_equal(masks[0], masks[1])


def test_masks_do_not_depend_on_where_their_bytes_begin():
    """Each is filled in a window of its own; all are what filling the whole view gives."""
    rng = np.random.default_rng(0)
    view = View((0, 0, 90, 70), 140, 180)
    for _ in range(200):
        corners = rng.uniform(-15, 95, (rng.integers(3, 7), 2)) * rng.uniform(0.05, 1)
        blob = polygon(1, 0, *corners.ravel())
        doubled = polygon(1, 0, *(2 * corners.ravel()))
        _, words = view.masks(Objects([blob]))
        expected = pack_bits(torch.from_numpy(doubled.mask(140, 180)))
        if len(words):
            np.testing.assert_array_equal(words[0], expected)
        else:
            assert not expected.any()


# Rendering


def test_a_view_is_pillows_bilinear_within_two_grey_levels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (70, 90, 3), np.uint8)
    differences = []
    for height, width in ((70, 90), (41, 33), (150, 200), (7, 300), (1, 1)):
        for window in ((0, 0, 90, 70), (13, 5, 60, 49), (89, 69, 90, 70)):
            expected = Image.fromarray(image).crop(window).resize((width, height), 2)
            view = View(window, height, width).render(image).permute(1, 2, 0).numpy()
            differences.append(np.abs(view.astype(int) - np.array(expected)))
            mirrored = View(window, height, width, flip=True).render(image)
            np.testing.assert_array_equal(mirrored.permute(1, 2, 0), view[:, ::-1])
    assert max(difference.max() for difference in differences) <= 2
    assert np.mean(np.concatenate([d.ravel() for d in differences])) < 0.5


@pytest.mark.parametrize("size", [(1600, 2000), (1603, 2005)])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path, size):
    height, width = size
    y, x = np.mgrid[:height, :width]
    waves = 127 + 60 * np.sin(x / 31) + 60 * np.cos(y / 47 + x / 90)
    image = np.stack([waves, waves[::-1], waves[:, ::-1]], axis=2).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    settings = Augmentation.for_size(160, 213)
    reductions = set()
    for seed in range(8):
        view = settings.draw(height, width, np.random.default_rng(seed))
        whole = view.render(*read_reduced(tmp_path / "a.jpg", size, 1)).int()
        small, reduction = read_reduced(tmp_path / "a.jpg", size, view.reduction)
        assert reduction == view.reduction
        assert small.shape == (-(-height // reduction), -(-width // reduction), 3)
        assert (view.render(small, reduction).int() - whole).abs().max() <= 4
        reductions.add(reduction)
    assert max(reductions) >= 4


def test_only_jpegs_that_need_no_turning_are_reduced(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8))
    image.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "a.jpg")
    for name, expected in (("a.png", 1), ("turned.jpg", 1), ("a.jpg", 4)):
        array, reduction = read_reduced(tmp_path / name, None, 4)
        assert reduction == expected
        assert max(array.shape) == 80 // expected


def test_windows_are_snapped_to_what_reduction_needs():
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(side) for side in np.exp(rng.uniform(0, 8, 2)) + 1)
        top, bottom = sorted(rng.uniform(0, height, 2))
        left, right = sorted(rng.uniform(0, width, 2))
        size = tuple(rng.integers(1, 700, 2).tolist())
        view = snapped_view((height, width), (left, top, right, bottom), size, False)
        x0, y0, x1, y1 = view.window
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert all(edge % view.reduction == 0 for edge in view.window)
        nearest = 0.5 if min(bottom - top, right - left) >= 1 else 1.5
        for edge, snapped in ((left, x0), (right, x1), (top, y0), (bottom, y1)):
            assert abs(edge - snapped) <= (view.reduction if view.reduction > 1 else nearest)
        if view.reduction > 1:
            assert (bottom - top) / size[0] >= 2 * view.reduction
            assert (right - left) / size[1] >= 2 * view.reduction


# Large-scale jitter


def test_large_scale_jitter_fills_a_fixed_canvas():
    settings = LargeScaleJitter(100)
    image = np.full((60, 120, 3), 9, np.uint8)
    scales, flips = [], 0
    for seed in range(400):
        view = settings.draw(60, 120, np.random.default_rng(seed))
        left, top, right, bottom = view.window
        assert view.size == (100, 100) and view.height <= 100 and view.width <= 100
        # Both sides are scaled alike, up to whole pixels of image and view.
        scales.append(view.width / (right - left))
        low = (view.height - 1) / (bottom - top + 1)
        assert low <= (view.width + 1) / (right - left - 1)
        assert (view.width - 1) / (right - left + 1) <= (view.height + 1) / (bottom - top - 1)
        if view.width < 100:
            assert (left, right) == (0, 120)
        flips += view.flip
    factors = np.array(scales) * 120 / 100
    assert 0.08 < factors.min() < 0.2 and 1.9 < factors.max() < 2.1
    assert abs(np.mean(factors) - 1.05) < 0.1 and 160 < flips < 240

    rendered = View((0, 0, 120, 60), 25, 50, canvas=(100, 100)).render(image).permute(1, 2, 0)
    assert (rendered[:25, :50] == 9).all()
    assert (rendered[25:] == torch.tensor(PADDING)).all()
    assert (rendered[:25, 50:] == torch.tensor(PADDING)).all()


# The release's order of operations


@pytest.mark.parametrize("rle", [False, True])
def test_a_view_is_the_releases_up_to_rounding(tmp_path, rle):
    image, annotations = scene(240, 300)
    y, x = np.mgrid[:240, :300]
    image[:, :, 1] = 100 + 50 * np.sin(x / 17) + 50 * np.cos(y / 23)
    if rle:
        annotations = [as_rle(a, 240, 300) for a in annotations]
    Image.fromarray(image).save(tmp_path / "a.png")
    record = ImageRecord(1, tmp_path / "a.png", 240, 300, tuple(annotations))
    settings = Augmentation.for_size(320, 427)
    for seed in range(30):
        view, labels, masks = augment(image, annotations, np.random.default_rng(seed), settings)
        *_, sample = staged_mapper(record, settings, np.random.default_rng(seed))
        theirs = sample["target"]
        assert tuple(sample["image"].shape[1:]) == view.shape[:2]
        # A crop's edges are whole pixels of the image here, and of a resized image there.
        green = sample["image"][1].numpy().astype(int)
        assert np.abs(view[:, :, 1] - green).max() <= 24
        for label, mask in zip(labels.tolist(), masks, strict=True):
            if label in theirs["labels"]:
                other = theirs["masks"][theirs["labels"].tolist().index(label)].numpy()
                inside, outside = away_from_borders(other), away_from_borders(~other)
                assert mask[inside].all() and not mask[outside].any()
            else:
                assert not away_from_borders(mask).any()
