"""A run in the sidecar, on a real SQLite database: no Docker, no tracker, the lock of the host.

The service of the examiner is a real process. It starts again when it ends, as Docker does it.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import pytest
from unit.service import needs_root, restarted_service

from program.host import Host, Outcome, wait_until
from program.image import IMAGE_ENTRY
from program.real import change, make_real, restored_rows

pytestmark = needs_root

NOW = [*IMAGE_ENTRY, "now"]


def tell(host: Host, refused: str = "", at: str = "") -> None:
    """What only the host knows, as `tracker-backup sidecar` tells it."""
    told = {
        "at": at or f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "images": {"tracker": "sha256:feed"},
        "directories": {},
        "refused": refused,
        "warnings": ["the tracker is exited"],
    }
    (host.state / "stack.json").write_text(json.dumps(told))


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def use_real_roles(host: Host) -> None:
    program(host.stub / "bin/backup.sh", f'exec {" ".join(IMAGE_ENTRY)} "$@"')


@pytest.fixture
def sidecar(host: Host) -> Iterator[Host]:
    make_real(host)
    change(host, "PRAGMA journal_mode = wal")
    host.configure(STRATEGY="sidecar", QUIESCE="none")
    host.lock_file.touch()
    use_real_roles(host)
    host.environment |= {
        "TRACKER_BACKUP_DEPLOY_DIR": str(host.deploy),
        "TRACKER_BACKUP_DESTINATION": str(host.destination),
    }
    tell(host)
    with restarted_service("examiner", host.staging / "examiner", host.stub / "bin"):
        yield host


def nothing_is_left(host: Host) -> None:
    """But the next life of the service, which listens."""
    examiner = host.staging / "examiner"
    wait_until((examiner / "socket").exists)
    assert sorted(host.staging.rglob("*")) == [examiner, examiner / "socket"]


def run(host: Host, *options: str) -> Outcome:
    return host.start(command=[*NOW, *options]).finish()


def test_a_run_captures_online_publishes_and_records_and_asks_docker_for_nothing(
    sidecar: Host,
) -> None:
    sidecar.state.chmod(0o500)  # as where it is mounted
    run(sidecar).ends_with(0)
    sidecar.state.chmod(0o700)
    assert sidecar.calls == []
    nothing_is_left(sidecar)
    manifest = sidecar.recorded("success", strategy="sidecar", quiesce="none", window_seconds=0)
    assert manifest["images"] == {"tracker": "sha256:feed"}
    # The path list has an optional path that is not there.
    assert manifest["warnings"][0] == "the tracker is exited"
    (database,) = (sidecar.destination / "sqlite").iterdir()
    assert restored_rows(sidecar, database) == ["aa", "bb"]
    assert any(
        "sidecar-backup[" in line and "succeeded" in line
        for line in sidecar.log.read_text().splitlines()
    )
    sidecar.start(command=[*IMAGE_ENTRY, "healthy"]).finish().ends_with(0)


def test_each_database_has_a_user_and_a_life_of_the_service_of_its_own(
    sidecar: Host,
) -> None:
    grafana = sidecar.deploy / "storage/grafana.db"
    with closing(sqlite3.connect(grafana)) as connection:
        connection.executescript("CREATE TABLE boards (a); INSERT INTO boards VALUES (1)")
    paths = sidecar.deploy / "backup/backup-paths.txt"
    paths.write_text(f"{paths.read_text()}sqlite:{grafana}\n")
    lives = sidecar.stub / "bin/lives"  # which the service sees as /srv
    lives.touch()
    lives.chmod(0o666)
    look = '[ "$1" != examiner ] || echo $(id -u) $PPID $(ls -A "$BACKUP_WORK") >>/srv/lives'
    program(sidecar.stub / "bin/backup.sh", f'{look}\nexec {" ".join(IMAGE_ENTRY)} "$@"')
    run(sidecar).ends_with(0)
    nothing_is_left(sidecar)
    sidecar.recorded("success", missing=[])
    # Nothing of the other one is there, and the process above it is the first of a new life.
    assert lives.read_text().splitlines() == ["64001 1 database.db", "64002 1 database.db"]
    (archive,) = (sidecar.destination / "config").iterdir()
    with tarfile.open(archive) as members:
        assert "storage/grafana.db" in members.getnames()


def test_a_core_that_dies_leaves_no_process_and_the_next_run_no_file(sidecar: Host) -> None:
    hang = "[ $1 != examiner ] || { touch $BACKUP_WORK/left; exec sleep 60; }"
    program(sidecar.stub / "bin/backup.sh", f"{hang}\nexec {' '.join(IMAGE_ENTRY)} $*")
    process = sidecar.start(command=NOW)
    job, socket = (sidecar.staging / "examiner" / name for name in ("job", "socket"))
    wait_until((job / "left").exists, 20, "for the examiner")
    assert not socket.exists()
    process.kill()
    wait_until(socket.exists, what="for the next life of the service")
    assert (job / "left").exists()
    use_real_roles(sidecar)
    run(sidecar).ends_with(0, "removing what a dead run left")
    nothing_is_left(sidecar)


def test_a_service_that_is_not_there_fails_the_run(sidecar: Host) -> None:
    socket = sidecar.staging / "examiner/socket"
    wait_until(socket.exists)
    socket.unlink()
    sidecar.set("SERVICE_SECONDS", 0.5)
    run(sidecar).ends_with(1, "the sidecar's service for the examiner does not answer")
    sidecar.recorded("failed")
    sidecar.nothing_was_published()
    assert [path.name for path in sidecar.staging.rglob("*")] == ["examiner"]


def test_what_the_host_refuses_fails_the_run(sidecar: Host) -> None:
    tell(sidecar, refused="the tracker uses mysql")
    run(sidecar).ends_with(1, "the tracker uses mysql")
    sidecar.nothing_was_published()


def test_a_host_that_tells_nothing_fails_the_run_and_one_that_stopped_is_a_warning(
    sidecar: Host,
) -> None:
    (sidecar.state / "stack.json").unlink()
    run(sidecar).ends_with(1, "stack.json is missing")
    sidecar.nothing_was_published()
    tell(sidecar, at="2026-01-01T00:00:00Z")
    run(sidecar).ends_with(0, "does it run?")


def test_a_lock_that_somebody_holds_ends_with_75_and_nothing_was_done(sidecar: Host) -> None:
    with sidecar.locked():
        run(sidecar).ends_with(75)
    sidecar.nothing_was_recorded()


def test_without_its_lock_it_says_what_to_do(sidecar: Host) -> None:
    sidecar.lock_file.unlink()
    run(sidecar).ends_with(2, "install the bundle again")


@pytest.fixture
def hanging(sidecar: Host) -> Host:
    """Every role hangs."""
    program(sidecar.stub / "bin/backup.sh", f"echo $$ >>{sidecar.stub}/hanging; exec sleep 30")
    return sidecar


def test_the_lock_is_free_when_the_run_dies_and_the_next_one_cleans_up(hanging: Host) -> None:
    process = hanging.start(command=NOW)
    wait_until(hanging.hanging, what="for a step")
    process.kill()
    wait_until(hanging.lock_is_free, 3, "for the lock")
    assert list(hanging.staging.iterdir())
    use_real_roles(hanging)
    run(hanging).ends_with(0, "removing what a dead run left")
    nothing_is_left(hanging)


def test_term_ends_the_step_publishes_nothing_and_is_recorded(hanging: Host) -> None:
    process = hanging.start(command=NOW)
    wait_until(hanging.hanging, what="for a step")
    process.signal(signal.SIGTERM)
    process.finish().ends_with(143)
    hanging.recorded("failed", exit_code=143)
    hanging.nothing_was_published()
    nothing_is_left(hanging)
    (step,) = hanging.hanging()
    wait_until(lambda: not Path(f"/proc/{step}").exists(), 3, "for the end of the step")


def test_hold_and_a_restore_that_died_keep_it_from_running(sidecar: Host) -> None:
    hold = sidecar.state / "hold"
    hold.touch()
    run(sidecar).ends_with(3)
    hold.unlink()
    (sidecar.state / "restore.json").write_text("{}")
    run(sidecar).ends_with(1, "rolls it back")
    sidecar.nothing_was_published()


@pytest.mark.parametrize(
    "settings", [{"STRATEGY": "maintenance-window"}, {"STRATEGY": "sidecar", "QUIESCE": "stop"}]
)
def test_another_strategy_or_quiesce_is_a_configuration_error(
    sidecar: Host, settings: dict[str, str]
) -> None:
    sidecar.configure(**settings)
    run(sidecar).ends_with(2)
    sidecar.nothing_was_recorded()


def test_a_failed_step_gives_its_own_reason(sidecar: Host) -> None:
    change(sidecar, "DROP TABLE keys")
    run(sidecar).ends_with(1, "lacks the tables: keys")
    sidecar.recorded("failed")
    sidecar.nothing_was_published()


def test_a_dry_run_publishes_and_records_nothing(sidecar: Host) -> None:
    run(sidecar, "--dry-run").ends_with(0, "everything is ready")
    sidecar.nothing_was_published()
    sidecar.nothing_was_recorded()
    nothing_is_left(sidecar)


def test_the_containers_process_gives_cron_the_schedule_and_warns_of_an_unknown_time_zone(
    host: Host,
) -> None:
    program(host.stub / "bin/cron", 'echo "cron $* TZ=$TZ"')
    crontab = host.stub / "crontab"
    rule = "CET-1CEST,M3.5.0,M10.5.0/3"
    host.environment |= {
        "BACKUP_CRON_FILE": str(crontab),
        "BACKUP_SCHEDULE": "15 */4 * * *",
        "TZ": rule,
    }
    command = [*IMAGE_ENTRY, "sidecar"]
    host.start(command=command).finish().ends_with(0, f"cron -f TZ={rule}").lacks("WARNING")
    (job,) = (line for line in crontab.read_text().splitlines() if " root " in line)
    assert job.startswith("15 */4 * * * root sleep ")
    assert job.endswith("; backup.sh now >>/proc/1/fd/1 2>&1")
    host.environment["TZ"] = "Mars/Olympus"
    host.start(command=command).finish().says("does not know the time zone Mars/Olympus")
    del host.environment["BACKUP_SCHEDULE"]
    host.start(command=command).finish().ends_with(2, "BACKUP_SCHEDULE")
