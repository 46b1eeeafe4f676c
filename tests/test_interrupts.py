"""Signals and time limits as the training loop meets them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinst.errors import InputError
from fastinst.training.interrupts import Interrupts, parse_duration

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@pytest.fixture(autouse=True)
def handlers():
    before = {s: signal.getsignal(s) for s in NAMES}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", NAMES)
def test_a_signal_is_kept_for_the_end_of_the_step(signum):
    interrupts = Interrupts()
    assert not interrupts.received and interrupts.reason is None
    os.kill(os.getpid(), signum)
    assert interrupts.received and interrupts.reason == NAMES[signum]


@pytest.mark.parametrize("quiet", [True, False])
def test_the_second_signal_ends_the_process(quiet):
    """But not the first one again, which torchrun passes on to processes that have got it."""
    code = (
        "import os, signal, time; from fastinst.training import interrupts;"
        "interrupts.ECHO_S = 0.2;"
        f"i = interrupts.Interrupts(quiet={quiet});"
        "os.kill(os.getpid(), signal.SIGTERM); assert i.received; print('first', flush=True);"
        "os.kill(os.getpid(), signal.SIGTERM); print('again', flush=True); time.sleep(0.3);"
        "os.kill(os.getpid(), signal.SIGTERM); print('second')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "first\nagain\n"), done.stderr
    told = "" if quiet else "SIGTERM: saving after this step; again: at once"
    assert done.stderr.strip() == told


def test_a_time_limit_counts_from_the_start_and_leaves_time_to_save(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    interrupts = Interrupts(time_limit_s=60)
    early = Interrupts(time_limit_s=60, started=980.0)
    now = 1039.9
    assert not interrupts.received and not early.received
    now = 1040.0
    assert not interrupts.received and early.reason == "the time limit"
    interrupts.reserve_s = 15.0
    now = 1044.9
    assert not interrupts.received
    now = 1045.0
    assert interrupts.received
    now = 1e9
    assert not Interrupts().received


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("55m", 3300), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("1h30m", 5400)]
    + [("1d2h3m4.5s", 93784.5), (" 2 H ", 7200)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "3600", "m", "0s", "-5m", "5 minutes", "1e3s", "30m1h", "5m5m", "1..5h", "٣m", "nan s"],
)
def test_what_is_no_duration(text):
    with pytest.raises(InputError, match="write it as 90s, 55m, 2h or 1h30m"):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_positive_time_or_an_input_error(text):
    try:
        assert parse_duration(text) > 0
    except InputError:
        pass


@given(st.lists(st.integers(0, 99), min_size=4, max_size=4).filter(any))
def test_parts_add_up(numbers):
    text = "".join(f"{number}{unit}" for number, unit in zip(numbers, "dhms", strict=True))
    days, hours, minutes, seconds = numbers
    assert parse_duration(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds
