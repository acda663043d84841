"""The marker of a window, the stream of events, and signals."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

LINE = "7e57 2026-01-01T00:00:00.5Z pause 1795857045 1795857275 10 20261128_091045"
FIELDS = {
    "format": 2,
    "tracker": "7e57",
    "started": "2026-01-01T00:00:00.5Z",
    "action": "pause",
    "opened": 1795857045,
    "deadline": 1795857275,
    "stop_timeout": 10,
    "run": "20261128_091045",
}


def test_a_marker_is_read_as_it_was_written_and_in_the_older_format(tool: ModuleType) -> None:
    marker = tool.window.Marker.decode(json.dumps(FIELDS))
    assert json.loads(marker.encode()) == FIELDS
    assert tool.window.Marker.decode(marker.encode()) == marker
    assert tool.window.Marker.decode(LINE + "\n") == marker


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"format": True},
        {"tracker": "--help"},
        {"action": "rm"},
        {"opened": "$(touch x)"},
        {"opened": -1},
        {"opened": 1.5},
        {"deadline": [1]},
        {"run": "../../etc"},
        {"stop_timeout": 10**7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_marker_that_is_not_as_expected_is_refused(
    tool: ModuleType, change: dict[str, Any]
) -> None:
    with pytest.raises(tool.documents.BadDocument, match=r"is damaged: |is of format 3"):
        tool.window.Marker.decode(json.dumps(FIELDS | change))
    for key in change.keys() & FIELDS.keys() - {"format"}:
        with pytest.raises(tool.documents.BadDocument, match=f"{key} is missing"):
            tool.window.Marker.decode(json.dumps({k: v for k, v in FIELDS.items() if k != key}))


@pytest.mark.parametrize("content", [b"[" * 4000, b"{", b"\xff\xfe", b"[]", LINE[1:].encode()[:40]])
def test_a_damaged_marker_says_what_to_do(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "window").write_bytes(content)
    monkeypatch.setattr(tool.documents, "STATE", tmp_path)
    with pytest.raises(tool.host.Refused, match=r"is damaged.*then remove it") as refused:
        tool.window.recover()
    assert refused.value.code == 4
    assert not tool.window.is_overdue()


# ---------------------------------------------------------------- events


def stream(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, script: str) -> Any:
    """Events of a Docker that is this script."""
    start = tool.docker.start
    monkeypatch.setattr(
        tool.tracker, "start", lambda _command, **more: start(["sh", "-c", script], **more)
    )
    monkeypatch.setattr(tool.tracker, "EVENT_SECONDS", 0.5)
    monkeypatch.setattr(tool.tracker, "QUIET_SECONDS", 0.1)
    return tool.tracker.Events("7e57", time.time())


@pytest.mark.parametrize(
    ("script", "started", "changes"),
    [
        ("echo 200 start; sleep 9", True, []),
        ("echo 50 unpause; echo 200 unpause; sleep 9", True, ["unpause"]),
        ("sleep 9", True, None),  # our own start did not arrive
        ("sleep 9", False, []),
        ("echo 50 start; sleep 9", False, ["start"]),
        ("true", True, None),  # the stream ended early
        ("echo 50 start", False, None),
        ("echo 'Error: no daemon'; sleep 9", True, None),
    ],
)
def test_what_a_stream_of_events_tells_of_the_capture(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    started: bool,
    changes: list[str] | None,
) -> None:
    events = stream(tool, monkeypatch, script)
    try:
        assert events.until(100, started) == changes
    finally:
        tool.docker.end(events.process)
    assert events.process.returncode is not None


@pytest.mark.parametrize(
    ("status", "started", "waits"),
    [("exited", "before", True), ("running", "later", False), ("exited", "later", False)],
)
def test_events_are_waited_for_only_if_the_state_shows_no_change(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, status: str, started: str, waits: bool
) -> None:
    asked: list[bool] = []
    tracker = tool.tracker.Tracker("7e57", "running", "before", "0", "")
    host = SimpleNamespace(window_timeout=30)
    window = tool.window.Window(host, FIELDS["run"], "stop", tracker, 0, None)
    found = tool.tracker.Tracker("7e57", status, started, "0", "")
    window.outage, window.closed = SimpleNamespace(found=found, started=True), True
    window.events = SimpleNamespace(process=None, until=lambda _, own: asked.append(own))
    monkeypatch.setattr(tool.window, "end", lambda _process: None)
    window.leave(None)
    assert asked == [True] * waits


# ---------------------------------------------------------------- signals


@pytest.fixture
def signals(tool: ModuleType) -> Iterator[Any]:
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    fresh = tool.signals.Signals()
    fresh.catch()
    yield fresh
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_ends_the_run_once(tool: ModuleType, signals: Any) -> None:
    with pytest.raises(tool.signals.Ended) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("failure", [None, ValueError("no answer")])
def test_a_signal_waits_for_the_end_of_a_block(
    tool: ModuleType, signals: Any, failure: Exception | None
) -> None:
    done = []
    with pytest.raises(tool.signals.Ended), signals.held():
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
        if failure:
            raise failure
    assert done == ["inner", "outer"]


def test_a_signal_during_the_cleaning_up_is_ignored(signals: Any) -> None:
    signals.ignore()
    with signals.held():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.pending == signal.SIGTERM


def test_a_signal_just_before_the_window_closes_does_not_leave_it_open(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = tool.window.Window.__new__(tool.window.Window)
    calls: list[BaseException | None] = []

    def leave(error: BaseException | None) -> None:
        calls.append(error)
        if not error:
            raise tool.signals.Ended(signal.SIGTERM)

    monkeypatch.setattr(window, "leave", leave)
    with pytest.raises(tool.signals.Ended) as ended:
        window.__exit__(None, None)
    assert calls == [None, ended.value]


def test_a_signal_before_the_end_of_the_window_begins_does_not_leave_it_open(
    tool: ModuleType, signals: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, left = tool.run.Run(dry_run=False), list[BaseException]()
    run.host = SimpleNamespace(scope="full", staging=tmp_path)
    run.window = SimpleNamespace(leave=left.append)
    for name, value in {
        "driver_of": lambda _: SimpleNamespace(SOURCE="reader"),
        "read_runs": lambda _: [],
        "IN_SIDECAR": True,
        "fault_point": lambda *_: None,
        "Role": lambda *_: nullcontext(),
        "signals": signals,
    }.items():
        monkeypatch.setattr(tool.capture, name, value)
    with pytest.raises(tool.signals.Ended) as ended, tool.capture.capturing(run):
        os.kill(os.getpid(), signal.SIGTERM)
    assert left == [ended.value]


def test_a_signal_after_a_failure_does_not_keep_the_run_from_cleaning_up(
    tool: ModuleType, signals: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended: list[tuple[int, str]] = []
    ignore = signals.ignore

    def late() -> None:
        monkeypatch.setattr(signals, "ignore", ignore)
        os.kill(os.getpid(), signal.SIGTERM)
        ignore()

    def work(_: Any) -> None:
        raise tool.host.Refused("no space")

    monkeypatch.setattr(signals, "ignore", late)
    monkeypatch.setattr(tool.run, "signals", signals)
    monkeypatch.setattr(tool.log, "LOG", tmp_path / "log")
    monkeypatch.setattr(tool.run, "end_run", lambda _, code, why: ended.append((code, why)))
    assert tool.run.supervise("maintenance-backup", tool.run.Run(dry_run=False), work) == 143
    assert ended == [(143, "ended by a signal")]


def test_a_host_without_free_processes_is_no_answer_of_docker(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(tool.docker.subprocess, "Popen", refuse)
    assert not tool.tracker.answers("unpause", "7e57")
    assert tool.tracker.look("7e57") is None
