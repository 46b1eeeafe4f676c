"""Query points are shown where the queries come from, in the image and not in its padding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from predictor_cases import random_images, tiny_model

from fastinst.errors import InputError
from fastinst.figures.colour_map import colour_map
from fastinst.figures.observation import Observation, load_observable
from fastinst.figures.query_points import (
    QueryPoints,
    draw_points,
    observe_queries,
    on_objects,
    query_points,
)
from fastinst.results import Instances

# A photograph of 100 x 140, resized to 50 x 70 and padded to 64 x 96: p4 has 4 x 6 pixels.
PICTURE, RESIZED, PADDED = (100, 140), (50, 70), (64, 96)


def observed(*peaks, size=RESIZED):
    """Of two classes: their probability is 0.01, but at peaks (row, column, class, probability)."""
    probabilities = torch.full((1, 3, 4, 6), 0.005)
    for row, column, label, probability in peaks:
        probabilities[0, label, row, column] = probability
    probabilities[0, 2] = 1 - probabilities[0, :2].sum(0)
    queries = SimpleNamespace(class_logits=probabilities.log())
    return Observation((), queries, size, PADDED)


def pixels_of(points, size=RESIZED):
    """(row, column) of p4."""
    return [tuple((place[::-1] * size // 16).astype(int).tolist()) for place in points.places]


def test_a_point_is_at_the_middle_of_its_pixel():
    points = query_points(observed((1, 2, 0, 0.9), (2, 0, 1, 0.6)), 2, True)
    assert points.places == pytest.approx(np.array([[40 / 70, 24 / 50], [8 / 70, 40 / 50]]))
    assert points.probabilities == pytest.approx([0.9, 0.6], abs=1e-6)
    assert points.maxima.tolist() == [True, True]


def test_local_maxima_first_spreads_the_points():
    salient = [(1, 1, 0, 0.9), (1, 2, 0, 0.8), (2, 1, 0, 0.7), (2, 3, 0, 0.6)]
    seen = observed(*salient, (0, 3, 1, 0.5))
    without = query_points(seen, 4, False)
    assert pixels_of(without) == [(1, 1), (1, 2), (2, 1), (2, 3)]
    assert without.maxima.tolist() == [True, False, False, False]
    spread = query_points(seen, 2, True)
    assert pixels_of(spread) == [(1, 1), (0, 3)] and spread.maxima.all()


def test_points_in_the_padding_are_left_out_and_counted():
    seen = observed((1, 5, 0, 0.9), (3, 1, 0, 0.8), (0, 0, 0, 0.7))
    points = query_points(seen, 3, True)
    assert pixels_of(points) == [(0, 0)] and len(points) == 1 and points.chosen == 3
    assert len(query_points(observed(size=PADDED), 1000, True)) == 24


@pytest.mark.parametrize("local_maximum_first", [True, False])
def test_with_the_models_own_settings_they_are_the_models_own_queries(local_maximum_first):
    model = tiny_model(num_queries=7, local_maximum_first=local_maximum_first).eval()
    predictor = load_observable(model)
    image = random_images([(64, 96)])[0]
    points = query_points(observe_queries(predictor, image), 7, local_maximum_first)
    batch, _ = model.preprocess([predictor.resize(image)])
    with torch.no_grad():
        indices = model(batch)["query_indices"][0]
    shown = [row * 6 + column for row, column in pixels_of(points, (64, 96))]
    assert sorted(shown) == indices.tolist() and len(shown) == 7


def test_dots_are_drawn_at_their_places_in_the_original_image():
    points = query_points(observed((1, 2, 0, 0.9), (2, 0, 1, 0.6), (2, 1, 1, 0.5)), 3, False)
    grey = np.full((*PICTURE, 3), 100, np.uint8)
    picture = draw_points(grey, points)
    assert picture.shape == grey.shape and picture.dtype == np.uint8 and (grey == 100).all()
    # Twice as large as resized; p4's pixels are 32 x 32 here.
    assert np.abs(picture[48, 80].astype(int) - colour_map(0.9)).max() <= 3
    assert np.abs(picture[80, 16].astype(int) - colour_map(0.6)).max() <= 3
    assert (picture[80, 48] == 100).all()  # within the ring of what is no maximum
    ring = np.abs(picture[80, 40:57].astype(int) - colour_map(0.5)).sum(1)
    assert (ring < 30).sum() >= 2
    changed = (picture != 100).any(2)
    changed[42:55, 74:87] = changed[74:87, 10:23] = changed[74:87, 42:55] = False
    assert not changed.any()


def test_the_most_probable_is_on_top():
    places, maxima = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([True, True])
    points = QueryPoints(places, np.array([0.9, 0.2]), maxima, 2)
    picture = draw_points(np.zeros((50, 50, 3), np.uint8), points)
    assert (picture[25, 25] == colour_map(0.9)).all()


def test_points_on_objects():
    masks = torch.zeros(3, 100, 140, dtype=torch.bool)
    masks[0, 32:64, 64:96] = masks[1, 0:10, 0:10] = masks[2, 40:60, 70:90] = True
    objects = Instances.from_masks(torch.ones(3), torch.zeros(3, dtype=torch.int64), masks)
    points = query_points(observed((1, 2, 0, 0.9), (2, 0, 1, 0.6)), 2, True)
    assert on_objects(points, objects) == (1, 2)
    assert on_objects(points, objects[:0]) == (0, 0)


def test_queries_that_come_from_nowhere():
    predictor = load_observable(tiny_model(activation_guided=False, num_aux_queries=0))
    with pytest.raises(InputError, match="learnt queries"):
        observe_queries(predictor, random_images()[0])


def test_colours_lighten_evenly():
    colours = colour_map(np.linspace(0, 1, 256))
    assert colours.dtype == np.uint8 and len(np.unique(colours, axis=0)) > 240
    linear = (colours / 255) ** 2.2
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16  # CIE L*
    steps = np.diff(lightness[::15])
    assert lightness[0] < 10 and lightness[-1] > 90
    assert steps.min() > 0.6 * steps.mean() and steps.max() < 1.5 * steps.mean()
    assert (colour_map(np.array([[-1.0], [2.0]])) == colours[[[0], [255]]]).all()
