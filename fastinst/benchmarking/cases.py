"""One model at one size with one batch size, by all variants in turn."""

import numpy as np
import torch

from fastinst.benchmarking.cost import count_cost, working_memory
from fastinst.benchmarking.measurement import measure, running, summarize, time_whole, warm_up
from fastinst.benchmarking.steadiness import Steadiness
from fastinst.benchmarking.variants import Variant


def measure_case(
    variants: list[Variant],
    batches: list[list[np.ndarray]],
    protocol: str,
    warmup: int | None,
    rounds: int | None,
    seconds: float,
) -> dict:
    """What has been measured; all of it that there is, if an interrupt ends it.

    Args:
        batches: uint8 [H, W, 3] images, of one number in each batch
        protocol: a key of `measurement.PROTOCOLS`
        warmup: runs before the measured ones; None for until they are stable
        rounds: of all variants; None for as many as begin within `seconds` for each variant

    Returns:
        "model", "batch", "protocol", "input", "parameters", "flops", "interrupted", "unsteady"
        (what speaks against the measurement, in words) and "variants", a list of dicts with
        "variant", "network" (how it computes, in words), "dtype", "warmup_runs", "stable",
        "working_memory" (bytes or None), "ap" (None), "runs" and "stages", of each stage a dict
        with "median_ms", "p95_ms", "p99_ms", "mean_ms", "fps" and "ratio": how many times as long
        the release takes, None without the release
    """
    config, device = variants[0].network.config, variants[0].device
    batch_size = len(batches[0])
    case = {"model": config.name, "batch": batch_size, "protocol": protocol, "variants": []}
    case |= count_cost(config, [variants[0].resize(image) for image in batches[0]])
    steadiness = Steadiness(device)
    prepared, times = {}, []
    try:
        for variant in variants:
            count, stable = warm_up(variant, batches, protocol, warmup)
            memory = working_memory(lambda v=variant: time_whole(v, batches[0], protocol), device)
            with running(variant):
                described = variant.describe()
            prepared[variant.name] = {
                "variant": variant.name,
                "network": described,
                "dtype": variant.dtype,
                "warmup_runs": count,
                "stable": stable,
                "working_memory": memory,
                "ap": None,
            }
        for row in measure(
            variants, batches, protocol, rounds, seconds * len(variants), steadiness
        ):
            times.append(row)
        case["interrupted"] = False
    except KeyboardInterrupt:
        case["interrupted"] = True
    if not times:
        return case
    stages = {name: summarize([row[name] for row in times], batch_size) for name in prepared}
    for name, entry in prepared.items():
        for stage, row in stages[name].items():
            release = stages.get("release", {}).get(stage)
            row["ratio"] = release["median_ms"] / row["median_ms"] if release else None
        case["variants"].append(entry | {"runs": len(times), "stages": stages[name]})
    case["unsteady"] = steadiness.findings()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what one case keeps is not the next one's
    return case
