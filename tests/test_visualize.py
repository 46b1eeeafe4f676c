import json

import numpy as np
import pytest
import torch
from small_coco import write_coco

import fastinst.visualize as visualize
from fastinst.data.coco import load_coco
from fastinst.picture_labels import Labels
from fastinst.results import Instances
from fastinst.visualize import (
    BACKGROUND,
    fitted,
    framed,
    grid,
    ground_truth_instances,
    overlay,
    side_by_side,
    text_line,
)

NAMES = ("cat", "dog")


def instances(boxes, height, width, labels=None, scores=None):
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Instances.from_masks(
        torch.linspace(0.9, 0.1, len(boxes)) if scores is None else torch.tensor(scores),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        masks,
    )


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


@pytest.fixture
def label_places(monkeypatch):
    """Where overlay writes its labels, and what."""
    places, texts = [], {}

    class Watched(Labels):
        def add(self, text, *arguments, **options):
            count = len(self._added)
            super().add(text, *arguments, **options)
            texts.update({id(label): text for label, *_ in self._added[count:]})

        def placed(self):
            for label, place in super().placed():
                places.append((texts[id(label)], place))
                yield label, place

    monkeypatch.setattr(visualize, "Labels", Watched)
    return places


def test_a_mask_is_tinted_its_surroundings_and_the_input_are_not():
    image = grey(200, 300)
    found = instances([(100, 60, 220, 160)], 200, 300)
    picture = overlay(image, found, NAMES)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (image == 128).all()
    changed = (picture != 128).any(2)
    assert changed[62:158, 102:218].all()
    changed[56:164, 96:224] = False
    assert not changed.any()


def test_the_contour_is_stronger_than_the_fill_and_fades_smoothly():
    picture = overlay(grey(200, 300), instances([(100, 40, 220, 160)], 200, 300), NAMES)
    difference = np.abs(picture[150].astype(int) - 128).sum(1)
    inside, edge = difference[115], difference[100]
    assert edge > 1.5 * inside > 0
    rising = difference[95:100]
    assert (np.diff(rising) >= 0).all() and len(set(rising.tolist())) >= 3


def test_a_mask_of_one_pixel_is_visible_even_in_a_huge_image():
    found = instances([(1000, 700, 1001, 701)], 1500, 2000)
    picture = overlay(grey(1500, 2000), found, NAMES, show_scores=False)
    patch = picture[698:703, 998:1003].astype(int) - 128
    assert (np.abs(patch).sum(2) > 60).sum() >= 9


def test_small_instances_are_drawn_over_large_ones():
    boxes = [(20, 20, 40, 40), (0, 0, 200, 200)]
    both = overlay(grey(200, 200), instances(boxes, 200, 200), ("only",), show_scores=False)
    large = overlay(grey(200, 200), instances(boxes[1:], 200, 200), ("only",), show_scores=False)
    flipped = instances(boxes[::-1], 200, 200)
    other = overlay(grey(200, 200), flipped, ("only",), show_scores=False)
    for picture in (both, other):
        corner, middle = picture[180, 180].astype(int), picture[20, 30].astype(int)
        assert np.abs(corner - middle).sum() > 100
    assert (large[180, 180] != 128).any()


def test_neighbouring_colours_differ():
    colours = np.array([visualize.colour(i) for i in range(100)])
    assert len(np.unique(colours, axis=0)) == 100
    assert min(np.abs(a - b).sum() for a, b in zip(colours, colours[1:], strict=False)) > 120


@pytest.mark.parametrize("size, count", [((120, 160), 8), ((240, 320), 60), ((1000, 1400), 60)])
def test_labels_do_not_collide_and_stay_inside(label_places, size, count):
    rng = np.random.default_rng(0)
    height, width = size
    lefts, tops = rng.integers(0, width - 8, count), rng.integers(0, height - 8, count)
    boxes = [
        (x, y, int(rng.integers(x + 1, width + 1)), int(rng.integers(y + 1, height + 1)))
        for x, y in zip(lefts.tolist(), tops.tolist(), strict=True)
    ]
    overlay(grey(*size), instances(boxes, *size), NAMES)
    assert label_places
    for i, (_, (left, top, right, bottom)) in enumerate(label_places):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        for _, other in label_places[:i]:
            assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom


