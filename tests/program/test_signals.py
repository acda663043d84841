"""Signals: the run ends with 128 and the signal's number, and the tracker is back."""

from __future__ import annotations

import os
import re
import signal
import time
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

import pytest

from program.host import STARTED, Host

# The engine goes on although its client dies, and tells the test that it began.
SLOW = {
    "stop": "later(0.5, lambda: (stopped(137), happened('stop'))); hang(1)",
    "pause": "later(0.5, lambda: (become('paused'), happened('pause'))); hang(1)",
}
UNTOUCHED = ("preflight", "build")


@pytest.mark.parametrize(
    ("number", "quiesce", "event"),
    [
        (SIGTERM, "stop", "preflight"),
        (SIGHUP, "stop", "preflight"),
        (SIGTERM, "stop", "build"),
        (SIGTERM, "stop", "capture"),
        (SIGINT, "stop", "capture"),
        (SIGHUP, "stop", "capture"),
        (SIGTERM, "pause", "capture"),
        (SIGTERM, "stop", "stop"),
        (SIGTERM, "pause", "pause"),
        (SIGTERM, "stop", "examine"),
        (SIGINT, "stop", "examine"),
        (SIGHUP, "stop", "archive"),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else None,
)
def test_a_signal_ends_the_run_with_the_tracker_back_and_nothing_published(
    host: Host, number: signal.Signals, quiesce: str, event: str
) -> None:
    host.configure(QUIESCE=quiesce)
    if event == "build":
        (host.stub / "images").write_text("")
    host.on(event, SLOW.get(event, "hang()"))
    process = host.start_until_hanging()
    process.signal_group(number)
    end = f"exit code {128 + number}: ended by a signal"
    process.finish().ends_with(128 + number, end)
    assert end in host.log.read_text()
    host.recorded("failed", exit_code=128 + number, reason=re.compile("signal"))
    host.failed_safely()
    assert host.lock_is_free()
    if event in UNTOUCHED:
        host.tracker_was_left_alone()
    elif event in ("capture", "examine", "archive"):
        undo = "start" if quiesce == "stop" else "unpause"
        host.calls_in_order(f"^docker {quiesce} .*7e57$", f"^docker {undo} 7e57$")


def test_a_signal_acts_at_once_on_a_capture_that_hangs(host: Host) -> None:
    host.on("capture", "hang()")
    process = host.start_until_hanging()
    sent = time.monotonic()
    process.signal(SIGTERM)
    process.finish().ends_with(143)
    assert time.monotonic() - sent < 6


@pytest.mark.parametrize("number", [SIGTERM, SIGINT], ids=lambda one: one.name)
def test_the_tracker_comes_back_after_a_stop_that_docker_goes_on_with(
    host: Host, number: signal.Signals
) -> None:
    """Its client died of the signal. A start before the end of the stop has no effect."""
    host.on("stop", "later(1.5, lambda: stopped(137)); hang()")
    process = host.start_until_hanging()
    process.signal(number)
    for client in host.hanging():
        os.kill(client, SIGKILL)
    process.finish().ends_with(128 + number)
    host.failed_safely()
    assert host.tracker("started") != STARTED


def test_the_tracker_comes_back_after_a_stop_whose_client_died(host: Host) -> None:
    host.on("stop", "later(1, lambda: stopped(137)); os.kill(os.getpid(), signal.SIGKILL)")
    host.run().ends_with(1)
    host.failed_safely()
    assert host.tracker("started") != STARTED


def test_a_second_signal_does_not_stop_the_tracker_from_coming_back(host: Host) -> None:
    host.on("capture", "hang()")
    host.on("start", "touch('starting'); time.sleep(0.5)")
    process = host.start_until_hanging()
    process.signal_group(SIGTERM)
    host.wait_for("starting")
    process.signal_group(SIGINT)
    process.signal_group(SIGTERM)
    process.finish().ends_with(143)
    host.failed_safely()
