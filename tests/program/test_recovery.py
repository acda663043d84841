"""Dead runs: `--recover`, the next run, and the marker that both read."""

from __future__ import annotations

import re
import shutil
import signal

import pytest

from program.host import STARTED, Host, Process, wait_until


def kill_while_hanging(host: Host, event: str, effect: str = "") -> None:
    """A run is killed while this call or job hangs. `effect` happens before."""
    host.on(event, f"{effect}\nhang()")
    host.start_until_hanging().kill()
    # A child that was just being made has the lock for a moment.
    wait_until(host.lock_is_free, 3, "for the lock")
    host.off(event)
    host.forget_calls()


def expire(host: Host, process: Process) -> None:
    """The process hangs, and its window's deadline is long over."""
    process.signal(signal.SIGSTOP)
    text, times = re.subn(r"(?<![\d_])1\d{9}(?![\d_])", "1000000000", host.marker.read_text())
    assert times > 0, text
    host.marker.write_text(text)


def recovered(host: Host) -> None:
    host.run("--recover").ends_with(0)
    host.tracker_is("running")
    assert not host.marker.exists()


def test_without_a_marker_recovery_does_nothing_and_takes_no_lock(host: Host) -> None:
    with host.locked():
        assert host.run("--recover").ends_with(0).output == ""
    assert host.calls == []
    assert not host.log.exists()


def test_recovery_starts_the_tracker_that_a_dead_run_stopped(host: Host) -> None:
    kill_while_hanging(host, "capture")
    host.tracker_is("exited")
    recovered(host)
    host.was_called("^docker start 7e57$")


def test_recovery_unpauses_the_tracker_that_a_dead_run_paused(host: Host) -> None:
    host.configure(QUIESCE="pause")
    kill_while_hanging(host, "capture")
    host.tracker_is("paused")
    recovered(host)
    host.never_called("^docker start")


def test_recovery_starts_a_paused_tracker_that_is_found_exited(host: Host) -> None:
    host.configure(QUIESCE="pause")
    kill_while_hanging(host, "capture")
    host.set_tracker(status="exited")
    recovered(host)


def test_recovery_reads_nothing_in_the_deploy_directory_and_needs_no_configuration(
    host: Host,
) -> None:
    kill_while_hanging(host, "capture")
    shutil.rmtree(host.deploy)
    host.config.unlink()
    recovered(host)
    host.never_called("^docker compose")


# ---------------------------------------------------------------- a run that is alive


def test_recovery_leaves_a_live_runs_window_alone_until_its_deadline(host: Host) -> None:
    host.on("capture", "hang()")
    process = host.start_until_hanging()
    host.run("--recover").ends_with(0)
    host.tracker_is("exited")
    assert host.marker.exists()
    process.signal(signal.SIGTERM)
    process.finish().ends_with(143)
    host.tracker_is("running")


def test_recovery_takes_over_from_a_live_run_that_is_past_its_deadline(host: Host) -> None:
    host.on("capture", "hang()")
    process = host.start_until_hanging()
    expire(host, process)
    recovered(host)
    process.kill()


def test_recovery_of_a_run_past_its_deadline_leaves_the_marker_of_the_next_one(
    host: Host,
) -> None:
    host.on("capture", "hang()")
    process = host.start_until_hanging()
    expire(host, process)
    host.on(
        "start",
        """
text = (STATE / "window").read_text()
(STATE / "window").write_text(re.sub(r"\\d{8}_\\d{6}", "20300101_000000", text))
""",
    )
    host.run("--recover").ends_with(0)
    assert "20300101_000000" in host.marker.read_text()
    process.kill()


# ---------------------------------------------------------------- somebody else, or nobody


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        pytest.param("exited", {"started": "2026-01-02T00:00:00Z"}, id="started"),
        pytest.param("exited", {"id": "5e7e"}, id="replaced"),
    ],
)
def test_recovery_respects_a_tracker_that_somebody_changed_since(
    host: Host, status: str, facts: dict[str, str]
) -> None:
    kill_while_hanging(host, "capture")
    host.set_tracker(**facts)
    host.run("--recover").ends_with(0)
    host.tracker_is(status)
    host.tracker_was_left_alone()
    assert not host.marker.exists()


