"""COCO mask AP, computed by pycocotools, from instances that are kept as run-length codes."""

import contextlib
import io
import math

import torch
import torch.distributed as dist
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from fastinst.data.dataset import Dataset
from fastinst.data.loader import EvaluationImages
from fastinst.data.workers import read_batches, start_worker
from fastinst.errors import InputError
from fastinst.ops import encode_masks
from fastinst.results import Instances, postprocess

# The name of each number that we show, and where COCOeval.stats holds it.
STATISTICS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


def coco_results(image_id: int, instances: Instances, category_ids: tuple[int, ...]) -> list[dict]:
    """The instances of one image in the COCO results format, ready for JSON.

    Instances with an empty mask are left out: their score is 0, so they come after everything
    else, match nothing, and change no AP or AR.
    No "bbox": with one, pycocotools would sort results into small, medium and large by the area
    of the box instead of that of the mask.
    """
    codes = encode_masks(instances.masks)
    rows = zip(instances.scores.tolist(), instances.labels.tolist(), codes, strict=True)
    results = []
    for score, label, code in rows:
        if rle.area(code) > 0:
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_ids[label],
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                    "score": score,
                }
            )
    return results


class CocoEvaluator:
    """Collects the results of a data set's images and computes their AP.

    Between updates it holds run-length codes only, never a mask.

    dataset: what the results are compared with
    image_ids: the images that count, by default all of the data set's; an image without results
        counts with everything in it missed
    """

    def __init__(self, dataset: Dataset, image_ids: list[int] | None = None):
        self.dataset = dataset
        self.image_ids = [r.id for r in dataset.images] if image_ids is None else list(image_ids)
        self._results: dict[int, list[dict]] = {}

    def update(self, image_id: int, instances: Instances) -> None:
        """Take the instances of one image, labels in the data set's order; again replaces them."""
        self._results[image_id] = coco_results(image_id, instances, self.dataset.category_ids)

    def gather(self) -> None:
        """Give rank 0 the results of all processes; without torch.distributed do nothing."""
        if dist.is_initialized():
            rank = dist.get_rank()
            parts = [None] * dist.get_world_size() if rank == 0 else None
            dist.gather_object(self._results, parts)
            for part in parts or ():
                self._results.update(part)

    def results(self) -> list[dict]:
        """All results in the COCO results format, by image id, with the original category ids."""
        return [result for _, results in sorted(self._results.items()) for result in results]

    def summarize(self) -> dict:
        """The numbers of pycocotools' COCOeval, in percent.

        Returns a dict with
            AP, AP50, AP75, APs, APm, APl, AR100: float
            per_class: {class name: AP}
            images, instances: how many images and ground-truth instances (no crowds) took part
        A number without ground truth to compute it from is nan.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            truth = _ground_truth(self.dataset, self.image_ids)
            # loadRes cannot load an empty list, and it writes into the dicts of others.
            copies = [dict(result) for result in self.results()]
            results = truth.loadRes(copies) if copies else COCO()
            evaluation = COCOeval(truth, results, "segm")
            evaluation.params.imgIds = self.image_ids
            evaluation.params.catIds = list(self.dataset.category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # [IoU threshold, recall, class, area range, maximum of detections]
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        per_class = [precision[:, :, k].mean() for k in range(precision.shape[2])]
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=self.image_ids, iscrowd=False))
        return {
            **{name: _percent(evaluation.stats[i]) for name, i in STATISTICS.items()},
            "per_class": dict(zip(self.dataset.class_names, map(_percent, per_class), strict=True)),
            "images": len(self.image_ids),
            "instances": len(annotations),
        }


def _ground_truth(dataset: Dataset, image_ids: list[int]) -> COCO:
    """The data set as pycocotools wants it, with the annotations of these images.

    An annotation that covers no pixel is one that nothing can match; pycocotools counts it as
    missed, and so it counts here.
    """
    annotations, counting = [], set(image_ids)
    for record in dataset.images:
        if record.id not in counting:
            continue
        size = (record.height, record.width)
        for annotation in record.annotations + record.invisible:
            code, area = annotation.rle(*size), annotation.area
            annotations.append(
                {
                    # pycocotools takes a match with annotation 0 for no match, so count from 1.
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": dataset.category_ids[annotation.label],
                    "segmentation": code,
                    "iscrowd": int(annotation.iscrowd),
                    # COCO's areas are those of the polygons, a little different from the masks'.
                    "area": int(rle.area(code)) if area is None else area,
                }
            )
    truth = COCO()
    truth.dataset = {
        "images": [{"id": r.id, "height": r.height, "width": r.width} for r in dataset.images],
        "categories": [{"id": i} for i in dataset.category_ids],
        "annotations": annotations,
    }
    truth.createIndex()
    return truth


def _percent(value: float) -> float:
    """pycocotools says -1 where there is nothing to measure."""
    return 100 * float(value) if value > -1 else math.nan


def format_table(summary: dict, columns: int = 3) -> str:
    """CocoEvaluator.summarize's numbers as text: an overall line, then AP per class in columns."""
    overall = "  ".join(f"{name} {summary[name]:.1f}" for name in STATISTICS)
    lines = [f"{overall}  ({summary['instances']} instances in {summary['images']} images)"]
    if summary["instances"] == 0:
        lines.append("These images have no ground truth, so there is nothing to measure.")
        return "\n".join(lines)
    names = [name if len(name) <= 24 else name[:23] + "…" for name in summary["per_class"]]
    width = max(map(len, names))
    cells = [
        f"{name:<{width}} {'-' if math.isnan(ap) else f'{ap:.1f}':>5}"
        for name, ap in zip(names, summary["per_class"].values(), strict=True)
    ]
    rows = math.ceil(len(cells) / columns)
    lines += ["    ".join(cells[row::rows]) for row in range(rows)]
    missing = sum(map(math.isnan, summary["per_class"].values()))
    if missing:
        lines.append(f"-: no ground truth in these images ({missing} of {len(cells)} classes)")
    return "\n".join(lines)


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


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    device: torch.device | str,
    *,
    labels: Tensor | None = None,
    max_images: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> CocoEvaluator:
    """Run a model over a data set, one image at a time, and collect what it finds.

    labels: from match_classes, or None for a model made for this very data set
    max_images: only the first so many images
    Under torch.distributed every process calls this and does its share of the images; the
    evaluator of rank 0 then holds all results, each other one only its own.
    The model's training mode is what it was when this returns.
    Raises InputError for an image that cannot be read, or if a worker dies.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if labels is None:
        labels = match_classes(None, model.config.num_classes, dataset)
    records = dataset.images[:max_images]
    evaluator = CocoEvaluator(dataset, [record.id for record in records])
    images = EvaluationImages(dataset, model.config.test_short_edge, model.config.test_max_edge)
    share = range(rank, len(records), world)
    loader = DataLoader(
        Subset(images, share),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
    )
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            disable = not progress or rank > 0
            for sample in tqdm(read_batches(loader), "evaluate", len(share), disable=disable):
                batch, image_sizes = model.preprocess([sample["image"].to(device)])
                outputs = model(batch)
                (found,) = postprocess(outputs, image_sizes, [sample["size"]])
                found.labels = labels.to(found.labels.device)[found.labels]
                evaluator.update(sample["image_id"], found[found.labels >= 0])
                # Free these masks before the next image's come.
                del outputs, found
    finally:
        model.train(training)
    evaluator.gather()
    return evaluator
