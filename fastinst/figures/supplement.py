"""The figures of the paper's supplement, each of models and images, as uint8 [H, W, 3]."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastinst.data.dataset import Dataset
from fastinst.errors import InputError
from fastinst.figures.attention_maps import auxiliary_attention, concentration, draw_attention
from fastinst.figures.query_points import draw_points, observe_queries, on_objects, query_points
from fastinst.figures.sheet import Cell, legend, sheet
from fastinst.figures.shown import Shown
from fastinst.metrics.evaluate import evaluate
from fastinst.metrics.gallery import draw_gallery
from fastinst.predictor import Predictor
from fastinst.results import Instances
from fastinst.visualize import fitted, overlay

FAILURES = ("twice", "parts", "false", "missed")  # of metrics.mistakes.KINDS


class Choice(NamedTuple):
    """A model of `load_observable`, and how its queries are chosen; see `query_points`."""

    title: str
    predictor: Predictor
    num_queries: int
    local_maximum_first: bool


def query_figure(choices: Sequence[Choice], images: Iterable[Shown]) -> np.ndarray:
    """Where queries come from: a column for each choice, and the ground truth (I, II).

    Raises InputError for a model whose queries come from no pixels.
    """
    cells = []
    for shown in images:
        seen = {
            predictor: observe_queries(predictor, shown.image)
            for predictor in {choice.predictor for choice in choices}
        }
        for _, predictor, num_queries, local_maximum_first in choices:
            points = query_points(seen[predictor], num_queries, local_maximum_first)
            caption = f"{points.chosen} queries"
            if shown.record:
                on, met = on_objects(points, shown.objects)
                caption = f"{on} of {points.chosen} on {met} of {len(shown.objects)} objects"
            if outside := points.chosen - len(points):
                caption += f", {outside} in padding"
            cells.append(Cell(draw_points(shown.picture, points), caption))
        cells.append(shown.cell())
    headings = [*(choice.title for choice in choices), shown.heading]
    return sheet(cells, headings, legend("probability of the best class", ("0", "1"), marks=True))


def attention_figure(
    predictor: Predictor,
    images: Iterable[Shown],
    numbers: Sequence[int] | None = None,
    by_head: bool = False,
) -> np.ndarray:
    """What auxiliary queries attend to in the last layer, beside the ground truth (III).

    predictor: of `load_observable`
    numbers: of the queries, from 1; None for all
    by_head: a column for each head instead of one for their mean
    Raises InputError for a model without auxiliary queries, or without one of that number.
    """
    known = range(1, predictor.config.num_aux_queries + 1)
    for number in numbers or ():
        if number not in known:
            raise InputError(f"there is no query {number}: {predictor.name} has {len(known)}")
    cells = []
    for shown in images:
        weights, image_part = auxiliary_attention(predictor, shown.image)
        maps = {}
        for number in numbers or known:
            of_heads = weights[:, number - 1]
            if by_head:
                maps |= {f"query {number}, head {i}": x for i, x in enumerate(of_heads, start=1)}
            else:
                maps[f"query {number}"] = of_heads.mean(dim=0)
        cells.append(shown.cell())
        for x in maps.values():
            picture = draw_attention(shown.picture, x, image_part)
            largest = concentration(x, image_part)
            cells.append(Cell(picture, f"up to {largest:.1f} times the mean"))
    return sheet(cells, [shown.heading, *maps], legend("attention", ("none", "the most here")))


def prediction_figure(
    predictor: Predictor, dataset: Dataset, images: Sequence[Shown], pairs: int = 2
) -> np.ndarray:
    """Ground truth beside prediction, so many pairs in a row (IV, V).

    predictor: with the threshold of what is shown
    images: of the data set, all of one size
    Raises InputError for a data set with classes that the model does not know.
    """
    found: dict[int, Instances] = {}
    evaluate(
        predictor,
        replace(dataset, images=tuple(shown.record for shown in images)),
        keep=lambda record, instances: found.update({record.id: instances}),
    )
    cells = []
    for shown in images:
        edge = max(shown.objects.size)
        _, instances = fitted(shown.image, found[shown.record.id], edge)
        picture = overlay(shown.picture, instances, dataset.class_names)
        cells += [shown.cell(), Cell(picture, f"{len(instances)} found")]
    return sheet(cells, ["ground truth", "prediction"] * min(pairs, len(images)))


def failure_figure(
    predictor: Predictor,
    dataset: Dataset,
    threshold: float = 0.5,
    max_images: int | None = None,
) -> np.ndarray:
    """The worst duplicates, objects found in parts, false positives and negatives (VI).

    threshold: results that score less count as not found
    max_images: only the first so many
    Raises InputError as `evaluate` does.
    """
    evaluator = evaluate(predictor, dataset, max_images=max_images)
    return draw_gallery(dataset, evaluator.results_by_image(), FAILURES, threshold)
