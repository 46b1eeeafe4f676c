"""The classes that predictions are written and drawn with."""

from typing import NamedTuple

from fastinst.data.dataset import Dataset, names_of
from fastinst.predictor import Predictor


class Classes(NamedTuple):
    """names, category_ids, is_thing: by label"""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    is_thing: tuple[bool, ...]

    @classmethod
    def of(cls, predictor: Predictor, truth: Dataset | None) -> "Classes":
        """The model's, or for one that has none the ground truth's if it has as many, else numbers.

        A model that does not tell things from stuff has things.
        """
        count = predictor.config.num_classes
        is_thing = predictor.is_thing or (True,) * count
        numbers = tuple(range(1, count + 1))
        if predictor.class_names is not None:
            return cls(predictor.class_names, predictor.category_ids or numbers, is_thing)
        if truth and len(truth.class_names) == count:
            return cls(
                truth.class_names, truth.category_ids, predictor.is_thing or things_of(truth)
            )
        return cls(tuple(names_of(range(count), None)), numbers, is_thing)


def things_of(dataset: Dataset) -> tuple[bool, ...]:
    """By label, whether a data set's classes are things: all are where nothing else is said."""
    return dataset.is_thing or (True,) * len(dataset.class_names)
