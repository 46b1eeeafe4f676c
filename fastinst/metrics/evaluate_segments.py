"""A model's panoptic or semantic segmentation of a data set, compared with its annotations."""

from collections.abc import Callable
from contextlib import closing

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.images import quiet_pillow, read_image
from fastinst.errors import InputError
from fastinst.metrics.classes import match_classes
from fastinst.metrics.panoptic_quality import PanopticQuality
from fastinst.metrics.semantic import SemanticEvaluator
from fastinst.panoptic import panoptic, semantic
from fastinst.predictor import Predictor
from fastinst.preprocess import preprocess
from fastinst.segments import VOID_LABEL, SegmentMap
from fastinst.streaming import read_ahead

Keep = Callable[[ImageRecord, SegmentMap | Tensor], None]


def evaluate_segments(
    predictor: Predictor,
    dataset: Dataset,
    task: str,
    *,
    keep: Keep | None = None,
    max_images: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> PanopticQuality | SemanticEvaluator:
    """Run a model over a data set, one image at a time.

    dataset: with things and stuff; for "semantic" it may have any annotations, of which a pixel
        has the class of the last that covers it
    task: "panoptic" or "semantic"
    keep: called with each image and its SegmentMap or, for "semantic", [H, W] labels: to write
        them, say
    max_images: only the first so many images
    workers: threads that read and resize images
    Under torch.distributed every process calls this and does its share of the images; the
    evaluator of rank 0 then has counted all images, each other one only its own.
    Raises InputError for an image that cannot be read, classes that the model does not know, and
    a data set that does not tell things from stuff.
    """
    if task == "panoptic" and dataset.is_thing is None:
        raise InputError(
            f"{dataset.source} does not tell things from stuff, as panoptic quality needs: COCO "
            "panoptic annotations and Cityscapes do"
        )
    labels = match_classes(predictor.class_names, predictor.config.num_classes, dataset)
    if task == "panoptic":
        evaluator = PanopticQuality(dataset.class_names, dataset.is_thing)
    else:
        evaluator = SemanticEvaluator(dataset.class_names)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = dataset.images[:max_images][rank::world]

    def read(record: ImageRecord) -> tuple[ImageRecord, Tensor]:
        size = (record.height, record.width)
        return record, predictor.resize(read_image(record.path, size))

    ahead = read_ahead(share, read, 2 * max(1, workers), max(1, workers))
    disable = not progress or rank > 0
    with quiet_pillow(), closing(ahead), torch.inference_mode():
        for record, image in tqdm(ahead, "evaluate", len(share), disable=disable):
            batch, sizes = preprocess([image], predictor.config, predictor.device, predictor.dtype)
            outputs = predictor.network(batch), sizes, [(record.height, record.width)]
            truth = SegmentMap.of(record)
            if task == "panoptic":
                found = _segments(outputs, labels, dataset.is_thing)
                evaluator.update(truth, found)
            else:
                found = _labels(outputs, labels)
                evaluator.update(truth.labels(), found)
            if keep is not None:
                keep(record, found)
    evaluator.gather()
    return evaluator


def _segments(outputs: tuple, labels: Tensor, is_thing: tuple[bool, ...]) -> SegmentMap:
    """labels: the data set's for each of the model's, -1 for none, which is void"""
    things = [label < 0 or is_thing[label] for label in labels.tolist()]
    (found,) = panoptic(*outputs, things)
    return found.relabelled(labels.tolist())


def _labels(outputs: tuple, labels: Tensor) -> Tensor:
    """[H, W] uint8 labels of the data set; VOID_LABEL where a class that it lacks is the best."""
    (scores,) = semantic(*outputs)
    table = torch.where(labels < 0, VOID_LABEL, labels).to(scores.device, torch.uint8)
    return table[scores.argmax(0)]
