"""A model's results on a data set, compared with its annotations while they come."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.images import quiet_pillow, read_image
from fastinst.metrics.classes import match_classes
from fastinst.metrics.coco import CocoEvaluator
from fastinst.predictor import Predictor
from fastinst.results import Instances

# Of an image's masks, as bits. From there on the next are not made before these are encoded.
LARGE_BYTES = 1 << 25


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    labels: Tensor | None = None,
    keep: Callable[[ImageRecord, Instances], None] | None = None,
    metrics: Sequence[str] = ("mask",),
    keep_results: bool = True,
    max_images: int | None = None,
    batch_size: int = 1,
    workers: int = 2,
    progress: bool = True,
) -> CocoEvaluator:
    """Run a model over a data set and compare what it finds with the annotations.

    While the network has one image, threads read the next ones, and another thread encodes and
    compares the results of the last one.

    labels: from match_classes, or None to match the predictor's class names
    keep: called with each image and its instances, to write them, say
    metrics, keep_results: of the `CocoEvaluator`
    max_images: only the first so many images
    batch_size: of `Predictor.stream`
    workers: threads that read and resize images
    Under torch.distributed every process calls this and does its share of the images; the
    evaluator of rank 0 then holds all results, each other one only its own.
    Raises InputError for an image that cannot be read; KeyboardInterrupt says how far it got.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if labels is None:
        labels = match_classes(predictor.class_names, predictor.config.num_classes, dataset)
    records = dataset.images[:max_images]
    evaluator = CocoEvaluator(dataset, [record.id for record in records], metrics, keep_results)
    share = records[rank::world]

    def compare(record: ImageRecord, found: Instances) -> None:
        found.labels = labels[found.labels]
        known = found.labels >= 0
        # Choosing copies, and the masks of a photograph take a hundred megabytes.
        found = found if known.all() else found[known]
        evaluator.update(record.id, found)
        if keep is not None:
            keep(record, found)

    reads = [partial(read_image, r.path, (r.height, r.width)) for r in share]
    pending: Future | None = None
    done = 0
    with (
        quiet_pillow(),
        ThreadPoolExecutor(1) as comparing,
        closing(predictor.stream(reads, batch_size, readers=max(1, workers))) as stream,
        tqdm(total=len(share), desc="evaluate", disable=not progress or rank > 0) as bar,
    ):
        try:
            for record in share:
                found = next(stream)
                if pending is not None:
                    pending.result()
                large = found.packed.nbytes >= LARGE_BYTES
                pending = comparing.submit(compare, record, found)
                del found
                if large:
                    pending.result()
                done += 1
                bar.update()
            if pending is not None:
                pending.result()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"after {done} of {len(share)} images") from None
    evaluator.gather()
    return evaluator
