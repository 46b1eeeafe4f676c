"""Images whose pixels are the ids of segments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from fastinst.data.id_maps import colours_of_ids, encode_segments, ids_of_colours
from fastinst.data.segmentation import check_segmentations


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_run_lengths_are_those_of_pycocotools_for_each_mask(seed, size):
    rng = np.random.default_rng(seed)
    ids = rng.choice([0, 7, 24, 24000, 26001, 33999, 65535], size).astype(np.uint16)
    segments = encode_segments(ids)
    assert [id_ for id_, _, _ in segments] == np.unique(ids).tolist()
    for id_, code, area in segments:
        assert code == mask_utils.encode(np.asfortranarray(ids == id_, np.uint8))
        assert area == (ids == id_).sum()
        text = {**code, "counts": code["counts"].decode()}
        assert check_segmentations([{"segmentation": text}], [size]) == [text]


def test_colours_are_ids_to_the_base_256():
    ids = np.array([[0, 1, 255], [256, 65536, (1 << 24) - 1]])
    image = colours_of_ids(ids)
    assert image.getpixel((0, 1)) == (0, 1, 0) and image.getpixel((1, 1)) == (0, 0, 1)
    np.testing.assert_array_equal(ids_of_colours(image), ids)
    with pytest.raises(ValueError, match="its pixels are L"):
        ids_of_colours(Image.new("L", (2, 2)))