def test_the_best_instance_gets_its_label_first(label_places):
    boxes = [(10, 30, 70, 58)] * 20
    overlay(grey(60, 80), instances(boxes, 60, 80), NAMES)
    assert label_places[0][0] == "cat 0.90" and len(label_places) < 20


def test_a_label_touches_its_small_instance_without_hiding_it(label_places):
    for x, y in [(0, 0), (310, 0), (0, 230), (310, 230), (150, 0), (0, 100), (150, 100)]:
        label_places.clear()
        overlay(grey(240, 320), instances([(x, y, x + 10, y + 10)], 240, 320), NAMES)
        ((_, (left, top, right, bottom)),) = label_places
        assert left <= x + 10 and right >= x and top <= y + 10 and bottom >= y
        assert right == x or left == x + 10 or bottom == y or top == y + 10


def test_labels_do_not_hide_small_instances(label_places):
    rng = np.random.default_rng(0)
    corners = [(x + int(rng.integers(8)), y) for y in range(4, 220, 18) for x in range(4, 300, 20)]
    small = [(x, y, x + 10, y + 10) for x, y in corners]
    found = instances([*small, (0, 0, 320, 240)], 240, 320)
    overlay(grey(240, 320), found, NAMES)
    covered = found.masks[:-1].any(0)
    for _, (left, top, right, bottom) in label_places:
        assert covered[top:bottom, left:right].float().mean() <= 0.1


def test_class_colours_do_not_depend_on_what_else_is_there():
    image, options = grey(200, 300), {"show_scores": False, "colour_classes": True}
    boxes = [(10, 10, 90, 90), (110, 10, 190, 90), (210, 10, 290, 90)]
    three = overlay(image, instances(boxes, 200, 300, labels=[0, 1, 1]), ("only",), **options)
    alone = overlay(image, instances(boxes[2:], 200, 300, labels=[1]), ("only",), **options)
    assert (three[20:80, 120:180] == three[20:80, 220:280]).all()
    assert (three[20:80, 220:280] == alone[20:80, 220:280]).all()
    assert (three[20:80, 20:80] != three[20:80, 120:180]).any()


def test_masks_are_read_at_any_place():
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((1, 40, 101)) < 0.5)
    found = Instances.from_masks(torch.ones(1), torch.zeros(1, dtype=torch.int64), masks)
    for _ in range(50):
        left, right = sorted(rng.integers(0, 102, 2).tolist())
        top, bottom = sorted(rng.integers(0, 41, 2).tolist())
        if left < right and top < bottom:
            window = visualize._mask_window(found, 0, (left, top, right, bottom))
            assert (window == masks[0, top:bottom, left:right].numpy()).all()


def test_a_label_lies_on_its_large_instance(label_places):
    masks = torch.ones(1, 200, 300, dtype=torch.bool)
    masks[0, :150, :220] = False  # an L whose box starts outside of it
    found = Instances.from_masks(torch.tensor([0.9]), torch.tensor([0]), masks)
    overlay(grey(200, 300), found, NAMES)
    ((_, (left, top, right, bottom)),) = label_places
    assert found.masks[0, (top + bottom) // 2, (left + right) // 2]


def test_what_labels_say(label_places):
    found = instances([(50, 50, 80, 80)], 200, 300, labels=[1], scores=[0.926])
    overlay(grey(200, 300), found, NAMES)
    overlay(grey(200, 300), found, NAMES, show_scores=False)
    found.labels[0] = 0
    overlay(grey(200, 300), found, ("only",))
    overlay(grey(200, 300), found, ("only",), show_scores=False)
    assert [text for text, _ in label_places] == ["dog 0.93", "dog", "0.93"]


def test_nothing_to_draw_leaves_the_image(label_places):
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert (overlay(image, instances([], 50, 60), NAMES) == image).all()
    assert (overlay(image, instances([(0, 0, 0, 0)], 50, 60), NAMES) == image).all()
    assert label_places == []


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (5, 7)])
def test_tiny_and_thin_images(size):
    height, width = size
    picture = overlay(grey(*size), instances([(0, 0, width, height)], *size), NAMES)
    assert picture.shape == (*size, 3) and (picture != 128).any()
    assert side_by_side(picture, picture, ("a", "b")).shape[0] > height


