"""A view's pixels and masks are those of the image and its annotations."""

import dataclasses

import numpy as np
import pytest
import torch
from painted_scene import SMALL, STILL, as_rle, augment, away_from_borders, polygon, scene
from PIL import Image
from pycocotools import mask as mask_utils

from fastinst.data.augment import Augmentation
from fastinst.data.dataset import Annotation
from fastinst.data.images import read_reduced
from fastinst.data.large_scale_jitter import LargeScaleJitter
from fastinst.data.objects import Objects
from fastinst.data.view import View, snapped_view
from fastinst.ops import pack_bits


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
