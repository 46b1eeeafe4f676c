"""From images to instances in one call, or in a stream."""

import itertools
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_streaming import wait_for_threads

from fastinst import Instances, Predictor, create_model, postprocess
from fastinst.data.augment import resize_shortest_edge
from fastinst.errors import InputError
from fastinst.weights import save_checkpoint

TINY = {"hidden_dim": 64, "num_heads": 2, "ffn_dim": 32, "test_short_edge": 64, "test_max_edge": 96}
# Padded to 64 x 96, 96 x 64, 64 x 64, 64 x 96 again, 32 x 96 and 64 x 96.
SIZES = [(50, 70), (90, 60), (64, 64), (30, 44), (8, 30), (100, 150)]


def tiny_model(**overrides):
    model = create_model("fastinst-d1-r18-192", num_classes=5, **TINY | overrides)
    torch.nn.init.normal_(model.positions.weight)
    return model


def random_images(sizes=SIZES):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_same(one: Instances, other: Instances, tolerance=0.0):
    """With a tolerance, of the scores, instances of nearly one score may change places."""
    assert one.size == other.size and len(one) == len(other)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=tolerance)
    if tolerance == 0:
        assert torch.equal(one.labels, other.labels) and torch.equal(one.packed, other.packed)
        assert torch.equal(one.boxes, other.boxes)
        return
    masks, others = (found.masks.flatten(1).float() for found in (one, other))
    shared = masks @ others.T
    overlap = shared / (masks.sum(1)[:, None] + others.sum(1) - shared).clamp(min=1)
    empty = one.boxes.sum(1) == 0
    same = (one.labels[:, None] == other.labels) & (
        (one.scores[:, None] - other.scores).abs() <= 2 * tolerance
    )
    assert (((overlap > 0.99) & same).any(1) | empty).all()


class Colours:
    """A network that finds what is red, green or blue; notes the shapes of its batches, and has
    memory for so many pixels."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(
        name="colours",
        test_short_edge=64,
        test_max_edge=96,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(255.0, 255.0, 255.0),
    )

    def __init__(self, memory=float("inf"), error=None):
        self.shapes, self.memory = [], memory
        self.error = error or RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory"
        )

    def __call__(self, batch):
        self.shapes.append(tuple(batch.shape))
        if batch[:, 0].numel() > self.memory:
            raise self.error
        masks = 40 * torch.nn.functional.avg_pool2d(batch, 8) - 20
        logits = torch.full((len(batch), 3, 4), -9.0)
        for i in range(3):
            logits[:, i, i] = 3.0 - i
        return {"pred_logits": logits, "pred_masks": masks}


def patch(size, colour):
    image = np.zeros((*size, 3), np.uint8)
    image[: size[0] // 2, : size[1] // 2, colour] = 255
    return image


def colour_of(found):
    """The colour of `patch` of what was found in it, and its size."""
    best = found.scores.argmax()
    height, width = found.size
    assert found.masks[best, height // 4, width // 4] and not found.masks[best, -1, -1]
    return int(found.labels[best]), found.size


PATCHES = [(size, i % 3) for i, size in enumerate(SIZES * 3)]
EXPECTED = [(colour, size) for size, colour in PATCHES]


def patches():
    return [patch(size, colour) for size, colour in PATCHES]


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
    with pytest.raises(InputError, match="batch_size"):
        predictor.stream([], batch_size=0)


# Streams and threads.


def test_a_stream_needs_few_images_ahead_and_none_of_its_threads_stays():
    taken = []
    source = (taken.append(i) or patch((50, 70), i % 3) for i in itertools.count())
    stream = Predictor(Colours()).stream(source)
    assert [colour_of(next(stream))[0] for _ in range(5)] == [0, 1, 2, 0, 1]
    time.sleep(0.1)
    assert max(taken) < 12
    stream.close()
    wait_for_threads()


def test_functions_are_called_in_the_reading_threads():
    callers = set()

    def read(colour):
        callers.add(threading.current_thread())
        return patch((50, 70), colour)

    images = [lambda colour=colour: read(colour) for colour in (2, 0, 1)]
    found = Predictor(Colours()).stream(images, readers=1)
    assert [colour_of(one)[0] for one in found] == [2, 0, 1]
    assert threading.main_thread() not in callers and len(callers) == 1


def test_what_a_generator_raises_arrives():
    def source():
        yield patch((50, 70), 0)
        raise KeyError("of the caller")

    stream = Predictor(Colours()).stream(source())
    next(stream)
    with pytest.raises(KeyError, match="of the caller"):
        next(stream)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_get_what_one_thread_gets(dtype):
    predictor = Predictor(tiny_model(), "cpu", dtype)
    images = random_images(SIZES + [(40 + 8 * i, 64) for i in range(6)])
    expected = [predictor(image) for image in images]
    problems = []

    def work(start):
        try:
            for i in range(start, start + len(images)):
                i %= len(images)
                assert_same(predictor(images[i]), expected[i])
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]


# Memory.


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.66 GB)"),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so_once(error):
    network = Colours(memory=3 * 64 * 96, error=error)
    predictor = Predictor(network)
    images = [patch((64, 96), i % 3) for i in range(16)]
    with pytest.warns(
        UserWarning, match="cpu has not enough memory for 16 images.*; 2 work"
    ) as told:
        found = predictor(images, batch_size=16)
    assert [colour_of(one)[0] for one in found] == [i % 3 for i in range(16)]
    assert [shape[0] for shape in network.shapes] == [16, 8, 4] + [2] * 8
    assert len(told) == 1
    network.shapes.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(predictor(images, batch_size=16)) == 16
    assert [shape[0] for shape in network.shapes] == [2] * 8


def test_one_image_too_large_for_the_memory_is_named():
    predictor = Predictor(Colours(memory=10))
    with pytest.raises(InputError, match="image of 500 x 400 pixels, resized to 80 x 64, .* cpu"):
        predictor(patch((400, 500), 0))


def test_other_errors_are_not_taken_for_memory():
    network = Colours(memory=10, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        Predictor(network)([patch((64, 96), 0)] * 4, batch_size=4)
    assert len(network.shapes) == 1


# A GPU.


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_and_threads_on_a_gpu():
    predictor = Predictor(tiny_model(), "cuda", "float32", threshold=0.01)
    images = random_images(SIZES * 4)
    alone = [predictor(image) for image in images]
    for batch_size in (1, 3):
        for one, other in zip(predictor.stream(images, batch_size), alone, strict=True):
            assert one.packed.device.type == "cpu" and (one.scores >= 0.01).all()
            assert_same(one, other, 1e-5)
    found = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda part=part: part.extend(predictor.stream(images)))
        for part in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in found:
        for one, other in zip(part, alone, strict=True):
            assert_same(one, other, 1e-5)
