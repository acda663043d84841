"""Failures inside the window: the tracker comes back, and nothing is published."""

from __future__ import annotations

import re
import time

import pytest

from program.host import Host


@pytest.fixture(autouse=True)
def short_patience(host: Host) -> None:
    """How long a run tries to bring the tracker back, and waits for events of Docker."""
    host.set("BRING_BACK_SECONDS", 1)
    host.set("EVENT_SECONDS", 1)


def epochs(marker: str) -> list[int]:
    """The moments in a window's marker, in seconds since 1970, the earliest first."""
    return sorted(int(number) for number in re.findall(r"(?<![\d_])1\d{9}(?![\d_])", marker))


def test_a_failed_capture_brings_the_tracker_back_ends_with_1_and_publishes_nothing(
    host: Host,
) -> None:
    host.on("capture", "refuse('disk quota exceeded')")
    host.run().ends_with(1, "disk quota exceeded")
    host.calls_in_order("^docker stop", "^job capture ", "^docker start 7e57$")
    host.never_called("^job examine")
    host.recorded("failed", exit_code=1, reason="disk quota exceeded", files=[])
    host.failed_safely()


def test_a_failed_capture_unpauses_a_paused_tracker(host: Host) -> None:
    host.configure(QUIESCE="pause")
    host.on("capture", "fail('killed')")
    host.run().ends_with(1)
    host.calls_in_order("^docker pause 7e57", "^docker unpause 7e57")
    host.never_called("^docker start")
    host.failed_safely()


def test_a_failed_online_capture_leaves_the_tracker_alone(host: Host) -> None:
    host.configure(QUIESCE="none")
    host.on("capture", "refuse('disk quota exceeded')")
    host.run().ends_with(1)
    host.tracker_was_left_alone()
    host.recorded("failed")


# ---------------------------------------------------------------- time limits


def test_a_capture_that_is_not_over_in_time_is_ended_and_the_tracker_comes_back(
    host: Host,
) -> None:
    """Stopping and capturing have two thirds of the window."""
    host.configure(WINDOW_TIMEOUT_SECONDS="3")
    host.on("capture", "hang()")
    outcome = host.run().ends_with(1)
    assert re.search("limit of [12] s", outcome.output), outcome.output
    host.was_called("^docker start 7e57$")
    host.was_called("^docker rm .*tracker-backup-")
    assert host.recorded("failed")["window_seconds"] < 10
    host.failed_safely()


def test_a_run_that_hangs_is_left_to_the_recovery_early_enough_for_a_window_of_300_s(
    host: Host,
) -> None:
    """The marker has the deadline after which another process recovers the run."""
    host.configure(WINDOW_TIMEOUT_SECONDS="300")
    host.on("stop", "(STUB / 'marker').write_text((STATE / 'window').read_text())")
    host.run().ends_with(0)
    opened, *_, deadline = epochs((host.stub / "marker").read_text())
    assert abs(opened - time.time()) < 60
    assert 200 <= deadline - opened < 240


def test_a_stop_that_took_the_whole_window_leaves_no_capture_to_begin(host: Host) -> None:
    host.configure(WINDOW_TIMEOUT_SECONDS="2")
    host.on("stop", "time.sleep(1.1)")
    host.run().ends_with(1)
    host.never_called("^job capture ")
    host.failed_safely()


# ---------------------------------------------------------------- Docker refuses


@pytest.mark.parametrize(
    ("quiesce", "text"), [("stop", "could not be stopped"), ("pause", "could not be paused")]
)
def test_a_stop_or_pause_that_fails_leaves_a_running_tracker(
    host: Host, quiesce: str, text: str
) -> None:
    host.configure(QUIESCE=quiesce)
    host.on(quiesce, "fail('no')")
    host.run().ends_with(1, text)
    host.never_called("^job capture ")
    host.failed_safely()


@pytest.mark.parametrize(
    ("quiesce", "change", "after"),
    [
        pytest.param("stop", "started()", "running", id="started"),
        pytest.param("stop", "started(); stopped(0)", "running", id="started and stopped again"),
        pytest.param("pause", "become('running'); happened('unpause')", "running", id="unpaused"),
        pytest.param("pause", "happened('unpause')", "running", id="unpaused and paused again"),
        pytest.param("pause", "stopped(0); happened('stop')", "exited", id="paused and stopped"),
        pytest.param("stop", "set_tracker(id='5e7e'); started()", "running", id="replaced"),
        pytest.param("stop", "remove_tracker()", "exited", id="removed"),
        pytest.param("stop", "add_tracker('5e7e')", "running", id="a second one"),
    ],
)
def test_a_tracker_that_somebody_changed_during_the_capture_fails_the_run(
    host: Host, quiesce: str, change: str, after: str
) -> None:
    """The capture itself goes well, but its copy may be torn."""
    host.configure(QUIESCE=quiesce)
    host.on("capture", change)
    outcome = host.run().ends_with(1, "changed during the capture")
    host.recorded("failed", reason=re.compile("changed during the capture"))
    host.never_called("^job examine ")
    host.nothing_was_published()
    host.nothing_is_left()
    assert not host.marker.exists()
    host.tracker_is(after)
    if after == "exited":
        host.never_called("^docker (start|unpause) 7e57")
    host.never_called("docker (start|stop|unpause) 5e7e")
    if "happened('stop')" in change:
        outcome.says("stopped by somebody")


def test_when_docker_does_not_tell_what_happened_the_copy_is_discarded(host: Host) -> None:
    host.on("events", "fail('the daemon is busy')")
    host.run().ends_with(1, "Docker does not say")
    host.failed_safely()


def test_a_tracker_that_was_started_during_a_forced_capture_fails_the_run(host: Host) -> None:
    host.set_tracker(status="exited")
    host.on("capture", "started()")
    host.run("--force").ends_with(1, "changed during the capture")
    host.nothing_was_published()


# ---------------------------------------------------------------- the tracker does not come back


def test_a_tracker_that_cannot_be_started_ends_with_4_and_says_how(host: Host) -> None:
    host.on("start", "fail('port is already allocated')")
    host.run().ends_with(4, "port is already allocated", "docker start 7e57")
    host.recorded("failed", exit_code=4)
    host.nothing_was_published()
    host.nothing_is_left()
    assert host.marker.exists()


def test_when_docker_does_not_answer_any_more_the_run_ends_with_4_and_leaves_the_marker(
    host: Host,
) -> None:
    """From the capture on, Docker answers nothing, until it does again."""
    host.set("DOCKER_SECONDS", 1)
    host.set("BRING_BACK_SECONDS", 0)
    for event in ("ps", "inspect", "start", "unpause", "rm"):
        host.on(event, "if (STUB / 'dead').exists(): hang()")
    host.on("capture", "touch('dead')")
    outcome = host.run().ends_with(4, "could not be brought back (docker start 7e57)")
    outcome.lacks("before that")
    assert host.marker.exists()
    host.nothing_was_published()
    host.run("--recover").ends_with(4, "Docker does not answer")
    assert host.marker.exists()
    (host.stub / "dead").unlink()
    host.run("--recover").ends_with(0)
    host.tracker_is("running")
    assert not host.marker.exists()


def test_a_capture_that_failed_and_a_tracker_that_cannot_be_started_4_with_both_reasons(
    host: Host,
) -> None:
    host.on("capture", "refuse('disk quota exceeded')")
    host.on("start", "fail('no')")
    host.run().ends_with(4, "disk quota exceeded", "docker start 7e57")
