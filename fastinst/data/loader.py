"""Datasets for torch's DataLoader, and the order in which training reads them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from fastinst.data.augment import Augmentation, augment, resize_shortest_edge
from fastinst.data.dataset import Dataset
from fastinst.data.images import read_image
from fastinst.errors import InputError


class TrainingImages:
    """The augmented images of a dataset that have annotations other than crowds.

    `images[epoch, index]` depends on the seed, epoch and index only, not on the worker:
    {"image": uint8 [3, h, w], "target": {"labels": int64 [N], "masks": bool [N, h, w]},
    "image_id": int}.
    Raises InputError if no image has such an annotation or, on access, if one cannot be read.
    """

    def __init__(self, dataset: Dataset, settings: Augmentation, seed: int):
        self.records = [
            record for record in dataset.images if any(not a.iscrowd for a in record.annotations)
        ]
        if not self.records:
            skipped = f"; {len(dataset.skipped)} were left out, as "
            raise InputError(
                f"{dataset.source}: no image has an annotation to learn from"
                + (skipped + dataset.skipped[0] if dataset.skipped else "")
            )
        self.settings = settings
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        record = self.records[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        image = read_image(record.path, (record.height, record.width))
        image, labels, masks = augment(image, record.annotations, rng, self.settings)
        return {
            "image": _to_tensor(image),
            "target": {"labels": torch.from_numpy(labels), "masks": torch.from_numpy(masks)},
            "image_id": record.id,
        }


class EpochSampler(Sampler):
    """An endless batch sampler for TrainingImages that can start at any step.

    The epochs, each a shuffle of its own, are joined into one sequence, which is cut into batches
    of `batch_size` and these into an equal part per rank. So a batch may straddle epochs, no
    image is dropped, and step s is the same whether or not training was interrupted before it.

    length: number of images
    batch_size: of all ranks together
    start_step: number of batches that are done
    Yields a list of batch_size / world_size keys (epoch, index).
    Raises InputError if batch_size is not a multiple of world_size.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ):
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"the batch size {batch_size} is no multiple of the {world_size} processes"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.share = batch_size // world_size
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start_step * self.batch_size + self.rank * self.share
        shuffled_epoch, order = -1, []
        while True:
            keys = []
            for position in range(first, first + self.share):
                epoch, place = divmod(position, self.length)
                if epoch != shuffled_epoch:
                    rng = np.random.default_rng((self.seed, epoch))
                    shuffled_epoch, order = epoch, rng.permutation(self.length).tolist()
                keys.append((epoch, order[place]))
            yield keys
            first += self.batch_size


class EvaluationImages:
    """All images of a dataset at test size.

    `images[index]` is {"image": uint8 [3, h, w], "image_id": int, "size": (height, width) of the
    original}. Raises InputError on access to an image that cannot be read.
    """

    def __init__(self, dataset: Dataset, short_edge: int, max_edge: int):
        self.records = dataset.images
        self.short_edge = short_edge
        self.max_edge = max_edge

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        size = (record.height, record.width)
        image = resize_shortest_edge(read_image(record.path, size), self.short_edge, self.max_edge)
        return {"image": _to_tensor(image), "image_id": record.id, "size": size}


def collate(samples: list[dict]) -> list[dict]:
    """A batch is the list of its samples: their sizes differ, and the model pads them."""
    return samples


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)
