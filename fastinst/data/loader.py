"""Datasets for torch's DataLoader, and the order in which training reads them."""

import pickle
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.images import read_reduced
from fastinst.data.objects import Objects
from fastinst.data.view import Views
from fastinst.errors import InputError

RETRY_SECONDS = 0.5
# More than these in a row are no accident of single files.
MAX_UNREADABLE = 10


class TrainingImages:
    """The augmented images of a dataset that have annotations other than crowds.

    `images[epoch, index]` depends on the seed, epoch and index only, not on the worker:
    {"image": uint8 [3, h, w], "target": {"labels": int64 [N], "masks": int32 [N, h, ceil(w / 32)]
    in the bits of `fastinst.ops.pack_bits`, "seed": int of 63 bits, for the loss}, "image_id":
    int, "replaced": str or None}.

    An image that can no longer be read is tried again once, for the sake of network disks. Then
    the next that can stands in for it, and "replaced" has the error; "image_id" is the stand-in's.
    Raises InputError if no image has such an annotation or, on access, if MAX_UNREADABLE images
    one after the other, or all there are, cannot be read.
    """

    def __init__(self, dataset: Dataset, settings: Views, seed: int):
        self.records = [
            record for record in dataset.images if any(not a.iscrowd for a in record.annotations)
        ]
        if not self.records:
            skipped = f"; {len(dataset.skipped)} were left out, as "
            raise InputError(
                f"{dataset.source}: no image has an annotation to learn from"
                + (skipped + dataset.skipped[0] if dataset.skipped else "")
            )
        # One array and no Python objects: a worker that counts references to those of its parent
        # copies their memory, page after page, until every worker has all of it.
        pickled = [pickle.dumps(Objects(record.annotations), 5) for record in self.records]
        self._ends = np.cumsum([0, *map(len, pickled)])
        self._pickled = np.frombuffer(b"".join(pickled), np.uint8)
        self.settings = settings
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        errors = []
        for place in range(index, index + min(MAX_UNREADABLE + 1, len(self))):
            place %= len(self)
            record = self.records[place]
            rng = np.random.default_rng((self.seed, epoch, index))
            seed = int(rng.integers(2**63))
            view = self.settings.draw(record.height, record.width, rng)
            try:
                image = view.render(*_read_with_retry(record, view.reduction))
            except InputError as error:
                errors.append(str(error))
                continue
            labels, masks = view.masks(self.objects(place))
            return {
                "image": image,
                "target": {
                    "labels": torch.from_numpy(labels),
                    "masks": torch.from_numpy(masks),
                    "seed": seed,
                },
                "image_id": record.id,
                "replaced": "; ".join(errors) or None,
            }
        raise InputError(
            f"{len(errors)} images one after the other cannot be read any more; is the disk still "
            f"there? The first: {errors[0]}"
        )

    def objects(self, place: int) -> Objects:
        """Of the image `self.records[place]`."""
        return pickle.loads(self._pickled[self._ends[place] : self._ends[place + 1]])


def _read_with_retry(record: ImageRecord, reduction: int) -> tuple[np.ndarray, int]:
    size = (record.height, record.width)
    try:
        return read_reduced(record.path, size, reduction)
    except InputError:
        time.sleep(RETRY_SECONDS)
        return read_reduced(record.path, size, reduction)


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


def collate(samples: list[dict]) -> list[dict]:
    """A batch is the list of its samples: their sizes differ, and the model pads them."""
    return samples
