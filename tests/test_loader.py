"""Samples that do not depend on workers, and batches that do not depend on interruptions."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fastinst.data.augment import Augmentation
from fastinst.data.coco import load_coco
from fastinst.data.dataset import Dataset
from fastinst.data.loader import EpochSampler, EvaluationImages, TrainingImages, collate
from fastinst.errors import InputError

SMALL = Augmentation.for_size(48, 64)


def write_dataset(folder, crowds=(False, False, True, None, False)) -> Dataset:
    """An image per entry: with an object (False), a crowd (True) or nothing (None)."""
    images, annotations = [], []
    for i, crowd in enumerate(crowds, start=1):
        noise = np.random.default_rng(i).integers(0, 256, (40, 50 + i, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 50 + i})
        if crowd is not None:
            polygon = [5, 5, 40, 5, 40, 35, 5, 35]
            annotations.append(
                {"id": i, "image_id": i, "category_id": 1, "iscrowd": int(crowd)}
                | {"segmentation": [polygon]}
            )
    categories = [{"id": 1, "name": "thing"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(data))
    return load_coco(folder / "data.json", folder)


def test_training_samples(tmp_path):
    images = TrainingImages(write_dataset(tmp_path), SMALL, seed=0)
    assert len(images) == 3  # not the crowd's image and not the empty one
    samples = [images[epoch, index] for epoch in range(2) for index in range(3)]
    assert [s["image_id"] for s in samples] == [1, 2, 5, 1, 2, 5]
    for sample in samples:
        image, target = sample["image"], sample["target"]
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        assert target["labels"].tolist() == [0] and target["labels"].dtype == torch.int64
        assert target["masks"].dtype == torch.bool
        assert target["masks"].shape == (1, *image.shape[1:])
    assert any(not same(samples[i], samples[i + 3]) for i in range(3))


def same(a: dict, b: dict) -> bool:
    return (
        a["image_id"] == b["image_id"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["target"]["masks"], b["target"]["masks"])
    )


def test_workers_do_not_change_the_samples(tmp_path):
    images = TrainingImages(write_dataset(tmp_path), SMALL, seed=3)
    streams = []
    for workers in (0, 2):
        loader = DataLoader(
            images,
            batch_sampler=EpochSampler(len(images), 2, seed=3),
            num_workers=workers,
            collate_fn=collate,
        )
        streams.append([sample for batch in itertools.islice(loader, 5) for sample in batch])
    assert len(streams[0]) == len(streams[1]) == 10
    assert all(same(a, b) for a, b in zip(*streams, strict=True))
    other_seed = TrainingImages(write_dataset(tmp_path), SMALL, seed=4)
    assert not all(same(images[0, i], other_seed[0, i]) for i in range(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_by_the_loader(tmp_path, workers):
    images = TrainingImages(write_dataset(tmp_path), SMALL, seed=0)
    (tmp_path / "2.png").write_bytes(b"nothing")
    sampler = EpochSampler(len(images), 3, seed=0)
    loader = DataLoader(images, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
    with pytest.raises(InputError, match=r"2\.png: cannot be decoded"):
        next(iter(loader))


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(InputError, match=r"data\.json: no image has an annotation to learn from$"):
        TrainingImages(write_dataset(tmp_path, (True, None)), SMALL, seed=0)
    data = json.loads((tmp_path / "data.json").read_text())
    data["annotations"][0]["segmentation"] = []
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"; 1 were left out, as annotation 1 of image 1 .*no seg"):
        TrainingImages(load_coco(tmp_path / "data.json", tmp_path), SMALL, seed=0)


def test_evaluation_samples(tmp_path):
    images = EvaluationImages(write_dataset(tmp_path), 32, 40)
    assert len(images) == 5
    samples = [images[i] for i in range(5)]
    assert [s["image_id"] for s in samples] == [1, 2, 3, 4, 5]
    assert [s["size"] for s in samples] == [(40, 50 + i) for i in range(1, 6)]
    assert samples[0]["image"].shape == (3, 31, 40) and samples[0]["image"].dtype == torch.uint8


def take(sampler: EpochSampler, steps: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler, steps))


shapes = given(
    length=st.integers(1, 9),
    share=st.integers(1, 4),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 99),
)


@settings(deadline=None, max_examples=40)
@shapes
def test_ranks_share_epochs_that_are_permutations(length, share, world_size, seed):
    batch_size = share * world_size
    ranks = [
        take(EpochSampler(length, batch_size, seed, rank, world_size), 3 * length)
        for rank in range(world_size)
    ]
    assert all(len(batch) == share for rank in ranks for batch in rank)
    keys = [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch]
    assert keys == [
        key for batch in take(EpochSampler(length, batch_size, seed), 3 * length) for key in batch
    ]
    assert len(set(keys)) == len(keys) == 3 * length * batch_size
    for epoch in range(3 * batch_size):
        part = keys[epoch * length : (epoch + 1) * length]
        assert sorted(part) == [(epoch, index) for index in range(length)]


@settings(deadline=None, max_examples=40)
@shapes
def test_a_resumed_sampler_continues(length, share, world_size, seed):
    arguments = (length, share * world_size, seed, world_size - 1, world_size)
    whole = take(EpochSampler(*arguments), 12)
    for step in (1, 5, 11):
        assert take(EpochSampler(*arguments, start_step=step), 12 - step) == whole[step:]


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {
        tuple(index for _, index in batch)
        for seed in (0, 1)
        for batch in take(EpochSampler(20, 20, seed), 3)
    }
    assert len(orders) == 6


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 2), (0, 1), (1, 2)])
def test_batches_must_be_divisible(batch_size, world_size):
    with pytest.raises(InputError, match=f"batch size {batch_size} .* {world_size} processes"):
        EpochSampler(10, batch_size, 0, world_size=world_size)
