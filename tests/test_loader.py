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

from fastinst.data import loader as loader_module
from fastinst.data.augment import Augmentation
from fastinst.data.coco import load_coco
from fastinst.data.dataset import Dataset
from fastinst.data.large_scale_jitter import LargeScaleJitter
from fastinst.data.loader import EpochSampler, TrainingImages, collate
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
        assert target["masks"].dtype == torch.int32
        assert target["masks"].shape == (1, image.shape[1], -(-image.shape[2] // 32))
        assert sample["replaced"] is None
    assert any(not same(samples[i], samples[i + 3]) for i in range(3))
    seeds = [sample["target"]["seed"] for sample in samples]
    assert len(set(seeds)) == 6 and all(type(s) is int and 0 <= s < 2**63 for s in seeds)
    assert max(seeds) > 2**60


def same(a: dict, b: dict) -> bool:
    return (
        a["image_id"] == b["image_id"]
        and a["target"]["seed"] == b["target"]["seed"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["target"]["masks"], b["target"]["masks"])
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("augmentation", [SMALL, LargeScaleJitter(64)])
def test_workers_do_not_change_the_samples(tmp_path, augmentation):
    images = TrainingImages(write_dataset(tmp_path), augmentation, seed=3)
    streams = []
    for workers in (0, 1, 3):
        loader = DataLoader(
            images,
            batch_sampler=EpochSampler(len(images), 2, seed=3),
            num_workers=workers,
            collate_fn=collate,
        )
        streams.append([sample for batch in itertools.islice(loader, 5) for sample in batch])
    assert [len(stream) for stream in streams] == [10, 10, 10]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(*streams, strict=True))
    other_seed = TrainingImages(write_dataset(tmp_path), augmentation, seed=4)
    assert not all(same(images[0, i], other_seed[0, i]) for i in range(3))


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Waiting is recorded instead."""
    waits = []
    monkeypatch.setattr(loader_module.time, "sleep", waits.append)
    return waits


def test_the_next_image_stands_in_for_an_unreadable_one(tmp_path, waits):
    images = TrainingImages(write_dataset(tmp_path), SMALL, seed=0)
    before = [images[0, index] for index in range(3)]
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:100])
    (tmp_path / "5.png").unlink()
    after = [images[0, index] for index in range(3)]
    assert same(before[0], after[0]) and after[0]["replaced"] is None
    assert [sample["image_id"] for sample in after] == [1, 1, 1]
    assert "2.png: cannot be decoded" in after[1]["replaced"]
    assert "5.png: no such image" in after[1]["replaced"]
    assert "2.png" not in after[2]["replaced"] and "5.png" in after[2]["replaced"]
    assert [sample["target"]["seed"] for sample in after] == [s["target"]["seed"] for s in before]
    assert all(same(images[0, index], after[index]) for index in range(3))
    assert set(waits) == {0.5}


def test_an_unreadable_image_is_tried_twice(tmp_path, monkeypatch):
    images = TrainingImages(write_dataset(tmp_path), SMALL, seed=0)
    before = images[0, 1]
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").unlink()
    monkeypatch.setattr(
        loader_module.time, "sleep", lambda _: (tmp_path / "2.png").write_bytes(content)
    )
    assert same(images[0, 1], before) and images[0, 1]["replaced"] is None


@pytest.mark.parametrize("count", [2, 10, 11, 12])
def test_many_unreadable_images_are_an_error(tmp_path, waits, count):
    images = TrainingImages(write_dataset(tmp_path, [False] * 12), SMALL, seed=0)
    for i in range(3, 3 + count):
        (tmp_path / f"{(i - 1) % 12 + 1}.png").unlink()
    if count <= 10:
        assert images[0, 2]["image_id"] == (2 + count) % 12 + 1
    else:
        with pytest.raises(InputError, match=r"11 images .* disk .* The first: .*3\.png: no such"):
            images[0, 2]


def test_an_error_in_a_worker_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "RETRY_SECONDS", 0)
    images = TrainingImages(write_dataset(tmp_path), SMALL, seed=0)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"nothing")
    sampler = EpochSampler(len(images), 3, seed=0)
    loader = DataLoader(images, batch_sampler=sampler, num_workers=1, collate_fn=collate)
    batches = iter(loader)
    with pytest.raises(InputError, match=r"3 images .*\.png: cannot be decoded"):
        next(batches)
    batches._shutdown_workers()  # the garbage collector would wait 5 seconds for it


def test_a_batch_may_have_no_object(tmp_path):
    """What a crop shows nothing of is left out, and the sample is still one."""
    dataset = write_dataset(tmp_path, [False])
    settings = Augmentation(
        short_edges=(40,), max_edge=99, crop_probability=1, crop_resize=(400,), crop_range=(8, 8)
    )
    images = TrainingImages(dataset, settings, seed=0)
    samples = [images[epoch, 0] for epoch in range(60)]
    counts = {len(sample["target"]["labels"]) for sample in samples}
    assert counts == {0, 1}
    for sample in samples:
        masks = sample["target"]["masks"]
        assert masks.dtype == torch.int32 and masks.shape[1:] == (40, 2)


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(InputError, match=r"data\.json: no image has an annotation to learn from$"):
        TrainingImages(write_dataset(tmp_path, (True, None)), SMALL, seed=0)
    data = json.loads((tmp_path / "data.json").read_text())
    data["annotations"][0]["segmentation"] = []
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"; 1 were left out, as annotation 1 of image 1 .*no seg"):
        TrainingImages(load_coco(tmp_path / "data.json", tmp_path), SMALL, seed=0)


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
