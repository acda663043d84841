"""An SQLite database is captured right in every state: copied with the tracker down, or online."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.deployment import SCRIPT, Deployment
from e2e.faults import PAUSE, STOP, tracker_started_again
from e2e.host import wait_until
from e2e.stack import DEPLOY_DIR, SQLITE_FILE, sqlite, wait_for_tracker
from e2e.steps import step_named, strike_at

pytestmark = pytest.mark.only("sqlite3")

WAYS = {"stop": STOP, "pause": PAUSE, "none": {"QUIESCE": "none"}}
TOML = f"{DEPLOY_DIR}/storage/tracker/etc/tracker.toml"
SPACED = SQLITE_FILE.replace("tracker.db", "tracker of our own.db")
LARGE_SECONDS = 900
COMMITTED, UNCOMMITTED = "c" * 40, "d" * 40
PREFLIGHT = step_named("preflight")
SEED = f"DELETE FROM whitelist; INSERT INTO whitelist (info_hash) VALUES ('{COMMITTED}');"
OVER_4_GB = "CREATE TABLE big (data BLOB); " + "INSERT INTO big VALUES (zeroblob(900000000)); " * 5

# Kills a writer in a transaction so large that SQLite has already written a part of it into the
# database.
_KILLED_WRITER = f"""
import os, signal, sqlite3, sys
writer = sqlite3.connect(sys.argv[1], isolation_level=None)
writer.execute("PRAGMA cache_size = 5")
writer.execute("BEGIN")
writer.execute("UPDATE torrents SET completed = completed + 1000000")
hashes = (("%040x" % number,) for number in range(20000))
writer.executemany("INSERT INTO whitelist (info_hash) VALUES (?)", hashes)
writer.execute("INSERT INTO whitelist (info_hash) VALUES ('{UNCOMMITTED}')")
os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def tracker_down(deployment: Deployment) -> Iterator[None]:
    """The tracker stands still for as long as the block lasts."""
    deployment.host.run("docker", "stop", "-t", "0", "tracker")
    try:
        yield
    finally:
        deployment.host.run("docker", "start", "tracker")
        wait_for_tracker(deployment.host)


@contextmanager
def another_database(
    deployment: Deployment, *, journal: str = "delete", opened: bool = False, change: str = ""
) -> Iterator[None]:
    """A changed copy in the place of the tracker's database, `opened` by the tracker or not.

    The tracker's own comes back in the end.
    """
    host, kept, new = deployment.host, "/root/kept", "/root/new.db"
    host.sh(f"rm -f {new}; cp -p {SQLITE_FILE} {new}")
    assert (
        sqlite(
            host, new, f"PRAGMA journal_mode = {journal}; {SEED} {change}", seconds=LARGE_SECONDS
        ).strip()
        == journal
    )
    try:
        host.sh(f"mkdir {kept} && mv {SQLITE_FILE}* {kept}/ && mv {new} {SQLITE_FILE}")
        if opened:
            host.run("docker", "restart", "-t", "0", "tracker")
            wait_for_tracker(host)
        yield
    finally:
        with tracker_down(deployment):
            host.sh(
                f"rm -f {SQLITE_FILE}*; mv {kept}/* {SQLITE_FILE.rpartition('/')[0]}/; rmdir {kept}"
            )


def captured(deployment: Deployment, *options: str) -> str:
    """Backs up, and returns all that is in the whitelist of what was published."""
    deployment.host.run(SCRIPT, *options, seconds=LARGE_SECONDS)
    return published(deployment, "SELECT info_hash FROM whitelist ORDER BY 1;")


