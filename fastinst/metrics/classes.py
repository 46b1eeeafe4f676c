"""Which of a data set's classes each class of a model is."""

import torch
from torch import Tensor

from fastinst.data.dataset import Dataset
from fastinst.errors import InputError


def match_classes(
    class_names: tuple[str, ...] | None, num_classes: int, dataset: Dataset
) -> Tensor:
    """Which of the data set's labels each of a model's labels is.

    class_names: the model's classes in the order of its labels, or None where they are unknown;
        then the model must have as many classes as the data set, in the data set's order
    Returns [num_classes] int64, -1 for a class that the data set does not have.
    Raises InputError if the data set has a class that the model does not know.
    """
    if class_names is None:
        if num_classes != len(dataset.class_names):
            raise InputError(
                f"the model has {num_classes} classes, {dataset.source} has "
                f"{len(dataset.class_names)}; evaluate a checkpoint trained on this data"
            )
        return torch.arange(num_classes)
    unknown = [name for name in dataset.class_names if name not in class_names]
    if unknown:
        raise InputError(
            f"the model does not know {len(unknown)} of the {len(dataset.class_names)} classes of "
            f"{dataset.source}: {', '.join(unknown)} (it knows {', '.join(class_names)})"
        )
    labels = {name: label for label, name in enumerate(dataset.class_names)}
    return torch.tensor([labels.get(name, -1) for name in class_names])
