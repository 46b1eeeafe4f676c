"""What a Predictor makes of a model's outputs, for each task."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastinst.data.dataset import TASKS
from fastinst.errors import InputError
from fastinst.panoptic import panoptic, semantic
from fastinst.results import Instances, postprocess
from fastinst.segments import Segment, SegmentMap

Found = Instances | SegmentMap
Size = tuple[int, int]
# outputs, image sizes, output sizes and a threshold, as `postprocess` and `panoptic` take them
ReadOut = Callable[[dict[str, Tensor], list[Size], list[Size], float], list[Found]]

# The lowest scores that are kept, unless something else is asked for.
THRESHOLDS = {"instance": 0.0, "panoptic": 0.8, "semantic": 0.0}


def make_read_out(
    task: str,
    class_names: tuple[str, ...] | None,
    is_thing: Sequence[bool] | None,
    max_instances: int,
) -> ReadOut:
    """The read-out of a task: Instances for "instance", a SegmentMap for the others.

    class_names, is_thing: by label; without the latter all classes are things
    max_instances: of `postprocess`
    Raises InputError for an unknown task.
    """
    if task == "instance":
        return lambda outputs, image_sizes, sizes, threshold: postprocess(
            outputs, image_sizes, sizes, max_instances, threshold, class_names
        )
    if task == "panoptic":
        return partial(_panoptic, class_names, is_thing)
    if task == "semantic":
        return partial(_semantic, class_names)
    raise InputError(f"a task is one of {', '.join(TASKS)}, not {task!r}")


def _panoptic(class_names, is_thing, outputs, image_sizes, sizes, threshold) -> list[SegmentMap]:
    things = is_thing or (True,) * (outputs["pred_logits"].shape[2] - 1)
    maps = panoptic(outputs, image_sizes, sizes, things, threshold)
    return [replace(found, class_names=class_names) for found in maps]


def _semantic(class_names, outputs, image_sizes, sizes, threshold) -> list[SegmentMap]:
    """Every pixel has the class there is most of: there is no threshold."""
    results = []
    for scores in semantic(outputs, image_sizes, sizes):
        ids = 1 + scores.argmax(0).to(torch.int32)
        segments = tuple(Segment(id_, id_ - 1) for id_ in ids.unique().tolist())
        results.append(SegmentMap(ids, segments, class_names))
    return results
