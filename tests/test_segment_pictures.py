"""Pictures of segments."""

import numpy as np
import pytest
import torch
from test_visualize import grey, label_places  # noqa: F401, a fixture

from fastinst import segment_pictures, visualize
from fastinst.segment_pictures import calm_colour, overlay_segments
from fastinst.segments import Segment, SegmentMap
from fastinst.visualize import colour

NAMES, IS_THING = ("sky", "car", "road"), (False, True, False)


def street(height=240, width=320):
    """Sky, void in the middle, road at the bottom, two cars side by side on it."""
    ids = torch.zeros(height, width, dtype=torch.int32)
    ids[: height // 3], ids[height // 2 :] = 1, 2
    ids[-height // 3 :, 40 : width // 2], ids[-height // 3 :, width // 2 : -40] = 3, 4
    segments = (Segment(1, 0), Segment(2, 2), Segment(3, 1, score=0.81), Segment(4, 1, score=0.95))
    return SegmentMap(ids, segments)


@pytest.fixture
def segment_label_places(label_places, monkeypatch):  # noqa: F811
    """Where the labels are, and what they say."""
    monkeypatch.setattr(segment_pictures, "Labels", visualize.Labels)
    return label_places


def test_areas_are_tinted_and_void_is_as_it_was(segment_label_places):
    image = grey(240, 320)
    picture = overlay_segments(image, street(), NAMES, IS_THING)
    assert picture.shape == image.shape and picture.dtype == np.uint8 and (image == 128).all()
    assert (picture[90:110] == 128).all()
    sky, road = picture[5, 5].astype(int), picture[235, 5].astype(int)
    first, second = picture[235, 60].astype(int), picture[235, 260].astype(int)
    for one, other in ((sky, road), (first, second), (road, first), (sky, [128] * 3)):
        assert np.abs(one - other).sum() > 40


def test_neighbours_of_one_class_have_a_line_between_them(segment_label_places):
    options = {"show_scores": False, "colour_classes": True}
    picture = overlay_segments(grey(240, 320), street(), NAMES, IS_THING, **options)
    row = picture[238].astype(int)
    assert (row[130] == row[190]).all()  # one colour, that of the class
    line = row[155:165].sum(1)
    assert line.max() - row[130].sum() > 150 and len(set(line.tolist())) >= 3  # fades to both sides
    assert (line == line[::-1]).all()


def test_stuff_has_the_colour_of_its_class_whatever_else_is_there(segment_label_places):
    only_sky = SegmentMap(torch.full((240, 320), 9, dtype=torch.int32), (Segment(9, 0),))
    alone = overlay_segments(grey(240, 320), only_sky, NAMES, IS_THING)
    among = overlay_segments(grey(240, 320), street(), NAMES, IS_THING)
    assert (alone[5, 5] == among[5, 5]).all()


def test_calm_colours_are_paler_than_those_of_things():
    def saturation(rgb):
        return 1 - min(rgb) / max(rgb)

    calm = [calm_colour(label) for label in range(60)]
    assert len(set(calm)) == 60
    assert max(map(saturation, calm)) < min(saturation(colour(i)) for i in range(60))


def test_what_labels_say(segment_label_places):
    overlay_segments(grey(240, 320), street(), NAMES, IS_THING)
    assert [text for text, _ in segment_label_places] == ["car 0.95", "car 0.81", "sky", "road"]
    segment_label_places.clear()
    overlay_segments(grey(240, 320), street(), NAMES, IS_THING, show_scores=False)
    assert [text for text, _ in segment_label_places] == ["car", "car", "sky", "road"]


def test_labels_lie_on_their_segments_and_do_not_collide(segment_label_places):
    found = street()
    overlay_segments(grey(240, 320), found, NAMES, IS_THING)
    by_label = dict(zip(("car 0.95", "car 0.81", "sky", "road"), (4, 3, 1, 2), strict=True))
    for i, (text, (left, top, right, bottom)) in enumerate(segment_label_places):
        assert found.ids[(top + bottom) // 2, (left + right) // 2] == by_label[text]
        for _, other in segment_label_places[:i]:
            assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom


def test_scattered_stuff_is_named_once_where_it_is_largest(segment_label_places):
    ids = torch.ones(200, 300, dtype=torch.int32)
    ids[:, 100:] = 2
    ids[20:40, 20:40] = 2
    segments = (Segment(1, 0), Segment(2, 2))
    overlay_segments(grey(200, 300), SegmentMap(ids, segments), NAMES, IS_THING)
    (place,) = [place for text, place in segment_label_places if text == "road"]
    assert place[0] >= 100


def test_stuff_too_thin_for_its_name_has_none(segment_label_places):
    """A label lies on it or nowhere: beside it one would name something else."""
    ids = torch.full((200, 300), 2, dtype=torch.int32)
    ids[20:180, 20:280], ids[24:176, 24:276] = 1, 2
    overlay_segments(
        grey(200, 300), SegmentMap(ids, (Segment(1, 0), Segment(2, 2))), NAMES, IS_THING
    )
    assert [text for text, _ in segment_label_places] == ["road"]


def test_stuff_without_room_for_its_name_has_none(segment_label_places):
    ids = torch.zeros(200, 300, dtype=torch.int32)
    ids[100:108, 100:108] = 1
    for is_thing, count in ((IS_THING, 0), ((True,) * 3, 1)):
        segment_label_places.clear()
        overlay_segments(grey(200, 300), SegmentMap(ids, (Segment(1, 0),)), NAMES, is_thing)
        assert len(segment_label_places) == count


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5)])
def test_any_image(size):
    image = grey(*size)
    nothing = SegmentMap(torch.zeros(size, dtype=torch.int32), ())
    assert (overlay_segments(image, nothing, NAMES, IS_THING) == image).all()
    # A segment that is listed and has no pixel, as ground truth may have.
    all_of_it = SegmentMap(torch.full(size, 3, dtype=torch.int32), (Segment(3, 1), Segment(5, 0)))
    assert (overlay_segments(image, all_of_it, NAMES, IS_THING) != image).any()
