"""How the operators are timed beside their rivals (`fastinst.rivals`)."""

import ctypes
from collections.abc import Iterator

import numpy as np
import torch

from fastinst.ops import active_kernels
from fastinst.rivals import CASES, Case
from fastinst.timing import measure_in_turn

CSV_HEADER = (
    "date,machine,device,torch,threads,commit,command,op,case,dtype,rival,median_ms,p95_ms,ratio"
)
# A GPU's second-level cache is as large as an operator's inputs. So many sets of them, used one
# after the other, are not found in it, as in the model.
CUDA_COPIES = 8
# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def measure_ops(
    device: torch.device, dtype: torch.dtype, only: str | None, seconds: float
) -> Iterator[dict]:
    """Yields what has been measured of each case, after about `seconds` each.

    The dict has "op", "case", "dtype", "skipped": {rival: why}, "exact": {rival: whether it gives
    the same bits} and "rivals": {rival: {"median_ms", "p95_ms", "ratio", "runs"}}, where ratio is
    the median over the kernel's, None without a kernel.
    """
    if device.type == "cpu":
        keep_freed_memory()
    compiled = active_kernels(device.type)
    for name in [only] if only else CASES:
        torch.manual_seed(0)
        copies = CUDA_COPIES if device.type == "cuda" else 1
        for cases in zip(*(CASES[name](device, dtype) for _ in range(copies)), strict=True):
            with torch.inference_mode(not cases[0].op.endswith("_backward")):
                entry = _measure_case(cases, device, compiled, seconds)
            yield entry | {"dtype": str(dtype).removeprefix("torch.")}


def _measure_case(
    cases: tuple[Case, ...], device: torch.device, compiled: dict[str, str], seconds: float
) -> dict:
    first, skipped, results = cases[0], dict(cases[0].absent), {}
    for rival, call in first.rivals.items():
        if rival.startswith("kernel") and compiled[first.op] != "compiled":
            skipped[rival] = f"{first.op} is not compiled for {device.type}"
            continue
        try:
            results[rival] = call()
        except RuntimeError as error:
            if rival.startswith("kernel"):
                raise
            skipped[rival] = str(error).partition("\n")[0]
    expected = _first(next(iter(results.values())))
    exact = {rival: _same(_first(result), expected) for rival, result in results.items()}
    calls = {rival: [case.rivals[rival] for case in cases] for rival in results}
    del results, expected

    times = measure_in_turn(calls, device, seconds)
    rows = {}
    for rival, runs in times.items():
        median, p95 = np.percentile(runs, (50, 95)).tolist()
        ratio = median / np.median(times["kernel"]).item() if "kernel" in times else None
        rows[rival] = {"median_ms": median, "p95_ms": p95, "ratio": ratio, "runs": len(runs)}
    return {
        "op": first.op,
        "case": first.name,
        "skipped": skipped,
        "exact": exact if first.exact else {},
        "rivals": rows,
    }


def keep_freed_memory() -> None:
    """What is freed stays with this process: glibc only.

    It gives large blocks back, or not, depending on all that was allocated before. A rival with
    temporaries of tens of megabytes takes twice the time if it gets its memory anew every time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 1 << 30)


def _first(result: object) -> object:
    return result[0] if isinstance(result, tuple) else result


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def print_case(entry: dict) -> None:
    print(f"\n{entry['op']}: {entry['case']}, {entry['dtype']}")
    for rival, row in entry["rivals"].items():
        ratio = "" if row["ratio"] is None else f"{row['ratio']:8.2f}x"
        bits = {True: "  same bits", False: "  other bits"}.get(entry["exact"].get(rival), "")
        print(f"  {rival:38}{row['median_ms']:10.3f} ms{row['p95_ms']:10.3f} p95{ratio}{bits}")
    for rival, reason in entry["skipped"].items():
        print(f"  {rival:38}skipped: {reason}")


def rows(report: dict) -> Iterator[dict]:
    """Those of the CSV: one for each rival of each case."""
    for entry in report["cases"]:
        for rival, numbers in entry["rivals"].items():
            yield report | entry | numbers | {"rival": rival}
