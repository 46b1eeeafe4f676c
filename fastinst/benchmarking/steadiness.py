"""Whether the machine kept its speed while it was measured."""

import statistics
import subprocess
import time
from pathlib import Path

import torch

from fastinst.records import query_gpu
from fastinst.timing import time_calls

CPU = Path("/sys/devices/system/cpu")
# nvidia-smi's clocks_event_reasons.active; what is no reason to doubt a measurement is left out.
SLOWDOWNS = {
    0x04: "its power limit",
    0x08: "a hardware slowdown",
    0x20: "its temperature (driver)",
    0x40: "its temperature (hardware)",
    0x80: "the power supply's brake",
}
QUERY = "clocks_event_reasons.active,clocks.sm,temperature.gpu,power.draw"
SECONDS_BETWEEN_QUERIES = 1.0
# The median of the last third of the calibrations may be so many times the first third's.
TOLERATED = 1.1


class Steadiness:
    """Times the same product of matrices between measurements, and asks the hardware.

    The products take milliseconds.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.times: list[float] = []  # milliseconds
        self.reasons: set[str] = set()
        self._side = torch.randn(*([2048] * 2 if device.type == "cuda" else [512] * 2)).to(device)
        self._throttled_before = core_throttle_count()
        self._query: subprocess.Popen | None = None
        self._asked = 0.0

    def sample(self) -> None:
        self.times.append(time_calls([lambda: self._side @ self._side] * 4, self.device))
        if self.device.type == "cuda":
            self._ask_gpu()

    def findings(self) -> list[str]:
        """What speaks against the measurement, in words; nothing if it is fine."""
        found = []
        third = len(self.times) // 3
        if third:
            first, last = self.times[:third], self.times[-third:]
            ratio = statistics.median(last) / statistics.median(first)
            if ratio > TOLERATED:
                found.append(
                    f"the same work took {ratio:.2f} times as long at the end as at the beginning: "
                    "throttling, or other programs"
                )
        if core_throttle_count() > self._throttled_before:
            found.append("the CPU lowered its clock because of its temperature")
        if self._query is not None:
            self._read_answer(wait=True)
        if self.reasons:
            found.append(f"the GPU lowered its clock because of {', '.join(sorted(self.reasons))}")
        return found

    def _ask_gpu(self) -> None:
        """In a process that is not waited for, so that it answers while the GPU works."""
        if self._query is not None:
            self._read_answer(wait=False)
        if self._query is None and time.monotonic() - self._asked > SECONDS_BETWEEN_QUERIES:
            self._asked = time.monotonic()
            self._query = query_gpu(self.device, QUERY)

    def _read_answer(self, wait: bool) -> None:
        if not wait and self._query.poll() is None:
            return
        active = self._query.communicate()[0].partition(",")[0].strip()
        self._query = None
        if active.startswith("0x"):
            bits = int(active, 16)
            self.reasons |= {text for bit, text in SLOWDOWNS.items() if bits & bit}


def core_throttle_count() -> int:
    """How often the CPU's cores were too hot since the machine started; 0 where nobody counts."""
    files = CPU.glob("cpu*/thermal_throttle/core_throttle_count")
    return sum(int(file.read_text()) for file in files)
