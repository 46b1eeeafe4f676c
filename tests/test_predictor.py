"""From images to instances in one call."""

import numpy as np
import pytest
import torch
from PIL import Image
from predictor_cases import (
    EXPECTED,
    PATCHES,
    TINY,
    Colours,
    assert_same,
    colour_of,
    patch,
    patches,
    random_images,
    tiny_model,
)

from fastinst import Instances, Predictor, create_model, postprocess
from fastinst.data.augment import resize_shortest_edge
from fastinst.errors import InputError
from fastinst.weights import save_checkpoint

# The one path.


def test_it_is_resize_preprocess_network_and_postprocess():
    model = tiny_model().eval()
    for image in random_images():
        resized = torch.from_numpy(resize_shortest_edge(image, 64, 96)).permute(2, 0, 1)
        with torch.inference_mode():
            batch, sizes = model.preprocess([resized])
            (expected,) = postprocess(model(batch), sizes, [image.shape[:2]])
        assert_same(Predictor(model, "cpu", engine=False)(image), expected)


@pytest.mark.parametrize("preset", ["fastinst-d1-r18-192", "fastinst-d1-r50d-dcn-576"])
def test_the_engine_finds_what_the_plain_model_finds(preset):
    model = create_model(preset, num_classes=5, **TINY | {"num_layers": 2})
    torch.nn.init.normal_(model.positions.weight)
    image = random_images([(64, 96)])[0]
    plain = Predictor(model, "cpu", dtype="float32", engine=False)(image)
    assert_same(Predictor(model, "cpu", dtype="float32")(image), plain, 1e-4)
    exact = Predictor(model, "cpu", dtype="float64", engine=False)(image)
    assert_same(Predictor(model, "cpu", dtype="float64")(image), exact, 1e-9)


