"""The contact sheet shows the samples of training, whatever their sizes."""

import numpy as np
import pytest
from small_coco import NAMES, write_coco

from fastinst.data.augment import Augmentation
from fastinst.data.coco import load_coco
from fastinst.data.loader import TrainingImages
from fastinst.examination.contact_sheet import CELL, MARGIN, contact_sheet
from fastinst.visualize import BACKGROUND

STILL = Augmentation(short_edges=(64,), max_edge=96, crop_probability=0.0, flip_probability=0.0)


def images(folder, count):
    path = write_coco(folder, [[(i % 3, 16, 8, 80, 56)] for i in range(count)])
    return TrainingImages(load_coco(path, folder / "val"), STILL, seed=0)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (20, 4, 3)])
def test_as_many_pictures_as_there_are_up_to_twelve(tmp_path, count, columns, rows):
    sheet = contact_sheet(images(tmp_path, count), NAMES)
    assert sheet.dtype == np.uint8
    assert columns * CELL < sheet.shape[1] < columns * (CELL + 10) + 2 * MARGIN
    assert rows * CELL * 2 / 3 < sheet.shape[0] < rows * CELL
    assert (sheet[:MARGIN] == BACKGROUND).all() and (sheet[:, -MARGIN:] == BACKGROUND).all()


def test_masks_are_painted_on_their_objects(tmp_path):
    sheet = contact_sheet(images(tmp_path, 1), NAMES)
    picture = sheet[-MARGIN - CELL * 2 // 3 : -MARGIN, MARGIN:-MARGIN]
    assert picture.shape[1] == CELL
    scale = CELL / 96
    inside = picture[round(15 * scale) : round(20 * scale), round(25 * scale) : round(70 * scale)]
    outside = picture[: round(4 * scale)]
    assert (outside == 0).all()  # black, as the image
    assert (inside[..., 2] > 50).all()  # the first colour is blue, the object red
    assert (inside[..., 0] > 100).all()


def test_a_view_of_which_all_objects_were_cropped_away(tmp_path):
    path = write_coco(tmp_path, [[(0, 0, 0, 8, 8)]])
    corner = Augmentation(crop_probability=1.0, crop_resize=(64,), crop_range=(16, 16))
    views = TrainingImages(load_coco(path, tmp_path / "val"), corner, seed=0)
    assert len(views[0, 0]["target"]["labels"]) == 0
    assert contact_sheet(views, NAMES).shape[1] == CELL + 2 * MARGIN
