"""Crops of one size from an image at a random scale."""

import numpy as np
import pytest
from painted_scene import augment, away_from_borders, scene

from fastinst.data.fixed_crop import FixedCrop


def test_cityscapes_gives_crops_of_512_x_1024_at_eight_scales():
    scales, corners, flips = set(), set(), 0
    for seed in range(600):
        view = FixedCrop().draw(1024, 2048, np.random.default_rng(seed))
        left, top, right, bottom = view.window
        assert view.size == (512, 1024)
        assert 0 <= left < right <= 2048 and 0 <= top < bottom <= 1024
        short_edge = round(1024 * 512 / (bottom - top) / 32) * 32
        assert 1024 * 1024 / (right - left) == pytest.approx(short_edge, abs=2)
        scales.add(short_edge)
        corners.add((left > 512, top > 256))
        flips += view.flip
    assert scales == {800, 832, 864, 896, 928, 960, 992, 1024}
    assert len(corners) == 4 and 240 < flips < 360


@pytest.mark.parametrize("size, expected", [((300, 90), (512, 800)), ((90, 3000), (512, 1024))])
def test_an_image_that_is_smaller_gives_what_it_has(size, expected):
    settings = FixedCrop(short_edges=(800,))
    assert settings.draw(*size, np.random.default_rng(0)).size == expected
    small = FixedCrop(short_edges=(100,)).draw(40, 60, np.random.default_rng(0))
    assert small.size == (100, 150)
    assert small.window == (0, 0, 60, 40)


def test_masks_stay_on_their_objects():
    image, annotations = scene()
    settings = FixedCrop((90, 100), (100, 150, 200))
    seen = set()
    for seed in range(60):
        view, labels, masks = augment(image, annotations, np.random.default_rng(seed), settings)
        assert view.shape == (90, 100, 3)
        red = view[:, :, 0].astype(int)
        for k, label in enumerate((4, 7, 2), start=1):
            if label in labels:
                mask = masks[labels.tolist().index(label)]
                assert (np.abs(red - 80 * k) < 5)[away_from_borders(mask)].all()
                seen.add(label)
    assert seen == {2, 4, 7}
