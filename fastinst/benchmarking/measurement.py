"""Variants timed in turn, by stage and end to end, in milliseconds."""

import contextlib
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch

from fastinst.benchmarking.steadiness import Steadiness
from fastinst.benchmarking.variants import Variant, download
from fastinst.timing import is_stable, launch_ahead, mark, milliseconds, synchronize

END_TO_END = "end to end"
# What end to end spans.
PROTOCOLS = {
    "paper": "from the resized image in host memory to masks of the original image's size on the "
    "device, without reading, decoding and resizing the image",
    "deploy": "from the original image in host memory to results of its size in host memory, "
    "without reading and decoding the image",
}
# Stages that the protocol "paper" leaves out.
OUTSIDE_PAPER = ("resize", "download")
# Of warming up: a GPU's clock takes about a second to rise; a busy machine may never be stable.
LEAST_SECONDS, MOST_SECONDS = 1, 20

Images = list[np.ndarray]
Times = dict[str, float]


def warm_up(
    variant: Variant, batches: list[Images], protocol: str, runs: int | None
) -> tuple[int, bool]:
    """Runs every batch twice, then until times are stable; or exactly `runs`.

    Twice, for a CUDA graph is captured when a shape comes for the second time.
    Returns how many runs there were, and whether the last were stable.
    """
    times, start = [], time.perf_counter()
    while runs is None or len(times) < runs:
        times.append(time_whole(variant, batches[len(times) % len(batches)], protocol))
        seconds = time.perf_counter() - start
        if runs is None and len(times) >= 2 * len(batches):
            if seconds > MOST_SECONDS or seconds > LEAST_SECONDS and is_stable(times):
                break
    return len(times), is_stable(times)


def measure(
    variants: list[Variant],
    batches: list[Images],
    protocol: str,
    rounds: int | None,
    seconds: float,
    steadiness: Steadiness,
) -> Iterator[dict[str, Times]]:
    """Yields for each round, by the variants' names, the times of the stages and of END_TO_END.

    All variants take their turn in a round, A B C A B C, with the same images, so that they meet
    the same state of the machine.

    Args:
        batches: uint8 [H, W, 3] images, one batch for each round, over and over
        rounds: how many; None for as many as begin within `seconds`, and three at least
        steadiness: is asked once in a round
    """
    for variant in variants:  # the stages, which may take another way than the whole
        time_stages(variant, batches[0])
    start = time.perf_counter()
    count = 0
    while count < (rounds or 3) or rounds is None and time.perf_counter() - start < seconds:
        originals = batches[count % len(batches)]
        steadiness.sample()
        yield {
            variant.name: time_stages(variant, originals)
            | {END_TO_END: time_whole(variant, originals, protocol)}
            for variant in variants
        }
        count += 1


def time_whole(variant: Variant, originals: Images, protocol: str) -> float:
    sizes = [image.shape[:2] for image in originals]
    with running(variant):
        if protocol == "paper":
            resized = [variant.resize(image) for image in originals]
        synchronize(variant.device)
        start = time.perf_counter()
        if protocol != "paper":
            resized = [variant.resize(image) for image in originals]
        found = variant.infer(resized, sizes)
        if protocol != "paper":
            found = download(found)
        synchronize(variant.device)
        duration = 1000 * (time.perf_counter() - start)
        del found  # not before: freeing the masks is not part of the work
    return duration


def time_stages(variant: Variant, originals: Images) -> Times:
    """A GPU's on its own time line, without the gaps of launching."""
    with running(variant):
        synchronize(variant.device)
        start, marks = mark(variant.device), []
        for stage, _ in variant.stages(originals):
            end = mark(variant.device)
            marks.append((stage, start, end))
            if stage == "preprocess":
                launch_ahead(variant.device)
                end = mark(variant.device)
            start = end
        synchronize(variant.device)
    return {stage: milliseconds(start, end) for stage, start, end in marks}


@contextlib.contextmanager
def running(variant: Variant) -> Iterator[None]:
    """Where a variant is to run."""
    with torch.inference_mode(), variant.scope():
        yield


def summarize(runs: list[Times], batch_size: int) -> dict[str, Times]:
    """Of each stage: percentiles, mean, and the paper's FPS, which is images over total time."""
    stages = {}
    for stage in runs[0]:
        times = [run[stage] for run in runs]
        median, p95, p99 = np.percentile(times, (50, 95, 99)).tolist()
        mean = statistics.fmean(times)
        row = {"median_ms": median, "p95_ms": p95, "p99_ms": p99, "mean_ms": mean}
        stages[stage] = row | {"fps": 1000 * batch_size / mean}
    return stages
