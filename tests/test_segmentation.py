"""Which segmentations have a mask, and which are left out with the reason."""

import re

import numpy as np
import pytest
from coco_files import HEIGHT, SQUARE, WIDTH, coco, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from fastinst.data.dataset import Annotation


def test_masks_of_all_kinds_of_segmentation(tmp_path):
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[3:13, 2:12] = True
    compressed = mask_utils.encode(np.asfortranarray(square, np.uint8))["counts"].decode()
    parts = [[2, 3, 7, 3, 7, 13, 2, 13], [7, 3, 12, 3, 12, 13, 7, 13]]
    plain = [2 * HEIGHT + 3] + [10, 10] * 9 + [10, (WIDTH - 12) * HEIGHT + HEIGHT - 13]
    rles = [{"size": [HEIGHT, WIDTH], "counts": counts} for counts in (compressed, plain)]
    outside = [[-250.0, 3, 12, 3, 12, 13, -250, 13]]
    dataset = load(tmp_path, coco([SQUARE, parts, *rles, outside]))
    masks = [a.mask(HEIGHT, WIDTH) for a in dataset.images[0].annotations]
    assert all(mask.dtype == bool and mask.flags.c_contiguous for mask in masks)
    for mask in masks[:4]:
        np.testing.assert_array_equal(mask, square)
    square[3:13, :2] = True
    np.testing.assert_array_equal(masks[4], square)


def rle(counts, size=(HEIGHT, WIDTH)) -> dict:
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[[2.0, 3.0], [12.0, 3.0], [12.0, 13.0], [2.0, 13.0]]], "a list of points"),
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[]], "fewer than 3 points"),
        ([[1.0, 1.0, 5.0, 5.0]], "fewer than 3 points"),
        ([[1.0, 1.0, 5.0, 5.0, 2.0, 7.0, 3.0]], "odd number"),
        ([1.0, 1.0, 5.0, 1.0, 5.0, 5.0], "not a list of polygons"),
        ([[1.0, 1.0, 5.0, "5", 2.0, 7.0]], "not a number"),
        ([[1.0, 1.0, 5.0, float("nan"), 2.0, 7.0]], "not finite"),
        ([[1.0, 1.0, float("inf"), 5.0, 2.0, 7.0]], "not finite"),
        ([[1.0, 1.0, 5.0, 5.0, 10.0, 10.0]], "area is zero"),
        ([[4.0, 4.0] * 3], "area is zero"),
        ([[40.0, 1.0, 50.0, 1.0, 50.0, 9.0]], "outside the image"),
        ([[1.0, 1.0, 1e9, 1.0, 9.0, 9.0]], "far outside the image"),
        ([[1.0, 1.0, 1e200, 1e200, 9.0, 9.0]], "far outside the image"),
        (rle([300, 300], (WIDTH, HEIGHT)), r"size \[30, 20\], its image \[20, 30\]"),
        (rle([600]), "area is zero"),
        (rle([300, 299]), "add up"),
        (rle([700, -100]), "add up"),
        (rle([2**62] * 4 + [600]), "add up"),
        (rle([300.0, 300.0]), "not integers"),
        (rle([]), "not integers"),
        (rle(None), "no counts"),
        (rle(""), "no counts"),
        (rle("ooo"), "not an RLE string"),
        (rle("\u00e9"), "corrupt"),
        (rle("oooooooooooooooo0"), "more than 32 bits"),
        (rle("0"), "add up"),
        ("polygon", "no segmentation"),
    ],
)
def test_unusable_segmentations_are_skipped_with_the_reason(tmp_path, segmentation, reason):
    dataset = load(tmp_path, coco([SQUARE, segmentation]))
    assert [a.id for a in dataset.images[0].annotations] == [1]
    assert len(dataset.skipped) == 1
    assert re.search(rf"annotation 2 of image 5 \(a\.jpg\): .*{reason}", dataset.skipped[0])


def test_a_bad_part_does_not_cost_the_good_ones(tmp_path):
    bad = [1.0, 1.0]
    outside = [40.0, 1.0, 50.0, 1.0, 50.0, 9.0]
    dataset = load(tmp_path, coco([[bad, *SQUARE, outside], [outside, bad, *SQUARE]]))
    assert not dataset.skipped
    assert [len(a.segmentation) for a in dataset.images[0].annotations] == [1, 1]


def test_a_figure_of_eight_has_an_area(tmp_path):
    dataset = load(tmp_path, coco([[[2.0, 2.0, 12.0, 12.0, 12.0, 2.0, 2.0, 12.0]]]))
    assert dataset.images[0].annotations[0].mask(HEIGHT, WIDTH).sum() > 20


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=9)
            | st.fixed_dictionaries(
                {"size": st.just([HEIGHT, WIDTH]), "counts": inner | st.text("0?@OPo", min_size=1)}
            )
        ),
        max_leaves=40,
    )
)
def test_any_segmentation_is_skipped_or_has_a_mask(tmp_path, segmentation):
    dataset = load(tmp_path, coco([segmentation]))
    annotations = dataset.images[0].annotations
    assert len(annotations) + len(dataset.skipped) == 1
    for annotation in annotations:
        assert annotation.mask(HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)


coordinates = st.lists(st.floats(-299, 299, width=32), min_size=6, max_size=16)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(coordinates, min_size=1, max_size=4))
def test_kept_polygons_have_the_mask_of_pycocotools(tmp_path, parts):
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for part in parts:
        if len(part) % 2 == 0:
            expected |= mask_utils.decode(mask_utils.frPyObjects([part], HEIGHT, WIDTH))[:, :, 0]
    dataset = load(tmp_path, coco([parts]))
    if dataset.skipped:
        assert not expected.any()
    else:
        mask = dataset.images[0].annotations[0].mask(HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask, expected)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_rle_survives_the_round_trip(tmp_path, seed, density):
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < density
    mask[3, 4] = True
    counts = mask_utils.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    dataset = load(tmp_path, coco([rle(counts)]))
    np.testing.assert_array_equal(dataset.images[0].annotations[0].mask(HEIGHT, WIDTH), mask)


def test_annotation_takes_plain_lists():
    assert Annotation(1, 0, SQUARE, False).mask(HEIGHT, WIDTH).sum() == 100


def test_an_annotation_without_polygons_has_an_empty_mask():
    mask = Annotation(1, 0, [], False).mask(HEIGHT, WIDTH)
    assert mask.shape == (HEIGHT, WIDTH) and not mask.any()


def test_only_what_is_well_formed_is_missed_when_it_covers_no_pixel(tmp_path):
    flat = [[1.0, 1.0, 5.0, 5.0, 10.0, 10.0]]
    outside = [[40.0, 1.0, 50.0, 1.0, 50.0, 9.0]]
    segmentations = [flat, outside, rle([600]), [], None, rle([300, 299]), SQUARE]
    data = coco(segmentations)
    data["annotations"][0] |= {"area": 12, "iscrowd": 1}
    dataset = load(tmp_path, data)
    (record,) = dataset.images
    assert [a.id for a in record.invisible] == [1, 2, 3]
    assert (record.invisible[0].area, record.invisible[0].iscrowd) == (12, True)
    assert [a.id for a in record.annotations] == [7] and len(dataset.skipped) == 6
    assert not any(a.mask(HEIGHT, WIDTH).any() for a in record.invisible)
