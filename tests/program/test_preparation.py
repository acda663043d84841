"""Before the window: what a run checks and prepares while the tracker is not touched."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from program.host import IMAGE, TRACKER, Host, wait_until


@pytest.fixture
def no_image(host: Host) -> Host:
    (host.stub / "images").write_text("")
    return host


def test_an_image_that_is_missing_is_built_before_the_tracker_is_touched(no_image: Host) -> None:
    no_image.run().ends_with(0)
    no_image.calls_in_order(
        f"^docker build .*--tag {IMAGE} {no_image.deploy}/backup$",
        "^docker compose .* run ",
        "^docker stop ",
    )
    no_image.never_called("^docker pull")


def test_an_image_of_a_registry_is_pulled_before_the_tracker_is_touched(no_image: Host) -> None:
    no_image.configure(IMAGE_SOURCE="pull")
    no_image.run().ends_with(0)
    no_image.calls_in_order(f"^docker pull {IMAGE}$", "^docker stop ")
    no_image.never_called("^docker build")


def test_an_image_that_cannot_be_built_fails_the_run(no_image: Host) -> None:
    no_image.on("build", "fail('no route to host')")
    no_image.run().ends_with(1, "no route to host")
    no_image.tracker_was_left_alone()
    no_image.recorded("failed", exit_code=1, reason=re.compile("image"))


def test_an_image_that_is_there_is_neither_built_nor_pulled(host: Host) -> None:
    host.run().ends_with(0)
    host.never_called("^docker (build|pull)")


def test_a_check_of_docker_that_hangs_fails_the_run_with_what_it_was_of(host: Host) -> None:
    host.set("DOCKER_SECONDS", 1)
    host.on("config", "hang()")
    outcome = host.run().ends_with(1)
    assert re.search("docker.* 1 s", outcome.output), outcome.output
    host.tracker_was_left_alone()
    host.recorded("failed")


def test_a_destination_that_does_not_answer_fails_the_run(host: Host) -> None:
    """As a network file system whose server is gone: here a pipe that nobody writes."""
    host.set("PROBE_SECONDS", 1)
    identity = host.destination / ".tracker-backup.json"
    identity.unlink()
    os.mkfifo(identity)
    host.run().ends_with(1, "destination")
    host.tracker_was_left_alone()
    host.nothing_was_recorded()


def test_a_probe_that_a_file_system_let_through_too_late_is_removed(host: Host) -> None:
    probes = [place / ".probe-20260102_030405" for place in (host.staging, host.destination)]
    for probe in probes:
        probe.write_text("probe\n", encoding="ascii")
    host.run().ends_with(0, "removing what a dead run left")
    assert not any(probe.exists() for probe in probes)


# ---------------------------------------------------------------- a restore that died


def dead_restore(host: Host, undone: bool) -> Path:
    """The journal and the directory of a restore that died; `undone`: all but the start is."""
    journal = {
        "run": "20260101_000000",
        "work": "20260101_030000.restore",
        "fresh": False,
        "config": True,
        "running": [TRACKER],
        "importing": False,
        "undone": undone,
    }
    (host.state / "restore.json").write_text(json.dumps(journal))
    work = host.staging / str(journal["work"])
    work.mkdir()
    return work


def test_no_run_begins_while_a_restore_that_died_cannot_be_rolled_back(host: Host) -> None:
    """What the roll-back needs must still be there."""
    shutil.rmtree(dead_restore(host, undone=False))
    host.run().ends_with(4, "could not be rolled back")
    assert (host.state / "restore.json").exists()
    host.tracker_was_left_alone()
    host.nothing_was_recorded()


def test_no_run_begins_when_the_restore_that_it_waited_for_died(host: Host) -> None:
    host.set("LOCK_SECONDS", 20)
    with host.locked():
        work = dead_restore(host, undone=False)
        process = host.start()
        wait_until(lambda: host.has_lock_open(process))
    process.finish().ends_with(4, "rolled back")
    assert work.is_dir() and (host.state / "restore.json").exists()
    host.tracker_was_left_alone()
    host.nothing_was_recorded()


def test_a_restore_that_died_is_rolled_back_before_a_run_begins(host: Host) -> None:
    host.set_tracker(status="exited")
    work = dead_restore(host, undone=True)
    host.run().ends_with(0)
    host.calls_in_order("^docker start .*7e57", "^docker stop ", "^docker start 7e57$")
    assert not work.exists() and not (host.state / "restore.json").exists()


# ---------------------------------------------------------------- what is refused


def test_what_compose_repeats_of_a_broken_env_does_not_get_into_the_log(host: Host) -> None:
    host.on(
        "run",
        "fail('''level=warning msg=The \"hidden-word\" variable is not set.\n"
        "failed to read /opt/.env: line 7: unterminated quoted value 'hidden-word\n"
        "hidden-word=x''')",
    )
    host.run().ends_with(1, ".env: line 7: unterminated quoted value").lacks("hidden-word")
    assert "hidden-word" not in host.log.read_text()
    assert "hidden-word" not in json.dumps(host.manifest())
    host.tracker_was_left_alone()


def test_a_destination_that_is_not_ours_fails_the_run_and_nothing_is_written_there(
    host: Host,
) -> None:
    identity = {"environment": "staging", "machine_id": "5ca1ab1e"}
    (host.destination / ".tracker-backup.json").write_text(json.dumps(identity))
    host.run().ends_with(1, "of the environment 'staging'").lacks("error:")
    host.tracker_was_left_alone()
    host.nothing_was_recorded()
    host.nothing_was_published()


def test_docker_that_is_not_fit_fails_the_run_before_the_tracker_is_touched(host: Host) -> None:
    (host.stub / "compose-version").write_text("2.20\n")
    host.run().ends_with(1)
    host.tracker_was_left_alone()
    host.recorded("failed", reason=re.compile("^docker compose is 2.20"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1, "the database is empty (0 bytes)"), (2, "BACKUP_MODE is missing")],
)
def test_a_failed_preflight_leaves_the_tracker_alone_and_tells_why(
    host: Host, code: int, reason: str
) -> None:
    host.on("preflight", f"refuse({reason!r}, {code})")
    host.run().ends_with(code, reason)
    host.tracker_was_left_alone()
    host.recorded("failed", exit_code=code, reason=reason)
    host.nothing_is_left()


def test_a_preflight_that_hangs_is_ended_by_its_time_limit(host: Host) -> None:
    host.set("PREFLIGHT_SECONDS", 1)
    host.on("preflight", "hang()")
    host.run().ends_with(1, "preflight", "time limit of 1 s")
    host.tracker_was_left_alone()
    host.nothing_is_left()


def test_a_container_that_cannot_be_started_fails_the_run_before_the_tracker_is_touched(
    host: Host,
) -> None:
    host.on("run", "fail('yaml: line 3: mapping values are not allowed')")
    host.run().ends_with(1, "mapping values are not allowed")
    host.tracker_was_left_alone()
    host.recorded("failed")
    host.nothing_is_left()


@pytest.mark.parametrize("event", ["ps", "version", "inspect", "run"])
def test_docker_that_does_not_answer_fails_the_run_within_its_time_limit(
    host: Host, event: str
) -> None:
    host.set("DOCKER_SECONDS", 1)
    host.on(event, "hang()")
    outcome = host.run().ends_with(1)
    assert event not in ("ps", "version") or "docker" in outcome.output.lower()
    host.tracker_was_left_alone()
    host.recorded("failed")


# ---------------------------------------------------------------- what dead runs left


def test_what_dead_runs_left_is_removed_containers_staging_partial_files(host: Host) -> None:
    left = "20250101_030000"
    host.add_container(f"tracker-backup-{left}")
    (host.staging / left).mkdir()
    (host.staging / left / "database.db").touch()
    for name in (f"sqlite/sqlite_{left}.db.gz", f"runs/{left}.json"):
        (host.destination / f"{name}.partial").touch()
    host.run().ends_with(0)
    host.was_called(f"^docker rm .*tracker-backup-{left}$")
    host.nothing_is_left()
    assert list(host.destination.rglob("*.partial")) == []
    host.warned(left)


def test_nothing_of_an_earlier_run_is_removed_and_nothing_of_a_strangers(host: Host) -> None:
    run = "20250101_030000"
    files = [
        {"kind": kind, "path": path, "bytes": 6, "sha256": "00"}
        for kind, path in (
            ("database", f"sqlite/sqlite_{run}.db.gz"),
            ("database", f"mysql/mysql_{run}.sql.zst"),
            ("config", f"config/config_{run}.tar.gz"),
        )
    ]
    host.add_run(run, 1, files=files)
    (host.staging / "mine").mkdir()
    for name in ("notes.partial", "sqlite/upload.partial"):
        (host.destination / name).write_text("a stranger's")
    before = {path for path in host.destination.rglob("*") if path.is_file()}
    host.on("examine", "refuse('malformed')")
    host.run().ends_with(1)
    assert before <= set(host.destination.rglob("*"))
    assert (host.staging / "mine").is_dir()


def test_a_container_of_a_dead_run_that_cannot_be_removed_is_a_warning(host: Host) -> None:
    host.add_container("c0ffee")
    host.on("rm", "if words[-1] == 'c0ffee': fail('device or resource busy')")
    host.run().ends_with(0)
    host.recorded("success")
    host.warned("the container c0ffee of a dead run could not be removed: .*busy")
