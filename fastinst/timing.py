"""How long calls take on a device, in milliseconds."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

# About 5 ms: while a GPU waits so long, what comes after is launched, and then runs without gaps.
LAUNCH_CYCLES = 10_000_000


def measure_in_turn(
    calls: dict[str, list[Callable[[], object]]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """The mean time of a call of each list, many times; the lists in turn, A B C A B C, so that
    they meet the same state of the machine. There are 5 rounds at least, and 2 to warm up.
    """
    for _ in range(2):
        for group in calls.values():
            time_calls(group, device)
    times = {name: [] for name in calls}
    start = time.perf_counter()
    for count in itertools.count(1):
        for name, group in calls.items():
            times[name].append(time_calls(group, device))
        if count >= 5 and time.perf_counter() - start > seconds:
            return times


def time_calls(calls: list[Callable[[], object]], device: torch.device) -> float:
    """The mean time of calls that follow each other; a GPU's without the gaps of launching."""
    launch_ahead(device)
    start = mark(device)
    results = [call() for call in calls]
    end = mark(device)
    synchronize(device)
    del results  # not before: freeing them is not part of the work
    return milliseconds(start, end) / len(calls)


def launch_ahead(device: torch.device) -> None:
    """Keeps a GPU waiting while what comes next is launched."""
    if device.type == "cuda":
        torch.cuda._sleep(LAUNCH_CYCLES)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> "torch.cuda.Event | float":
    """Now, on the device's own time line: a GPU's stages are timed without waiting for it."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: "torch.cuda.Event | float", end: "torch.cuda.Event | float") -> float:
    return 1000 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


def is_stable(times: list[float]) -> bool:
    """Whether the medians of the last three runs and of the three before differ by under 5 %."""
    if len(times) < 6:
        return False
    last, before = statistics.median(times[-3:]), statistics.median(times[-6:-3])
    return abs(last - before) < 0.05 * before


def summarize_stages(
    runs: Sequence[Sequence[float]], stages: Sequence[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """From the milliseconds of each run's stages: each stage's percentiles, and those of "all"."""
    columns = [*zip(*runs, strict=True), [sum(run) for run in runs]]
    for stage, column in zip((*stages, "all"), columns, strict=True):
        median, p95 = np.percentile(column, (50, 95)).tolist()
        yield stage, {"median_ms": median, "p95_ms": p95}