def test_recovery_keeps_the_marker_while_docker_does_not_answer(host: Host) -> None:
    kill_while_hanging(host, "capture")
    for event in ("ps", "inspect"):
        host.on(event, "fail('Cannot connect to the Docker daemon')")
    host.run("--recover").ends_with(4)
    assert host.marker.exists()
    host.off("ps", "inspect")
    recovered(host)


def test_recovery_keeps_the_marker_while_the_tracker_cannot_be_started(host: Host) -> None:
    host.set("BRING_BACK_SECONDS", 1)
    kill_while_hanging(host, "capture")
    host.on("start", "fail('port is already allocated')")
    host.run("--recover").ends_with(4)
    assert host.marker.exists()


def test_recovery_brings_back_a_tracker_whose_stop_goes_on_after_the_run_died(
    host: Host,
) -> None:
    """The engine goes on with a stop whose client died. A start before its end has no effect."""
    kill_while_hanging(host, "stop", "later(1.5, lambda: stopped(137))")
    recovered(host)
    assert host.tracker("started") != STARTED


def test_recovery_keeps_the_marker_when_the_pause_of_a_dead_run_takes_effect_late(
    host: Host,
) -> None:
    host.configure(QUIESCE="pause")
    kill_while_hanging(host, "pause", "later(1.5, lambda: become('paused'))")
    host.set("STEADY_SECONDS", 3)
    host.run("--recover").ends_with(4)
    assert host.marker.exists()
    host.set("STEADY_SECONDS", 0)
    recovered(host)


def test_recovery_blames_nobody_when_a_run_died_before_its_pause(host: Host) -> None:
    host.configure(QUIESCE="pause")
    kill_while_hanging(host, "pause")
    outcome = host.run("--recover").ends_with(0).lacks("somebody")
    host.tracker_is("running")
    assert not host.marker.exists(), outcome.output


# ---------------------------------------------------------------- the next run, and the marker


def test_the_next_run_recovers_the_tracker_of_a_dead_one_first_and_then_backs_it_up(
    host: Host,
) -> None:
    kill_while_hanging(host, "capture")
    host.run().ends_with(0)
    host.calls_in_order("^docker start 7e57", "^docker stop", "^job capture ", "^docker start 7e57")
    host.tracker_is("running")
    host.nothing_is_left()


@pytest.mark.parametrize("quiesce", ["stop", "pause"])
def test_the_marker_is_there_before_the_tracker_is_touched(host: Host, quiesce: str) -> None:
    host.configure(QUIESCE=quiesce)
    host.on(quiesce, "(STUB / 'marker').write_text((STATE / 'window').read_text())")
    host.run().ends_with(0)
    assert "7e57" in (host.stub / "marker").read_text()
    assert not host.marker.exists()


@pytest.mark.parametrize("field", ["a[$(touch {pwned})0]", "", "12x"])
@pytest.mark.parametrize("line", ["{} 1 10", "1 {} 10"])
def test_a_damaged_marker_is_not_evaluated(host: Host, field: str, line: str) -> None:
    """The run ends with 4, and the marker stays."""
    pwned = host.path / "pwned"
    moments = line.format(field.format(pwned=pwned))
    host.marker.write_text(f"7e57 {STARTED} stop {moments} 20260101_000000\n")
    host.run("--recover").ends_with(4, "is damaged")
    assert host.marker.exists()
    assert not pwned.exists()
    host.tracker_was_left_alone()


def test_while_hold_is_there_neither_a_run_nor_a_recovery_does_anything(host: Host) -> None:
    kill_while_hanging(host, "capture")
    (host.state / "hold").touch()
    host.run("--recover").ends_with(3)
    host.run().ends_with(3)
    host.tracker_is("exited")
    host.tracker_was_left_alone()
    assert host.marker.exists()
