"""Where in an image the activation-guided queries come from (the paper's Figures I and II)."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from fastinst import ops
from fastinst.errors import InputError
from fastinst.figures.colour_map import colour_map
from fastinst.figures.observation import Observation, observe
from fastinst.predictor import Predictor
from fastinst.queries import ActivationGuidedQueries
from fastinst.results import Instances

_SUPERSAMPLING = 4  # dots are drawn on a picture this much larger, which makes their edges smooth
_DARK, _LIGHT = (24, 24, 27), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class QueryPoints:
    """The queries that lie in the image and not in its padding, the most probable first.

    places: [N, 2] float64 (x, y), 0 to 1 from the image's left and top edge to the others
    probabilities: [N] float64, of the best foreground class
    maxima: [N] bool, whether it is a local maximum among the pixels of its class
    chosen: how many queries there are with those in the padding
    """

    places: np.ndarray
    probabilities: np.ndarray
    maxima: np.ndarray
    chosen: int

    def __len__(self) -> int:
        return len(self.places)


def observe_queries(predictor: Predictor, image: np.ndarray) -> Observation:
    """The queries of an image uint8 [H, W, 3].

    Raises InputError for a model whose queries come from no pixels.
    """
    queries = predictor.network.queries
    if not isinstance(queries, ActivationGuidedQueries):
        raise InputError(
            f"{predictor.name} has learnt queries, which come from nowhere in an image"
        )
    return observe(predictor, queries, image)


def query_points(observed: Observation, num_queries: int, local_maximum_first: bool) -> QueryPoints:
    """What the model would choose with other settings than its own; the paper's N_a and Table III.

    A query is shown at the middle of its pixel of p4.

    observed: of `observe_queries`
    num_queries: at most as many as there are pixels
    """
    class_logits = observed.output.class_logits
    height, width = class_logits.shape[2:]
    nothing = class_logits.new_zeros(1, 1, height, width)
    _, _, (chosen,) = ops.select_queries(
        class_logits,
        nothing,
        nothing,
        min(num_queries, height * width),
        local_maximum_first,
    )
    probability, rank = (ops.activation_rank(class_logits, first)[0] for first in (False, True))
    chosen = chosen[probability[chosen].argsort(descending=True, stable=True)]
    probability, maximum = probability[chosen].double(), (rank > probability)[chosen]

    middles = torch.stack([chosen % width, chosen // width], dim=1).cpu().double() + 0.5
    stride = torch.tensor(observed.padded_size[::-1]) / torch.tensor([width, height])
    places = middles * stride / torch.tensor(observed.image_size[::-1])
    inside = (places < 1).all(dim=1).numpy()
    return QueryPoints(
        *(values.cpu().numpy()[inside] for values in (places, probability, maximum)), len(chosen)
    )


def draw_points(picture: np.ndarray, points: QueryPoints) -> np.ndarray:
    """Points over uint8 [H, W, 3], coloured by probability: discs at local maxima, else rings.

    The most probable are on top. Returns a new uint8 [H, W, 3].
    """
    height, width = picture.shape[:2]
    scale = _SUPERSAMPLING
    canvas = Image.fromarray(picture).resize((scale * width, scale * height), Image.NEAREST)
    draw = ImageDraw.Draw(canvas)
    radius = max(3.0, (height * width) ** 0.5 / 60) * scale
    colours = colour_map(points.probabilities)
    for i in reversed(range(len(points))):
        x, y = points.places[i] * (width, height) * scale
        draw_point(draw, (x, y), radius, tuple(colours[i].tolist()), points.maxima[i])
    return np.array(canvas.reduce(scale))


def draw_point(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    radius: float,
    colour: tuple[int, int, int],
    filled: bool,
) -> None:
    """A disc, or a ring, of a colour that is seen before anything: outlined in light and dark."""
    if filled:
        draw.circle(place, 1.45 * radius, _DARK)
        draw.circle(place, 1.3 * radius, _LIGHT)
        draw.circle(place, radius, colour)
    else:
        draw.circle(place, 1.45 * radius, outline=_DARK, width=round(0.2 * radius))
        draw.circle(place, 1.3 * radius, outline=_LIGHT, width=round(0.35 * radius))
        draw.circle(place, radius, outline=colour, width=round(0.55 * radius))


def on_objects(points: QueryPoints, objects: Instances) -> tuple[int, int]:
    """How many of the points lie on an object, and how many of the objects have a point on them."""
    height, width = objects.size
    columns, rows = (points.places * (width, height)).astype(int).T
    hits = objects.masks.numpy()[:, rows, columns]  # [objects, points]
    return int(hits.any(axis=0).sum()), int(hits.any(axis=1).sum())
