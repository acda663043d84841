"""The programs together, on a real SQLite database: only Docker itself is a stand-in."""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
from contextlib import closing

import pytest

from program.host import Host, wait_until
from program.old_runs import add_old_run
from program.real import change, make_real, restored_rows


@pytest.fixture(autouse=True)
def real(host: Host) -> None:
    make_real(host)
    host.on("exec", "from program.image import become_role\nbecome_role(words[2:], work)")


def stop_at(host: Host, point: str) -> None:
    """The run that was just prepared stands still at its fault point."""
    wait_until((host.staging / ".fault-points/reached").exists, 20, f"for {point}")


def test_a_run_is_a_backup_that_list_and_status_know_and_that_restores(host: Host) -> None:
    host.install()
    host.run().ends_with(0)
    host.tracker_is("running")
    host.nothing_is_left()
    host.tool("status").ends_with(0, "optional path missing")
    (run,) = json.loads(host.tool("list", "--json").ends_with(0).output)
    assert (run["result"], run["sequence"]) == ("success", 1)
    assert run["tables"] == {"torrents": 2, "whitelist": 0, "keys": 0}
    assert [file["kind"] for file in run["files"]] == ["database", "config"]
    for file in run["files"]:
        assert (host.destination / file["path"]).stat().st_size == file["bytes"]
    assert run["window_seconds"] > 0
    assert run["durations"]
    assert run["tools"]
    database, config = (host.destination / file["path"] for file in run["files"])
    assert restored_rows(host, database) == ["aa", "bb"]
    with tarfile.open(config) as archive:
        secrets = archive.extractfile(archive.getmember(".env"))
        assert secrets is not None
        assert secrets.read() == b"SECRET=1\n"


def test_a_table_that_this_run_lacks_is_a_warning_and_retention_is_suspended(host: Host) -> None:
    host.run().ends_with(0)
    before = host.published()
    change(host, "DROP TABLE torrents; CREATE TABLE torrents_new (a)")
    host.run().ends_with(
        0, "lacks the table torrents, which the last good run has", "retention is suspended"
    )
    host.tracker_is("running")
    assert set(before) < set(host.published())


def test_retention_removes_old_backups_after_a_run(host: Host) -> None:
    host.run().ends_with(0)
    recent = host.published()
    old = set(add_old_run(host)) - set(recent)
    host.run().ends_with(0, *(f"retention: removed {name}" for name in old))
    assert not old & set(host.published())
    assert set(recent) < set(host.published())


def test_a_destination_that_is_not_mounted_is_found_out_before_the_tracker_is_touched(
    host: Host,
) -> None:
    host.destination.rename(host.path / "unmounted")
    host.destination.mkdir()
    host.run().ends_with(1, "mounted")
    host.tracker_was_left_alone()
    assert list(host.destination.iterdir()) == []


def test_a_tracker_that_moved_to_another_database_is_found_out_before_it_is_touched(
    host: Host,
) -> None:
    (host.deploy / "storage/tracker/etc/tracker.toml").write_text(
        '[core.database]\ndriver = "mysql"\npath = "mysql://u:secret@mysql:3306/torrust"\n'
    )
    host.run().ends_with(1, "the tracker uses mysql").lacks("secret")
    host.tracker_was_left_alone()


@pytest.mark.parametrize(
    "point",
    ["preflight", "capturing-the-database", "checking-the-database", "publishing-the-database"],
)
def test_the_next_run_puts_right_what_a_killed_one_left(host: Host, point: str) -> None:
    hold = host.stop_at(point)
    process = host.start()
    stop_at(host, point)
    process.kill()
    hold.unlink()
    del host.environment["TRACKER_BACKUP_STOP_AT"]
    (hold.parent / "reached").rmdir()
    hold.parent.rmdir()
    wait_until(host.lock_is_free, 5, "for the lock")
    host.run().ends_with(0)
    host.tracker_is("running")
    host.nothing_is_left()
    listed = json.loads(host.tool("list", "--json").ends_with(0).output)
    assert [run["result"] for run in listed] == ["success"]


@pytest.mark.parametrize(
    "point",
    [
        "capturing-the-database",
        "checking-the-database",
        "archiving-the-configuration",
        "compressing-the-database",
        "syncing-the-compressed-database",
        "publishing-the-database",
        "publishing-the-configuration",
        "writing-the-run-manifest",
        "removing-old-backups",
    ],
)
def test_a_run_stands_still_at_each_fault_point_of_a_role_and_goes_on(
    host: Host, point: str
) -> None:
    hold = host.stop_at(point)
    process = host.start()
    stop_at(host, point)
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(lambda: not process.alive, 0.2)
    hold.unlink()
    process.finish().ends_with(0)
    (hold.parent / "reached").rmdir()
    hold.parent.rmdir()
    host.nothing_is_left()


def test_a_sparse_database_of_another_service_does_not_keep_the_trackers_from_being_published(
    host: Host,
) -> None:
    grafana = host.deploy / "storage/grafana.db"
    with closing(sqlite3.connect(grafana)) as connection:
        connection.executescript("CREATE TABLE dashboard (id)")
    os.truncate(grafana, 10 << 40)
    with (host.deploy / "backup/backup-paths.txt").open("a") as file:
        file.write(f"sqlite:{grafana}\n")
    host.run().ends_with(1, "a service's database is not in the backup: ", "10995116277760 bytes")
    manifest = host.recorded("incomplete", missing=["storage/grafana.db"])
    assert [file["kind"] for file in manifest["files"]] == ["database", "config"]
    database = host.destination / manifest["files"][0]["path"]
    assert restored_rows(host, database) == ["aa", "bb"]
    host.nothing_is_left()
