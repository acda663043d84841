"""Fault points: places at which the test suites stop a run and kill something."""

from __future__ import annotations

import pytest

from program.host import Host, wait_until

POINTS = (
    "taking-the-lock",
    "checking-the-destination",
    "looking-for-what-dead-runs-left",
    "checking-docker",
    "checking-the-deployment",
    "looking-for-the-image",
    "starting-the-container",
    "proving-pause",
    "preflight",
    "writing-the-marker",
    "taking-the-tracker-down",
    "beginning-the-capture",
    "bringing-the-tracker-back",
    "removing-the-marker",
    "looking-back-at-the-window",
    "beginning-to-finish",
    "writing-the-run-manifest",
    "removing-old-backups",
    "removing-the-container",
)


def test_a_fault_point_does_nothing_without_the_directory_of_the_suite(host: Host) -> None:
    host.set("STOP_AT", "taking-the-lock")
    host.run().ends_with(0)
    host.nothing_is_left()


def test_a_fault_point_does_nothing_for_another_name_or_without_the_variable(host: Host) -> None:
    hold = host.stop_at("no-such-step")
    host.run().ends_with(0)
    del host.environment["TRACKER_BACKUP_STOP_AT"]
    host.run().ends_with(0)
    assert hold.exists()
    assert not (hold.parent / "reached").exists()


def calls_of_steps(host: Host) -> list[str]:
    """Without the stream of events, whose client starts beside the run."""
    return [call for call in host.calls if not call.startswith("docker events")]


@pytest.mark.parametrize("point", POINTS)
def test_a_run_stands_still_at_each_fault_point_of_the_host_and_goes_on(
    host: Host, point: str
) -> None:
    host.configure(QUIESCE="pause")
    hold = host.stop_at(point)
    process = host.start()
    wait_until((hold.parent / "reached").exists, 20, f"for the fault point {point}")
    calls = calls_of_steps(host)
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(lambda: not process.alive or calls_of_steps(host) != calls, 0.2)
    hold.unlink()
    process.finish().ends_with(0)


def test_no_container_gets_the_name_of_a_fault_point(host: Host) -> None:
    host.stop_at("elsewhere")
    host.run().ends_with(0)
    host.never_called("STOP_AT|elsewhere")


def test_the_directory_of_the_suite_is_no_leftover_of_a_dead_run(host: Host) -> None:
    hold = host.stop_at("elsewhere")
    host.run().ends_with(0).lacks(".fault-points")
    assert hold.exists()
