"""Ending a run between two steps: Ctrl-C, SIGTERM and a time limit."""

import os
import re
import signal
import time

from fastinst.errors import InputError

ECHO_S = 1.0  # within which a signal is the first one again: torchrun passes on what all have got
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Interrupts:
    """Catches a first Ctrl-C or SIGTERM, so that the run can save; a later one ends it at once.

    time_limit_s: seconds that the run may take in all; None for any number
    started: when they began, by `time.monotonic()` [now]
    reserve_s: how long one more step and the saving after it take. The limit counts as reached
        this much earlier; set it as soon as that is measured.
    quiet: do not tell when a signal comes
    """

    def __init__(
        self,
        time_limit_s: float | None = None,
        started: float | None = None,
        quiet: bool = False,
    ):
        self.reserve_s = 0.0
        self._end = None
        if time_limit_s is not None:
            self._end = (time.monotonic() if started is None else started) + time_limit_s
        self._quiet = quiet
        self._signal: str | None = None
        self._received_at = 0.0
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            self._received_at = now
            if not self._quiet:
                # print() fails in a signal handler if it has interrupted another print().
                os.write(2, f"\n{self._signal}: saving after this step; again: at once\n".encode())
        elif now > self._received_at + ECHO_S:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    @property
    def reason(self) -> str | None:
        """Why this process should stop now ("Ctrl-C", "SIGTERM", "the time limit"), or None."""
        if self._signal is None and self._end is not None:
            if time.monotonic() + self.reserve_s >= self._end:
                return "the time limit"
        return self._signal

    @property
    def received(self) -> bool:
        """Whether this process should stop now. Others may not know: ask all of them together."""
        return self.reason is not None


def parse_duration(text: str) -> float:
    """Seconds of "90s", "55m", "2h", "1d", "1.5h" or "1h30m".

    Raises InputError for any other text, a bare number among them, and for no time at all.
    """
    found = re.fullmatch(r"(?:[0-9]+(?:\.[0-9]+)?[dhms])+", text.replace(" ", "").lower())
    parts = re.findall(r"([0-9.]+)([dhms])", found[0]) if found else []
    units = [unit for _, unit in parts]
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    # From large to small, each once: "30m1h" and "5m5m" are likelier a slip than meant.
    if not seconds or units != sorted(set(units), key="dhms".index):
        raise InputError(f"{text!r} is no time; write it as 90s, 55m, 2h or 1h30m")
    return seconds
