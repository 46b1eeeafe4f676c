"""The weights of the reference fixtures, computed from the release's parameter names.

No weight file is stored: a value depends on the seed, the name and the index alone.
"""

import math
import zlib

import numpy as np

# SplitMix64 (Steele, Lea and Flood, 2014): the increment and the rounds of its finaliser.
_INCREMENT = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def fixture_weight(name: str, shape: list[int], seed: int) -> np.ndarray:
    """float32 value of the tensor that the release calls `name`."""
    unit = _noise(f"{seed}:{name}", math.prod(shape)).reshape(shape)
    return _scaled(name, unit).astype(np.float32)


def _noise(key: str, count: int) -> np.ndarray:
    """float32 in [-1, 1), multiples of 2**-23."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        first = np.uint64((zlib.crc32(key.encode()) << 20) + 1)
        state = (np.arange(count, dtype=np.uint64) + first) * np.uint64(_INCREMENT)
        for shift, factor in _ROUNDS:
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return (np.ldexp((state >> np.uint64(40)).astype(np.float64), -23) - 1).astype(np.float32)


def _scaled(name: str, unit: np.ndarray) -> np.ndarray:
    """Noise to values with which activations keep a sensible size through the network."""
    last = name.split(".")[-1]
    if last.startswith("running_"):
        return 0.2 * unit + (last == "running_var")
    if "conv2_offset" in name:
        return 1.5 * unit if last == "bias" else 0.15 * unit / np.sqrt(unit.shape[1])
    if last == "bias":
        return 0.1 * unit - np.float32(0.9 * ("pixel_decoder" in name and ".norm." in name))
    if unit.ndim == 1:
        return 0.7 + 0.2 * unit
    if "embed" in name and "layers" not in name:
        return unit
    rows = unit.reshape(len(unit), -1)
    residual = "out_proj" in name or "linear2" in name
    gain = np.sqrt((0.6 if residual else 6.0) / rows.shape[1])
    return (gain * (rows - rows.mean(axis=1, dtype=np.float64, keepdims=True))).reshape(unit.shape)