def published(deployment: Deployment, query: str) -> str:
    """The answer to a query from the newest backup."""
    run = deployment.last_run()
    assert run["result"] == "success"
    with deployment.scratch() as scratch:
        copy = f"{scratch}/copy.db"
        deployment.host.sh(
            f"zcat {deployment.file(run, 'database')} >{copy}", seconds=LARGE_SECONDS
        )
        assert (
            sqlite(deployment.host, copy, "PRAGMA integrity_check;", seconds=LARGE_SECONDS).strip()
            == "ok"
        )
        assert not deployment.host.exists(f"{copy}-journal")
        return sqlite(deployment.host, copy, query).strip()


def fails_after_retrying(deployment: Deployment, why: str) -> None:
    """An online run goes on trying for 30 s, then ends with 1 and says why."""
    files, began = set(deployment.published()), time.monotonic()
    done = deployment.run()
    assert done.code == 1, done.output
    assert time.monotonic() - began >= 30
    last = deployment.last_run()
    assert "while it is in use" in last["reason"] and why in last["reason"], last["reason"]
    assert set(deployment.published()) - files == {f"runs/{last['id']}.json"}


# ---------------------------------------------------------------- WAL


@pytest.mark.parametrize("way", WAYS)
def test_a_live_wal_is_part_of_the_backup(deployment: Deployment, way: str) -> None:
    with (
        tracker_started_again(deployment),
        another_database(deployment, journal="wal", opened=True),
    ):
        row = "e" * 40
        deployment.query(f"INSERT INTO whitelist (info_hash) VALUES ('{row}');")
        lines = deployment.host.sh(
            f"grep -c {row} {SQLITE_FILE}; grep -c {row} {SQLITE_FILE}-wal", check=False
        ).split()
        assert lines[0] == "0" and int(lines[1]) > 0
        with deployment.configured(**WAYS[way]):
            assert captured(deployment).split() == [COMMITTED, row]


def test_a_wal_that_was_closed_cleanly_is_copied(deployment: Deployment) -> None:
    with (
        tracker_started_again(deployment),
        another_database(deployment, journal="wal"),
        tracker_down(deployment),
    ):
        assert not deployment.host.exists(f"{SQLITE_FILE}-wal")
        assert captured(deployment, "--force") == COMMITTED


def test_a_wal_that_was_closed_cleanly_is_copied_online(deployment: Deployment) -> None:
    """Without its index, SQLite itself could not open it through a read-only mount."""
    with (
        tracker_started_again(deployment),
        another_database(deployment, journal="wal"),
        deployment.configured(QUIESCE="none"),
    ):
        assert not deployment.host.exists(f"{SQLITE_FILE}-shm")
        assert captured(deployment) == COMMITTED


# ---------------------------------------------------------------- rollback journal


def leave_hot_journal(deployment: Deployment) -> None:
    """As of a writer that died in a transaction: a part of it is in the database file.

    The way back is in the journal.
    """
    deployment.host.run("python3", "-c", _KILLED_WRITER, SQLITE_FILE, check=False)
    assert (
        deployment.host.sh(f"head -c 8 {SQLITE_FILE}-journal | od -An -t x1").strip()
        == "d9 d5 05 f9 20 a1 63 d7"
    )


def test_a_hot_journal_is_rolled_back_in_the_copy(deployment: Deployment) -> None:
    with tracker_started_again(deployment), another_database(deployment), tracker_down(deployment):
        leave_hot_journal(deployment)
        assert captured(deployment, "--force") == COMMITTED
        assert deployment.host.exists(f"{SQLITE_FILE}-journal"), (
            "the live one is left to the tracker"
        )


def test_a_hot_journal_is_rolled_back_in_an_online_copy(deployment: Deployment) -> None:
    with (
        tracker_started_again(deployment),
        another_database(deployment),
        deployment.configured(QUIESCE="none"),
    ):
        leave_hot_journal(deployment)
        assert captured(deployment) == COMMITTED
        assert deployment.host.exists(f"{SQLITE_FILE}-journal"), (
            "the live one is left to the tracker"
        )


