"""Average precision as COCO defines it, from results that arrive image by image."""

from collections.abc import Sequence

import torch.distributed as dist

from fastinst.data.dataset import Dataset
from fastinst.metrics.average_precision import Curves, accumulate, class_statistics, statistics
from fastinst.metrics.matching import Matches, match, ranked
from fastinst.metrics.overlap import overlaps
from fastinst.metrics.regions import Found, found_regions, ground_truth
from fastinst.results import Instances


class CocoEvaluator:
    """Compares results with a data set's annotations, and computes their AP.

    Each image is compared as it comes. What is kept of it are scores and matches, some 10 KB for
    100 results, and if asked for the results as run-length codes; never a mask.

    dataset: what the results are compared with
    image_ids: the images that count, by default all of the data set's; an image without results
        counts with everything in it missed
    metrics: any of "mask", "box" and "boundary", see `overlaps`; the first is the chief one
    keep_results: for `results`
    """

    def __init__(
        self,
        dataset: Dataset,
        image_ids: Sequence[int] | None = None,
        metrics: Sequence[str] = ("mask",),
        keep_results: bool = True,
    ):
        self.dataset = dataset
        self.records = {record.id: record for record in dataset.images}
        self.image_ids = sorted(self.records if image_ids is None else set(image_ids))
        self.metrics = tuple(metrics)
        self._labels = {id_: label for label, id_ in enumerate(dataset.category_ids)}
        self._matches: dict[int, dict[str, Matches]] = {}
        self._results: dict[int, list[dict]] | None = {} if keep_results else None

    def update(self, image_id: int, instances: Instances) -> None:
        """Take the instances of one image, labels in the data set's order; again replaces them."""
        self.update_results(image_id, instances.to_coco(image_id, self.dataset.category_ids))

    def update_results(self, image_id: int, results: list[dict]) -> None:
        """The same for results of one image in the COCO results format; see `found_regions`."""
        self._matches[image_id] = self._match(image_id, found_regions(results, self._labels))
        if self._results is not None:
            self._results[image_id] = results

    def _match(self, image_id: int, found: Found) -> dict[str, Matches]:
        truth = ground_truth(self.records[image_id])
        found = found[ranked(found.labels, found.scores)]
        matches = {}
        for metric in self.metrics:
            matches[metric] = match(
                overlaps(metric, found, truth),
                (found.labels, found.scores, found.areas),
                (truth.labels, truth.areas, truth.crowd),
            )
        return matches

    def gather(self) -> None:
        """Give rank 0 what all processes have; without torch.distributed do nothing."""
        if dist.is_initialized():
            rank = dist.get_rank()
            parts = [None] * dist.get_world_size() if rank == 0 else None
            dist.gather_object((self._matches, self._results), parts)
            for matches, results in parts or ():
                self._matches.update(matches)
                if self._results is not None:
                    self._results.update(results)

    def results(self) -> list[dict]:
        """All results in the COCO results format, by image id, with the original category ids."""
        return [result for results in self.results_by_image().values() for result in results]

    def results_by_image(self) -> dict[int, list[dict]]:
        """The same of each image that counts, by its id."""
        if self._results is None:
            raise ValueError("the evaluator was made with keep_results=False")
        return {image_id: self._results.get(image_id, []) for image_id in self.image_ids}

    def curves(self, metric: str) -> Curves:
        """Precision and recall by one of `metrics`."""
        nothing = found_regions([], self._labels)
        for image_id in self.image_ids:
            if image_id not in self._matches:
                self._matches[image_id] = self._match(image_id, nothing)
        matches = [self._matches[image_id][metric] for image_id in self.image_ids]
        return accumulate(matches, len(self.dataset.class_names))

    def summarize(self) -> dict:
        """The numbers of pycocotools' COCOeval, in percent.

        Returns a dict with
            metric: the chief one, of which are
            AP, AP50, AP75, APs, APm, APl, AR100: float
            per_class: {class name: {AP, AP50, AP75, APs, APm, APl}}
            of each other metric, by its name, another dict with those two
            images, instances: how many images and ground-truth instances (no crowds) took part
        A number without ground truth to compute it from is nan.
        """
        numbers = {metric: self._numbers(metric) for metric in self.metrics}
        chief = self.metrics[0]
        records = [self.records[image_id] for image_id in self.image_ids]
        instances = sum(not a.iscrowd for r in records for a in r.annotations + r.invisible)
        return {
            "metric": chief,
            **numbers.pop(chief),
            **numbers,
            "images": len(records),
            "instances": instances,
        }

    def _numbers(self, metric: str) -> dict:
        curves = self.curves(metric)
        names = enumerate(self.dataset.class_names)
        per_class = {name: class_statistics(curves, k) for k, name in names}
        return {**statistics(curves), "per_class": per_class}