def test_side_by_side_holds_both_pictures_and_titles():
    left, right = grey(100, 150), np.full((80, 90, 3), 200, np.uint8)
    picture = side_by_side(left, right, ("ground truth", "prediction"))
    assert (picture == 128).all(2).sum() >= left[..., 0].size
    assert (picture == 200).all(2).sum() >= right[..., 0].size
    titles = picture[:20]
    assert (titles[:, :150] > 200).any() and (titles[:, 150:] > 200).any()


def test_grid_puts_pictures_in_rows():
    pictures = [np.full((10 + i, 20 + i, 3), 50 + i, np.uint8) for i in range(5)]
    picture = grid(pictures, columns=2)
    for i, part in enumerate(pictures):
        ys, xs = np.nonzero((picture == 50 + i).all(2))
        assert len(ys) == part[..., 0].size
        assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == part.shape[:2]
        assert (ys.mean() > picture.shape[0] / 3) == (i >= 2)
        assert (xs.mean() > picture.shape[1] / 2) == (i % 2 == 1)
    assert grid(pictures[:1], columns=3).shape == (10, 20, 3)


@pytest.mark.parametrize("edge", [300, 30])
def test_an_image_and_its_instances_are_scaled_alike(edge):
    found = instances([(20, 10, 60, 40), (0, 0, 100, 60)], 60, 100, labels=[1, 0])
    image = grey(60, 100)
    image[10:40, 20:60] = 200
    pixels, scaled = fitted(image, found, edge)
    assert pixels.shape == (edge * 6 // 10, edge, 3) and scaled.size == pixels.shape[:2]
    assert torch.equal(scaled.scores, found.scores) and torch.equal(scaled.labels, found.labels)
    assert scaled.boxes.tolist() == (found.boxes * edge / 100).tolist()
    assert ((pixels[..., 0] > 164) == scaled.masks[0].numpy()).all() and scaled.masks[1].all()
    empty = fitted(image, found[:0], edge)[1]
    assert len(empty) == 0 and empty.size == pixels.shape[:2]


def test_a_frame_and_a_line_of_text():
    picture = framed(grey(10, 20), 3)
    assert picture.shape == (16, 26, 3) and (picture[3:-3, 3:-3] == 128).all()
    assert (picture != 128).any(2).sum() == 16 * 26 - 10 * 20
    line, cut = text_line("words", 200, 15, 20), text_line("words " * 20, 200, 15, 20)
    assert line.shape == cut.shape == (20, 200, 3)
    assert (line[:, 100:] == BACKGROUND).all() and (cut[:, 150:] != BACKGROUND).any()


def test_ground_truth_instances_leave_crowds_out(tmp_path):
    path = write_coco(tmp_path, [[(0, 0, 0, 32, 32), (2, 48, 8, 80, 32)], []])
    content = json.loads(path.read_text())
    crowd = {**content["annotations"][0], "id": 9, "iscrowd": 1}
    content["annotations"].append(crowd)
    path.write_text(json.dumps(content))
    first, second = load_coco(path, tmp_path / "val").images
    found = ground_truth_instances(first)
    assert found.labels.tolist() == [0, 2] and found.scores.tolist() == [1, 1]
    assert found.boxes.tolist() == [[0, 0, 32, 32], [48, 8, 80, 32]]
    assert found.masks[1, 8:32, 48:80].all() and found.masks[1].sum() == 24 * 32
    empty = ground_truth_instances(second)
    assert len(empty) == 0 and empty.masks.shape == (0, 64, 96) and empty.boxes.shape == (0, 4)


def test_masks_are_never_unpacked_all_at_once(monkeypatch, tmp_path):
    path = write_coco(tmp_path, [[(0, 0, 0, 32, 32), (2, 48, 8, 80, 32)]])
    (record,) = load_coco(path, tmp_path / "val").images
    monkeypatch.setattr(Instances, "masks", property(lambda self: pytest.fail("unpacked")))
    picture = overlay(grey(64, 96), ground_truth_instances(record), ("a", "b", "c"))
    assert (picture[2:30, 2:30] != 128).any()
