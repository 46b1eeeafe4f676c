"""What a training will take is forecast without reading an image or allocating a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastinst import create_model
from fastinst.config import make_config
from fastinst.data.augment import Augmentation
from fastinst.data.dataset import Annotation, Dataset, ImageRecord
from fastinst.data.loader import TrainingImages
from fastinst.examination.forecast import forecast, kept_for_gradients, largest_batch

CONFIG = make_config("fastinst-d1-r18-192", num_classes=3)
CPU = torch.device("cpu")


def training_images(sizes, settings):
    square = [np.array([0.0, 0, 9, 0, 9, 9, 0, 9])]
    records = tuple(
        ImageRecord(i, Path("nowhere.jpg"), *size, (Annotation(i, 0, square, False),))
        for i, size in enumerate(sizes)
    )
    dataset = Dataset(Path("nowhere"), Path("nowhere"), ("a", "b", "c"), (1, 2, 3), records, ())
    return TrainingImages(dataset, settings, seed=0)


@pytest.fixture
def images():
    still = Augmentation(short_edges=(96,), max_edge=128, crop_probability=0.0)
    return training_images([(100, 130), (130, 100)] * 5, still)


def test_the_largest_batch_holds_images_of_both_orientations(images):
    assert largest_batch(images, 1) in ((96, 128), (128, 96))
    assert largest_batch(images, 8) == (128, 128)


def test_what_is_kept_is_what_a_real_step_keeps_beside_its_losses():
    kept, parameters = kept_for_gradients(CONFIG, 64, 96)
    model = create_model(CONFIG.name, 3, num_points=16).train()
    target = {"labels": torch.tensor([1]), "masks": torch.ones(1, 64, 96, dtype=torch.bool)}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(torch.zeros(1, 3, 64, 96), [target])
    assert kept == pytest.approx(sum(s.nbytes() for s in storages.values()), rel=0.02)
    assert parameters == sum(parameter.numel() for parameter in model.parameters())


def test_memory_grows_with_the_batch_and_halves_with_16_bits(images):
    model = forecast(images, CONFIG, 4, CPU, amp=False)
    double = forecast(images, CONFIG, 8, CPU, amp=False)
    halved = forecast(images, CONFIG, 4, CPU, amp=True)
    _, parameters = kept_for_gradients(CONFIG, 128, 128)
    activations = model.memory - 16 * parameters
    assert double.memory - 16 * parameters == pytest.approx(2 * activations, rel=0.01)
    assert 0.5 < (halved.memory - 16 * parameters) / activations < 0.6
    assert (model.steps_per_epoch, double.steps_per_epoch) == (3, 2)
    in_parts = forecast(images, CONFIG, 8, CPU, amp=False, parts=2)
    assert (in_parts.memory, in_parts.steps_per_epoch) == (model.memory, 2)
    assert model.available is None or model.available > 2**20
