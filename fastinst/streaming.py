"""Steps of a stream of many items: reading ahead in threads, batches of a kind, order."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")
_END = object()


def read_ahead(items: Iterable[T], read: Callable[[T], R], ahead: int, threads: int) -> Iterator[R]:
    """`map(read, items)` in order, of which the next `ahead` are under way in `threads` threads.

    The items too are taken in a thread, one after the other. What `items` or `read` raise is
    raised in its place, and then this is over. However it ends, also by `close`, nothing more is
    begun; the threads end with what they are at, which nobody waits for.
    """
    taker, readers = ThreadPoolExecutor(1, "take"), ThreadPoolExecutor(threads, "read")
    iterator = iter(items)

    def begin() -> Future:
        item = taker.submit(next, iterator, _END)
        return readers.submit(lambda: _END if item.result() is _END else read(item.result()))

    pending = deque()
    try:
        pending.extend(begin() for _ in range(ahead))
        while (result := pending.popleft().result()) is not _END:
            pending.append(begin())
            yield result
    finally:
        for pool in (taker, readers):
            pool.shutdown(wait=False, cancel_futures=True)


def batches(
    items: Iterable[T], kind: Callable[[T], Hashable], size: int, window: int | None = None
) -> Iterator[list[T]]:
    """Lists of up to `size` items of one kind, the oldest and those like it out of the next
    `window`; None for all."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == window:
            yield _take(waiting, kind, size)
    while waiting:
        yield _take(waiting, kind, size)


def _take(waiting: list[T], kind: Callable[[T], Hashable], size: int) -> list[T]:
    """Removes the oldest and those like it."""
    alike = [i for i, item in enumerate(waiting) if kind(item) == kind(waiting[0])][:size]
    return [waiting.pop(i) for i in reversed(alike)][::-1]


def in_order(numbered: Iterable[tuple[int, R]]) -> Iterator[R]:
    """What comes with the numbers 0, 1, 2, ... in any order, each as soon as it is its turn."""
    early: dict[int, R] = {}
    turn = 0
    for number, value in numbered:
        early[number] = value
        del value  # whoever gets it may be done with it before the next is made
        while turn in early:
            yield early.pop(turn)
            turn += 1