def test_the_model_stays_as_it_is():
    model = tiny_model(frozen_batch_norm=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = random_images([(50, 70)])[0]
    for engine in (True, False):
        predictor = Predictor(model, "cpu", engine=engine)
        assert_same(predictor(image), predictor(image))
        assert model.training and predictor.network is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert Predictor(model.eval(), engine=False).network is model


def test_several_images_of_any_size_come_in_their_order():
    for batch_size in (None, 1, 2, 3, 100):
        network = Colours()
        found = Predictor(network)(patches(), batch_size)
        assert [colour_of(one) for one in found] == EXPECTED
        assert max(shape[0] for shape in network.shapes) <= (batch_size or 1)
    assert Predictor(Colours())([]) == Predictor(Colours())(iter([])) == []
    single = Predictor(Colours())(patch((50, 70), 2))
    assert isinstance(single, Instances) and colour_of(single) == (2, (50, 70))


def test_only_images_that_are_padded_alike_share_a_batch():
    network = Colours()
    predictor = Predictor(network)
    resized = [predictor.resize(image) for image in patches()]
    found = predictor.infer(resized, [size for size, _ in PATCHES])
    assert [colour_of(one) for one in found] == EXPECTED
    alone = {(-(-r.shape[1] // 32) * 32, -(-r.shape[2] // 32) * 32) for r in resized}
    assert {shape[2:] for shape in network.shapes} == alone
    assert len(network.shapes) == len(alone)
    model = tiny_model()
    predictor = Predictor(model, "cpu", dtype="float32")
    for one, other in zip(predictor(random_images(), 4), predictor(random_images()), strict=True):
        assert_same(one, other, 1e-5)


def test_threshold_and_number():
    image = random_images([(50, 70)])[0]
    model = tiny_model()
    everything = Predictor(model, "cpu")(image)
    assert len(everything) == 100
    middle = everything.scores[30].item()
    found = Predictor(model, "cpu", threshold=middle)(image)
    assert 0 < len(found) < 100 and (found.scores >= middle).all()
    assert torch.equal(found.scores, everything.scores[everything.scores >= middle])
    assert len(Predictor(model, "cpu", max_instances=7)(image)) == 7
    for bad in ({"threshold": -0.1}, {"threshold": 1.5}, {"max_instances": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Predictor(model, "cpu", **bad)


# Where models come from.


def test_a_checkpoint_brings_its_classes(tmp_path):
    model, path = tiny_model(), tmp_path / "my model.pt"
    save_checkpoint(path, model, ["a", "b", "c", "d", "e"], [7, 8, 9, 10, 11])
    image = random_images([(50, 70)])[0]
    for source in (path, str(path)):
        predictor = Predictor(source, "cpu", "float32")
        assert predictor.name == "fastinst-d1-r18-192"
        assert predictor.class_names == ("a", "b", "c", "d", "e")
        assert predictor.category_ids == (7, 8, 9, 10, 11)
        found = predictor(image)
        assert found.names == ["abcde"[label] for label in found.labels]
        assert_same(found, Predictor(model, "cpu", "float32")(image))
    unnamed = Predictor(model, "cpu")
    assert unnamed.class_names is unnamed.category_ids is None
    assert unnamed(image).names[0].startswith("class ")


def test_the_dtype_is_the_fastest_by_default(monkeypatch):
    model = tiny_model()
    for fastest in (torch.float32, torch.bfloat16):
        halves = [] if fastest == torch.float32 else [fastest]
        monkeypatch.setattr("fastinst.device._halves", lambda device, halves=halves: halves)
        assert Predictor(model, "cpu").dtype == fastest
        assert Predictor(model, "cpu", dtype="float32").dtype == torch.float32
        assert Predictor(model, "cpu", engine=False).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no such file.pt",), "no such file.pt: no such file, and no released model"),
        (("fastinst-d1-r18-192",), "no published weights"),
        ((42,), "got int"),
        ((None,), "got NoneType"),
        ((Colours(), "cuda:7"), "cannot use the device 'cuda:7'; there is cpu"),
        ((Colours(), None, "float64"), "takes torch.float32 on cpu only"),
    ],
)
def test_models_that_cannot_be_had(arguments, words):
    with pytest.raises(InputError, match=words):
        Predictor(*arguments)


def test_images_fit_into_a_file_for_one_size():
    network = Colours()
    network.input_size = (64, 96)
    predictor = Predictor(network)
    for size in [(50, 70), (90, 60), (10, 1000), (1000, 10), (64, 96), (3, 3), (1, 5000)]:
        height, width = predictor.resize(np.zeros((*size, 3), np.uint8)).shape[1:]
        assert height <= 64 and width <= 96
        assert height == 64 or width == 96
    network.input_size = (640, 864)
    assert predictor.resize(np.zeros((50, 100, 3), np.uint8)).shape[1:] == (48, 96)


# Bad images.


def test_a_bad_image_is_named_by_its_place_or_path(tmp_path):
    predictor = Predictor(Colours())
    good = patch((50, 70), 0)
    with pytest.raises(InputError, match="^image 2: an array must be uint8.*float64"):
        predictor([good, good, good.astype(float)])
    with pytest.raises(InputError, match="none.jpg: no such image"):
        predictor([good, tmp_path / "none.jpg"])
    with pytest.raises(InputError, match="none.jpg: no such image"):
        predictor(tmp_path / "none.jpg")
    for not_images in (42, None):
        with pytest.raises(InputError, match="images"):
            predictor(not_images)


def test_a_stream_may_yield_errors_in_their_places(tmp_path):
    good, bad = patch((50, 70), 1), tmp_path / "bad.jpg"
    bad.write_text("no image")
    Image.fromarray(good).save(tmp_path / "good.png")
    images = [good, bad, tmp_path / "good.png", bad, bad, good]
    for batch_size in (1, 4):
        found = list(Predictor(Colours()).stream(images, batch_size, yield_errors=True))
        wrong = [isinstance(one, InputError) for one in found]
        assert wrong == [False, True, False, True, True, False]
        assert str(bad) in str(found[1])
        stream, good_ones = Predictor(Colours()).stream(images, batch_size), []
        with pytest.raises(InputError, match="bad.jpg"):
            good_ones.extend(stream)
        assert len(good_ones) == 1


def test_what_is_no_stream():
    predictor = Predictor(Colours())
    for images in (patch((4, 4), 0), "a.jpg", 42, None):
        with pytest.raises(InputError, match="images in a list"):
            predictor.stream(images)
    for begin in (predictor.stream, predictor):
        with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
            begin([], batch_size=0)
