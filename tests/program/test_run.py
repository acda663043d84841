"""What a run does, in which order, and what it records."""

from __future__ import annotations

import re
import time

from program.host import STARTED, Host, wait_until


def run_id(epoch: float) -> str:
    return time.strftime("%Y%m%d_%H%M%S", time.gmtime(epoch))


def test_stop_preflight_stop_capture_start_and_only_then_the_slow_rest(host: Host) -> None:
    host.run().ends_with(0)
    host.calls_in_order(
        "^docker compose .* run ",
        '^job preflight .*"copy"',
        "^job preallocate ",
        "^docker stop -t 1 7e57$",
        '^job capture .*"copy"',
        "^docker start 7e57$",
        "^job examine ",
        "^docker rm .*tracker-backup-",
    )
    host.never_called("^docker (pause|unpause|restart|kill) .*7e57")
    host.tracker_is("running")
    host.recorded("success", exit_code=0, quiesce="stop", reason="")
    host.nothing_is_left()
    assert len(host.published()) == 2 and not host.marker.exists()


def test_pause_the_tracker_is_paused_and_unpaused_never_stopped_or_started(host: Host) -> None:
    host.configure(QUIESCE="pause")
    host.run().ends_with(0)
    host.calls_in_order(
        '^job preflight .*"copy"',
        "^job preallocate ",
        "^docker pause 7e57$",
        '^job capture .*"copy"',
        "^docker unpause 7e57$",
        "^job examine ",
    )
    host.never_called("^docker (stop|start|restart|kill) ")
    assert host.tracker("started") == STARTED
    host.recorded("success", quiesce="pause")


def test_none_the_tracker_is_not_touched_and_the_capture_is_online(host: Host) -> None:
    host.configure(QUIESCE="none")
    host.run().ends_with(0)
    host.calls_in_order('^job preflight .*"online"', '^job capture .*"online"', "^job examine ")
    host.never_called("^job preallocate")
    host.tracker_was_left_alone()
    host.recorded("success", quiesce="none", window_seconds=0)


def test_the_window_is_measured(host: Host) -> None:
    host.on("capture", "time.sleep(0.2)")
    host.run().ends_with(0, "the tracker runs again after")
    assert 0.2 <= host.manifest()["window_seconds"] < 20


def test_a_broken_compose_file_in_the_window_cannot_keep_the_tracker_down(host: Host) -> None:
    host.on(
        "capture",
        "for name in ('docker-compose.yml', '.env'): (DEPLOY / name).write_text('broken')\n"
        "touch('broken')",
    )
    host.on("config", "if (STUB / 'broken').exists(): fail('broken')")
    host.run().ends_with(0)
    host.tracker_is("running")
    between = host.calls_between("^docker stop", "^docker start")
    assert not [call for call in between if call.startswith("docker compose")]


def test_while_the_tracker_is_paused_docker_gets_at_most_one_exec_and_one_inspect(
    host: Host,
) -> None:
    host.configure(QUIESCE="pause")
    host.run().ends_with(0)
    between = host.calls_between("^docker pause 7e57", "^docker unpause 7e57")
    commands = [call.split()[1] for call in between if call.startswith("docker ")]
    # The clients of the events' stream and of a conversation start beside the run.
    assert sorted({*commands} - {"events", "exec"}) in (["inspect"], []), between
    assert len(commands) == len(set(commands)), between


def test_a_tracker_that_was_restarted_while_the_run_was_prepared_is_backed_up_as_it_is_now(
    host: Host,
) -> None:
    host.on("preflight", "started()")
    host.run().ends_with(0)
    host.tracker_is("running")
    host.recorded("success")


def test_a_tracker_that_was_stopped_during_the_preflight_stays_stopped(host: Host) -> None:
    host.on("preflight", "stopped(0)")
    host.run().ends_with(3)
    host.tracker_was_left_alone()
    host.nothing_is_left()


def test_the_container_is_started_from_both_files_without_dependencies_under_the_runs_name(
    host: Host,
) -> None:
    host.run().ends_with(0)
    run = host.manifest()["id"]
    assert re.fullmatch("[0-9]{8}_[0-9]{6}", run)
    host.was_called(f"^docker compose --project-name torrust .*--project-directory {host.deploy} ")
    files = (host.deploy / name for name in ("docker-compose.yml", "docker-compose.backup.yml"))
    host.was_called(" ".join(f"--file {file}" for file in files))
    host.was_called(
        rf"^docker compose .* run .*--no-deps .*--name tracker-backup-{run}\b.* "
        rf"--label tracker-backup.run={run} .*\bbackup( idle)?$"
    )
    host.never_called("^docker compose .* (up|start|stop|down)\\b")
    assert all(run in path for path in host.published())


def test_a_stop_that_ended_in_a_kill_is_told_in_the_log(host: Host) -> None:
    host.run().ends_with(0, "was killed")


def test_a_stop_that_ended_by_itself_is_not_called_a_kill(host: Host) -> None:
    host.on("stop", "stopped(0); leave()")
    host.run().ends_with(0).lacks("was killed")


def test_an_id_that_is_taken_waits_for_the_next_second(host: Host) -> None:
    hold = host.stop_at("checking-the-destination")
    process = host.start()
    wait_until((hold.parent / "reached").exists)
    now = int(time.time())
    taken = [run_id(now), run_id(now + 1), run_id(now + 2)]
    for sequence, run in enumerate(taken, 1):
        host.add_run(run, sequence)
    hold.unlink()
    process.finish().ends_with(0)
    assert max(path.stem for path in host.run_files()) > taken[-1]
    assert len(host.published()) == 8


def test_old_backups_that_cannot_be_removed_are_a_warning_not_a_failed_backup(host: Host) -> None:
    days = (8, 1)  # older than the retention, and one between, so that backups did not pause
    runs = [run_id(time.time() - 86400 * n) for n in days]
    for sequence, run in enumerate(runs, 1):
        host.add_run(run, sequence)
    old = host.destination / f"sqlite/sqlite_{runs[0]}.db.gz"
    old.unlink()
    (old / "not empty").mkdir(parents=True)
    host.run().ends_with(0, "could not be removed")
    assert len(host.run_files()) == 3
    assert len([path for path in host.published() if runs[0] not in path]) == 4
    assert old.is_dir()


def test_an_archive_that_fails_does_not_keep_the_database_from_being_published(host: Host) -> None:
    host.on("archive", "refuse('the disk of a service is full')")
    reason = "the configuration could not be archived: the disk of a service is full"
    host.run().ends_with(1, reason)
    host.tracker_is("running")
    manifest = host.recorded("incomplete", exit_code=1, missing=["the whole configuration"])
    assert [file["kind"] for file in manifest["files"]] == ["database"]
    assert host.published() == [manifest["files"][0]["path"]]
    host.warned(reason)
    host.nothing_is_left()


def test_a_reader_that_dies_in_archiving_does_not_keep_the_database_from_being_published(
    host: Host,
) -> None:
    host.on("archive", "leave(137)")
    host.run().ends_with(1, "the configuration could not be archived")
    manifest = host.recorded("incomplete", missing=["the whole configuration"])
    assert host.published() == [manifest["files"][0]["path"]]
    host.nothing_is_left()
