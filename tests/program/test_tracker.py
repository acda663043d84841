"""Which tracker a run finds, and what it does when that does not run. Dry runs."""

from __future__ import annotations

import pytest

from program.host import IMAGE, Host


@pytest.mark.parametrize("status", ["exited", "created", "paused", "restarting", "dead"])
def test_a_tracker_that_is_not_running_is_skipped_with_3_and_never_started(
    host: Host, status: str
) -> None:
    host.set_tracker(status=status)
    host.run().ends_with(3, status, "--force")
    host.tracker_is(status)
    host.tracker_was_left_alone()
    host.nothing_was_published()
    host.nothing_was_recorded()
    host.nothing_is_left()


def test_a_tracker_that_is_not_there_is_skipped_with_3(host: Host) -> None:
    host.remove_tracker()
    host.run().ends_with(3, "missing")
    host.tracker_was_left_alone()
    host.nothing_was_recorded()


@pytest.mark.parametrize("status", ["exited", "paused"])
def test_force_backs_up_a_tracker_that_does_not_run_and_leaves_it(host: Host, status: str) -> None:
    host.set_tracker(status=status)
    host.run("--force").ends_with(0)
    host.tracker_is(status)
    host.tracker_was_left_alone()
    host.recorded("success")
    host.warned(f"the tracker is {status}")
    host.was_called('^job capture .*"copy"')


def test_force_backs_up_although_there_is_no_tracker_at_all(host: Host) -> None:
    host.remove_tracker()
    host.run("--force").ends_with(0)
    host.recorded("success")


def test_force_does_not_start_a_stopped_tracker_when_the_backup_fails_either(host: Host) -> None:
    host.set_tracker(status="exited")
    host.on("capture", "refuse('disk quota exceeded')")
    host.run("--force").ends_with(1)
    host.tracker_was_left_alone()


def test_force_quiesces_a_tracker_that_runs_as_any_run_does(host: Host) -> None:
    host.run("--force").ends_with(0)
    host.calls_in_order("^docker stop", "^docker start")


def test_a_tracker_of_another_deploy_directory_is_not_this_ones(host: Host) -> None:
    host.set_tracker(directory="/srv/other")
    host.run().ends_with(3)
    host.tracker_was_left_alone()


def test_two_trackers_in_one_deploy_directory_are_refused(host: Host) -> None:
    host.set_tracker(others="7e58\n")
    host.run().ends_with(1, "more than one")
    host.tracker_was_left_alone()


# ---------------------------------------------------------------- a dry run


def test_a_dry_run_checks_everything_and_touches_nothing(host: Host) -> None:
    places = (host.destination, host.deploy)
    before = {path for place in places for path in place.rglob("*")}
    host.run("--dry-run").ends_with(0, "would now stop the tracker")
    host.tracker_was_left_alone()
    host.was_called('^job preflight .*"copy"')
    host.never_called("^job (preallocate|capture|examine|archive)")
    host.nothing_was_recorded()
    host.nothing_is_left()
    assert {path for place in places for path in place.rglob("*")} == before


def test_a_dry_run_builds_no_image_that_is_missing(host: Host) -> None:
    (host.stub / "images").write_text("")
    host.run("--dry-run").ends_with(0, f"{IMAGE} is missing")
    host.never_called("^docker build")
    host.tracker_was_left_alone()


def test_a_dry_run_that_finds_something_wrong_fails_and_records_nothing(host: Host) -> None:
    host.on("preflight", "refuse('no space')")
    host.run("--dry-run").ends_with(1, "no space")
    host.nothing_was_recorded()
    host.nothing_is_left()


def test_a_dry_run_removes_and_recovers_nothing(host: Host) -> None:
    host.add_container("c0ffee")
    leftover = host.deploy / "storage/backup-staging/20260101_000000"
    leftover.mkdir(parents=True)
    host.run("--dry-run").ends_with(0, "everything is ready")
    host.never_called("^docker rm .*c0ffee")
    assert leftover.exists()
    marker = "7e57 2026-01-01T00:00:00Z stop 1795857045 1795857275 10 20260101_000000\n"
    host.marker.write_text(marker)
    host.set_tracker(status="exited")
    host.run("--dry-run").ends_with(1, "--recover` first")
    host.tracker_is("exited")
    assert host.marker.read_text() == marker
