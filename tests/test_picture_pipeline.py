"""The order, the bounds and the end of what predict.py runs in threads."""

import threading
import time

import pytest

from fastinst.errors import InputError
from fastinst.picture_pipeline import run_pipeline


class Stream:
    """A predictor that "finds" what an image is, without reading ahead."""

    closed = False

    def stream(self, images, batch_size, yield_errors):
        assert yield_errors
        try:
            for image in images:
                try:
                    yield image()
                except InputError as error:
                    yield error
        finally:
            self.closed = True


def sources(count, broken=()):
    def source(number):
        if number in broken:
            raise InputError(f"{number} is broken")
        return number

    return [lambda number=number: source(number) for number in range(count)]


def test_results_come_in_order_and_errors_in_their_place():
    items = sources(30, broken=(4, 5))

    def finish(item, found):
        time.sleep(0.002 * (items.index(item) % 3 == 0))
        return str(found)

    expected = [f"{i} is broken" if i in (4, 5) else str(i) for i in range(30)]
    predictor = Stream()
    assert list(run_pipeline(predictor, items, finish)) == expected
    assert predictor.closed
    assert list(run_pipeline(predictor, [], finish)) == []


def test_only_so_many_wait_to_be_finished(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    taken = []

    def watched():
        for number, source in enumerate(sources(100)):
            taken.append(number)
            yield source

    results = run_pipeline(Stream(), watched(), lambda item, found: found)
    for done in range(50):
        assert next(results) == done
        assert len(taken) <= done + 6
    results.close()
    assert len(taken) < 60


def test_what_has_passed_the_network_is_finished_after_a_stop():
    stopped, finished = threading.Event(), []

    def finish(item, found):
        time.sleep(0.01)
        finished.append(found)
        return found

    results = []
    for result in run_pipeline(Stream(), sources(100), finish, stop=stopped.is_set):
        results.append(result)
        if len(results) == 3:
            stopped.set()
    assert results == sorted(finished) and results == list(range(len(results)))
    assert 3 < len(results) < 60


def test_a_failure_to_finish_is_raised():
    def finish(item, found):
        if found == 7:
            raise InputError("the disk is full")
        return found

    results = []
    with pytest.raises(InputError, match="full"):
        results.extend(run_pipeline(Stream(), sources(100), finish))
    predictor = Stream()
    with pytest.raises(InputError, match="full"):
        for _ in run_pipeline(predictor, sources(100), finish):
            pass
    assert predictor.closed