@contextmanager
def locked(deployment: Deployment, seconds: int) -> Iterator[None]:
    """Somebody holds the database for himself, for so long or until the block ends."""
    holding = (
        f"touch /tmp/locked; for n in $(seq {seconds * 10});"
        " do [ -e /tmp/locked ] || break; sleep 0.1; done"
    )
    holder = deployment.host.spawn("sqlite3", SQLITE_FILE, "BEGIN EXCLUSIVE", f".shell {holding}")
    try:
        wait_until("the database to be locked", lambda: deployment.host.exists("/tmp/locked"), 10)
        yield
    finally:
        deployment.host.run("rm", "-f", "/tmp/locked")
        holder.communicate(timeout=30)


def test_an_online_capture_waits_for_a_locked_database(deployment: Deployment) -> None:
    with (
        tracker_started_again(deployment),
        another_database(deployment),
        deployment.configured(QUIESCE="none"),
        locked(deployment, 12),
    ):
        assert captured(deployment) == COMMITTED


def test_an_online_capture_gives_up_on_a_database_that_stays_locked(deployment: Deployment) -> None:
    with (
        tracker_started_again(deployment),
        another_database(deployment),
        deployment.configured(QUIESCE="none"),
        locked(deployment, 120),
    ):
        fails_after_retrying(deployment, "database is locked")


# ---------------------------------------------------------------- names and sizes


@contextmanager
def renamed(deployment: Deployment) -> Iterator[None]:
    """The tracker's database has a name with spaces for as long as the block lasts."""
    host = deployment.host
    with tracker_down(deployment):
        host.sh(
            f"cp -p {TOML} /root/toml;"
            f' sed -i "s|/tracker.db|/{SPACED.rpartition("/")[2]}|" {TOML};'
            f" mv {SQLITE_FILE} '{SPACED}'"
        )
    try:
        yield
    finally:
        with tracker_down(deployment):
            host.sh(f"cat /root/toml >{TOML}; mv '{SPACED}' {SQLITE_FILE}")


@pytest.mark.parametrize("way", WAYS)
def test_the_name_of_the_file_may_hold_spaces(deployment: Deployment, way: str) -> None:
    path = f"/data{SPACED.removeprefix(DEPLOY_DIR)}"
    with (
        tracker_started_again(deployment),
        renamed(deployment),
        deployment.configured(**WAYS[way], DB_PATH=path),
    ):
        sqlite(deployment.host, SPACED, SEED)
        assert captured(deployment) == COMMITTED


@pytest.fixture(scope="module")
def large(deployment: Deployment) -> Iterator[None]:
    """The tracker's database holds more than 4 GB."""
    with (
        tracker_started_again(deployment),
        another_database(deployment, opened=True, change=OVER_4_GB),
    ):
        assert int(deployment.host.run("stat", "--format=%s", SQLITE_FILE).stdout) > 1 << 32
        yield


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("way", ["pause", "none"])
def test_a_database_over_4_gb_is_captured_whole(deployment: Deployment, way: str) -> None:
    with deployment.configured(**WAYS[way], BACKUP_ALLOW_WRITER_STALL="true"):
        assert captured(deployment) == COMMITTED
    assert published(deployment, "SELECT count(*), sum(length(data)) FROM big;") == "5|4500000000"


@pytest.mark.usefixtures("large")
def test_writers_may_only_be_made_to_wait_for_long_when_that_is_allowed(
    deployment: Deployment,
) -> None:
    container = "$(docker ps --quiet --filter label=tracker-backup.run)"
    slowly = f"docker update --cpus=0.03 {container} >/dev/null"
    with deployment.configured(QUIESCE="none"):
        files = set(deployment.published())
        done = strike_at(deployment.host, PREFLIGHT, slowly).outcome
    assert done.code == 1, done.output
    last = deployment.last_run()
    assert (
        "the tracker's writes would wait for about" in last["reason"]
        and "backup.allow_writer_stall" in last["reason"]
    )
    assert set(deployment.published()) - files == {f"runs/{last['id']}.json"}
