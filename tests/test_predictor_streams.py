"""A Predictor's streams, used by several threads, on a GPU."""

import itertools
import threading
import time

import pytest
import torch
from predictor_cases import SIZES, Colours, assert_same, colour_of, patch, random_images, tiny_model
from test_streaming import wait_for_threads

from fastinst import Predictor


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
