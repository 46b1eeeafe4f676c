"""Random views: their sizes, windows and flips, and what is left of the objects."""

import numpy as np
import pytest
import torch
from painted_scene import SMALL, STILL, as_rle, augment, away_from_borders, polygon, scene
from PIL import Image

from fastinst.data.augment import Augmentation, resize_shortest_edge, shortest_edge_size
from fastinst.data.dataset import ImageRecord
from fastinst.data.large_scale_jitter import LargeScaleJitter
from fastinst.data.view import PADDING, View
from fastinst.rivals.mapper import staged_mapper


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
