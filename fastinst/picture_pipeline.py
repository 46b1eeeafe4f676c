"""Images through a Predictor, with reading before and drawing after it in threads beside it."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import numpy as np

from fastinst.errors import InputError
from fastinst.predictor import Predictor
from fastinst.results import Instances

Source = TypeVar("Source", bound=Callable[[], np.ndarray])
Result = TypeVar("Result")


def run_pipeline(
    predictor: Predictor,
    sources: Iterable[Source],
    finish: Callable[[Source, Instances | InputError], Result],
    batch_size: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """`finish(source, instances)` of each source, in their order.

    The network runs here; meanwhile sources are read and results finished in other threads, one
    of these for each core and at most 8, and never more than twice as many images wait for them.

    sources: functions that return an image, each called once; one that raises InputError passes
        that error to `finish` in place of instances. A generator runs in a thread too
    stop: asked after each image; when it says so, what has passed the network is finished, and
        that is all
    What `finish` raises is raised here, in its place.
    """
    threads = min(8, os.cpu_count() or 1)
    under_way: deque[Source] = deque()

    def taken() -> Iterator[Source]:
        for source in sources:
            under_way.append(source)
            yield source

    stream = predictor.stream(taken(), batch_size, yield_errors=True)
    finishing = deque()
    with ThreadPoolExecutor(threads, "finish") as pool, closing(stream):
        for found in stream:
            finishing.append(pool.submit(finish, under_way.popleft(), found))
            if stop():
                break
            if len(finishing) > 2 * threads:
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()
