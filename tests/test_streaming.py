"""Reading ahead, batches of a kind, order."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinst.streaming import batches, in_order, read_ahead


def reading_threads():
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("take_", "read_"))]


def wait_for_threads():
    """Until none is left that reads."""
    end = time.monotonic() + 10
    while time.monotonic() < end and reading_threads():
        time.sleep(0.01)
    assert reading_threads() == []


@pytest.mark.parametrize(("ahead", "threads"), [(1, 1), (3, 2), (50, 4)])
def test_the_order_is_kept(ahead, threads):
    def slow_at_first(number):
        time.sleep(0.02 if number % 5 == 0 else 0)
        return -number

    assert list(read_ahead(range(20), slow_at_first, ahead, threads)) == [-i for i in range(20)]
    assert list(read_ahead([], slow_at_first, ahead, threads)) == []
    wait_for_threads()


def test_reading_overlaps():
    """All three threads meet in a barrier, which one after the other would not."""
    barrier = threading.Barrier(3)
    assert len(list(read_ahead(range(6), lambda _: barrier.wait(10), 3, 3))) == 6


def test_only_so_many_are_read_ahead():
    taken = []
    source = (taken.append(i) or i for i in itertools.count())
    reader = read_ahead(source, lambda i: i, ahead=4, threads=2)
    assert not taken
    for expected in range(3):
        assert next(reader) == expected
        assert max(taken) <= expected + 4
    reader.close()


def test_a_closed_or_forgotten_reader_ends_its_threads():
    for end in ("close", "__del__"):
        reader = read_ahead(itertools.count(), lambda i: i, 8, 3)
        next(reader)
        assert reading_threads()
        if end == "close":
            reader.close()
        del reader
        wait_for_threads()


@pytest.mark.parametrize("where", ["items", "read"])
def test_an_error_is_raised_in_its_place(where):
    def items():
        yield from (0, 1, 2)
        if where == "items":
            raise RuntimeError("broken")
        yield 3

    def read(item):
        if item == 3:
            raise RuntimeError("broken")
        return item

    reader, found = read_ahead(items(), read, 6, 2), []
    with pytest.raises(RuntimeError, match="broken"):
        found.extend(reader)  # keeps what came before
    assert found == [0, 1, 2]
    wait_for_threads()


kinds = st.lists(st.sampled_from("abc"), max_size=30)


@given(kinds, st.integers(1, 5), st.integers(1, 12) | st.none())
def test_batches(items, size, window):
    items = list(enumerate(items))
    taken = 0

    def watched():
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    left = list(items)
    for batch in batches(watched(), lambda item: item[1], size, window):
        assert 1 <= len(batch) <= size and len({kind for _, kind in batch}) == 1
        assert batch[0] == left[0] and batch == sorted(batch)
        reach = [item for item in left[:window] if item[1] == batch[0][1]]
        assert batch == reach[:size]
        left = [item for item in left if item not in batch]
        assert window is None or taken <= len(items) - len(left) - len(batch) + window
    assert left == []


@given(st.permutations(range(12)))
def test_in_order(numbers):
    seen = set()

    def watched():
        for number in numbers:
            seen.add(number)
            yield number, str(number)

    for expected, value in enumerate(in_order(watched())):
        assert value == str(expected)
        # Not later than it could be.
        assert seen == set(numbers[: max(map(numbers.index, range(expected + 1))) + 1])
