"""A Predictor's tasks."""

import pytest
import torch
from predictor_cases import Colours, random_images, tiny_model

from fastinst import Instances, Predictor, SegmentMap
from fastinst.errors import InputError
from fastinst.panoptic import panoptic, semantic
from fastinst.preprocess import preprocess
from fastinst.weights import save_checkpoint

NAMES = ("a", "b", "c", "d", "e")
IS_THING = (True, False, True, False, True)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, tiny_model(), NAMES, range(1, 6), is_thing=IS_THING)
    return path


def outputs_of(predictor, image):
    """What the network says of an image, and the sizes that reading it out takes."""
    batch, sizes = preprocess(
        [predictor.resize(image)], predictor.config, predictor.device, torch.float32
    )
    with torch.inference_mode():
        return predictor.network(batch), sizes, [image.shape[:2]]


def test_the_panoptic_task(checkpoint):
    predictor = Predictor(checkpoint, "cpu", "float32", threshold=0.3, task="panoptic")
    assert (predictor.is_thing, predictor.task, predictor.threshold) == (IS_THING, "panoptic", 0.3)
    for image in random_images():
        found = predictor(image)
        (expected,) = panoptic(*outputs_of(predictor, image), IS_THING, 0.3)
        assert torch.equal(found.ids, expected.ids) and found.segments == expected.segments
        assert found.class_names == NAMES and found.size == image.shape[:2]


def test_the_semantic_task(checkpoint):
    predictor = Predictor(checkpoint, "cpu", "float32", task="semantic")
    for image in random_images():
        found = predictor(image)
        (scores,) = semantic(*outputs_of(predictor, image))
        assert torch.equal(found.labels().long(), scores.argmax(0))
        assert found.names == [NAMES[label] for label in scores.argmax(0).unique()]


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_streams_batches_and_errors_are_those_of_instances(task, tmp_path):
    images = random_images()
    alone = [Predictor(Colours(), task=task)(image) for image in images]
    together = Predictor(Colours(memory=2 * 64 * 96), task=task)
    with pytest.warns(UserWarning, match="not enough memory"):
        found = list(together.stream([*images, tmp_path / "none.png"], 6, yield_errors=True))
    assert isinstance(found.pop(), InputError)
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one.ids, other.ids) and one.segments == other.segments


def test_without_stuff_all_are_things_and_have_numbers():
    predictor = Predictor(Colours(), task="panoptic")
    assert predictor.is_thing is None and predictor.threshold == 0.8
    found = predictor(random_images()[0])
    assert isinstance(found, SegmentMap)
    assert all(name.startswith("class ") for name in found.names)


def test_instances_are_the_default():
    predictor = Predictor(Colours())
    assert (predictor.task, predictor.threshold) == ("instance", 0)
    assert isinstance(predictor(random_images()[0]), Instances)


def test_an_unknown_task():
    with pytest.raises(InputError, match="one of instance, panoptic, semantic, not 'stuff'"):
        Predictor(Colours(), task="stuff")
