"""The stages of inference and how they are timed."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fastinst.data.augment import resize_shortest_edge
from fastinst.model import FastInst
from fastinst.results import Instances, postprocess

STAGES = ("resize", "preprocess", "backbone", "pixel decoder", "decoder", "read-out", "download")
END_TO_END = "end to end"
# About 5 ms: while a GPU waits so long, what comes after is launched, and then runs without gaps.
LAUNCH_CYCLES = 10_000_000


# The work.


def resize(model: FastInst, originals: list[np.ndarray]) -> list[Tensor]:
    """uint8 [H, W, 3] images to uint8 [3, h, w] tensors of the model's test size."""
    edges = (model.config.test_short_edge, model.config.test_max_edge)
    resized = [resize_shortest_edge(image, *edges) for image in originals]
    return [torch.from_numpy(image).permute(2, 0, 1) for image in resized]


def staged(model: FastInst, originals: list[np.ndarray]) -> Iterator[tuple[str, object]]:
    """All of the work; yields each of STAGES as it ends, with its result."""
    resized = resize(model, originals)
    yield "resize", resized
    batch, image_sizes = model.preprocess(resized)
    yield "preprocess", batch
    features = model.backbone(batch)
    yield "backbone", features
    p3, p4, _ = model.pixel_decoder(features)
    yield "pixel decoder", p3
    queries = model.queries(p4, model.positions(p4.shape[2:]))
    logits, masks = model.decoder(p3, model.positions(p3.shape[2:]), queries)
    outputs = {"pred_logits": logits, "pred_masks": masks, "query_indices": queries.indices}
    yield "decoder", outputs
    found = postprocess(outputs, image_sizes, [image.shape[:2] for image in originals])
    yield "read-out", found
    yield "download", [instances.to("cpu") for instances in found]


def whole(
    model: FastInst, originals: list[np.ndarray], resized: list[Tensor] | None
) -> list[Instances]:
    """The work in one go: all of it, or given the resized images all between its two ends."""
    batch, image_sizes = model.preprocess(resized or resize(model, originals))
    found = postprocess(model(batch), image_sizes, [image.shape[:2] for image in originals])
    return found if resized else [instances.to("cpu") for instances in found]


# Its time, in milliseconds.


@torch.inference_mode()
def warm_up(
    model: FastInst, batches: Iterator[list[np.ndarray]], from_resized: bool, runs: int | None
) -> list[float]:
    """END_TO_END of `runs` runs, or by default of as many as it takes until they are stable."""
    times, start = [], time.perf_counter()
    while runs is None or len(times) < runs:
        times.append(time_whole(model, next(batches), from_resized))
        seconds = time.perf_counter() - start
        # A GPU's clock takes about a second to rise; a busy machine may never be stable.
        if runs is None and (seconds > 30 or seconds > 1 and is_stable(times)):
            break
    return times


@torch.inference_mode()
def measure(
    model: FastInst,
    batches: Iterator[list[np.ndarray]],
    from_resized: bool,
    runs: int | None,
    seconds: float,
) -> Iterator[dict[str, float]]:
    """Yields the times of STAGES and END_TO_END, of one run after the other.

    Args:
        batches: uint8 [H, W, 3] images, one batch for each run
        from_resized: END_TO_END leaves out STAGES' two ends, "resize" and "download"
        runs: how many; None for as many as begin within `seconds`
    """
    time_stages(model, next(batches))
    start = time.perf_counter()
    for count in itertools.count(1):
        # Both kinds in turn, so that they meet the same state of the machine.
        originals = next(batches)
        times = time_stages(model, originals)
        yield times | {END_TO_END: time_whole(model, originals, from_resized)}
        if count == runs or runs is None and time.perf_counter() - start > seconds:
            break


def time_whole(model: FastInst, originals: list[np.ndarray], from_resized: bool) -> float:
    device = model.positions.weight.device
    resized = resize(model, originals) if from_resized else None
    synchronize(device)
    start = time.perf_counter()
    _ = whole(model, originals, resized)  # kept: freeing the masks is not part of the work
    synchronize(device)
    return 1000 * (time.perf_counter() - start)


def time_stages(model: FastInst, originals: list[np.ndarray]) -> dict[str, float]:
    device = model.positions.weight.device
    synchronize(device)
    marks = [mark(device), *(mark(device) for _ in staged(model, originals))]
    synchronize(device)
    times = (milliseconds(*pair) for pair in itertools.pairwise(marks))
    return dict(zip(STAGES, times, strict=True))


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
    if device.type == "cuda":
        torch.cuda._sleep(LAUNCH_CYCLES)
    start = mark(device)
    results = [call() for call in calls]
    end = mark(device)
    synchronize(device)
    del results  # not before: freeing them is not part of the work
    return milliseconds(start, end) / len(calls)


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


def summarize(runs: list[dict[str, float]], batch_size: int) -> dict[str, dict[str, float]]:
    """Of each stage: percentiles, mean, and the paper's FPS, which is images over total time."""
    stages = {}
    for stage in runs[0]:
        times = [run[stage] for run in runs]
        median, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
        mean = statistics.fmean(times)
        row = {"median_ms": median, "p95_ms": p95, "p99_ms": p99, "mean_ms": mean}
        stages[stage] = row | {"fps": 1000 * batch_size / mean}
    return stages
