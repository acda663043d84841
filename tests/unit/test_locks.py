"""Copies of live databases under SQLite's own locks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unit.roles import execute, holder, query
from unit.sandbox import TESTS

from tracker_backup.worker import locks  # isort: skip
from tracker_backup.worker.paths import Unusable  # isort: skip

TRIALS = TESTS.parent / "scripts/lock-trials"


@pytest.fixture
def live(tmp_path: Path) -> Path:
    (tmp_path / "live").mkdir()
    path = tmp_path / "live/t.db"
    execute(path, "CREATE TABLE a (b); INSERT INTO a VALUES (1), (2)")
    return path


def copy_live(path: Path, seconds: float = 0, during: Callable[[], Any] = lambda: None) -> Path:
    """The copied set; `during` is called in each attempt while the locks are held."""
    copied = path.parent.with_name("copied.db")

    def copy(suffix: str, descriptor: int, size: int) -> None:
        if not suffix:
            during()
        Path(f"{copied}{suffix}").write_bytes(os.pread(descriptor, size, 0))

    directory = os.open(path.parent, os.O_RDONLY)
    try:
        locks.copy_live(directory, path.name, copy, seconds)
    finally:
        os.close(directory)
    return copied


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_copies_beside_a_writer_that_is_killed_now_and_then_are_right(
    tmp_path: Path, mode: str
) -> None:
    words = ["--mode", mode, "--trials", "15", "--megabytes", "2", "--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-B", str(TRIALS), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{mode}, 2 MB: 15 trials, 0 bad, 0 not copied, " in done.stdout
    assert ", 0 failed, " in done.stdout


def test_writers_wait_in_rollback_mode_and_go_on_in_wal_mode(live: Path) -> None:
    writes = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).executescript('DELETE FROM a')"
    codes = []

    def write() -> None:
        words = [sys.executable, "-c", writes, str(live)]
        codes.append(subprocess.run(words, stderr=subprocess.PIPE, check=False).returncode)

    assert query(copy_live(live, during=write), "SELECT count(*) FROM a") == (2,)
    execute(live, "PRAGMA journal_mode=WAL")
    with holder(live, "INSERT INTO a VALUES (3)"):
        assert query(copy_live(live, during=write), "SELECT count(*) FROM a") == (3,)
    assert codes == [1, 0]


def test_no_checkpoint_reaches_the_database_and_the_log_does_not_start_again(live: Path) -> None:
    execute(live, "PRAGMA journal_mode=WAL")
    with holder(live, "INSERT INTO a VALUES (3)"):
        before = live.read_bytes()

        def checkpoint() -> None:
            assert query(live, "PRAGMA wal_checkpoint(TRUNCATE)")[0] == 1
            execute(live, "INSERT INTO a VALUES (4)")
            assert live.read_bytes() == before

        assert query(copy_live(live, during=checkpoint), "SELECT max(b) FROM a") == (3,)
    assert query(live, "PRAGMA wal_checkpoint(TRUNCATE)") == (0, 0, 0)


def test_a_connection_that_is_opened_while_a_database_without_an_index_is_copied(
    live: Path,
) -> None:
    """It can do a checkpoint, so the first attempt does not count."""
    execute(live, "PRAGMA journal_mode=WAL")
    attempts = []

    def connect() -> None:
        attempts.append(Path(f"{live}-shm").exists())
        if len(attempts) == 1:
            execute(live, "INSERT INTO a VALUES (3); PRAGMA wal_checkpoint(TRUNCATE)")

    assert query(copy_live(live, 5, during=connect), "SELECT count(*) FROM a") == (3,)
    assert attempts == [False, True]


def test_the_mode_does_not_change_while_a_database_is_copied(live: Path) -> None:
    def change() -> None:
        with pytest.raises(Exception, match="locked"):
            execute(live, "PRAGMA busy_timeout=0; PRAGMA journal_mode=WAL")

    copy_live(live, during=change)
    assert query(live, "PRAGMA journal_mode") == ("delete",)


def test_a_database_of_a_connection_with_exclusive_locks_is_busy(live: Path) -> None:
    for mode in ("DELETE", "WAL"):
        statements = ("PRAGMA locking_mode=EXCLUSIVE", f"PRAGMA journal_mode={mode}")
        with (
            holder(live, *statements, "INSERT INTO a VALUES (3)"),
            pytest.raises(locks.Busy, match="locked"),
        ):
            copy_live(live)


def test_a_lock_that_is_held_for_ever_is_given_up_in_time(live: Path) -> None:
    started = time.monotonic()
    with holder(live, "BEGIN EXCLUSIVE"), pytest.raises(locks.Busy):
        copy_live(live, 0.5)
    assert 0.5 <= time.monotonic() - started < 5


@pytest.mark.parametrize("byte", ["CHECKPOINT", "READ_1"])
def test_a_lock_of_the_index_that_is_held_for_ever_is_given_up(live: Path, byte: str) -> None:
    execute(live, "PRAGMA journal_mode=WAL")
    with holder(live, "INSERT INTO a VALUES (3)"):
        index = os.open(f"{live}-shm", os.O_RDWR)
        try:
            locks.set_lock(index, getattr(locks, byte), 1)
            with pytest.raises(locks.Busy, match="locked"):
                copy_live(live)
        finally:
            os.close(index)


def test_a_live_transaction_is_left_out_and_its_journal_is_not_needed(live: Path) -> None:
    execute(live, "PRAGMA journal_mode=PERSIST; INSERT INTO a VALUES (3)")
    with holder(live, "PRAGMA journal_mode=PERSIST", "BEGIN", "DELETE FROM a"):
        copied = copy_live(live)
    assert not Path(f"{copied}-journal").exists()
    assert query(copied, "SELECT count(*) FROM a") == (3,)


def test_a_database_that_is_replaced_between_open_and_lock_is_opened_again(live: Path) -> None:
    new = live.with_name("new.db")
    execute(new, "CREATE TABLE a (b); INSERT INTO a VALUES (42)")
    calls = []

    def replace() -> None:
        calls.append(1)
        if new.exists():
            new.rename(live)

    assert query(copy_live(live, 5, during=replace), "SELECT max(b) FROM a") == (42,)
    assert len(calls) == 2


def test_hostile_files_beside_the_database_are_refused(live: Path) -> None:
    for suffix in ("-shm", "-wal", "-journal"):
        odd = Path(f"{live}{suffix}")
        odd.symlink_to("/etc/passwd")
        with pytest.raises(Unusable, match="not a regular file but a symlink"):
            copy_live(live)
        odd.unlink()
        os.mkfifo(odd)
        with pytest.raises(Unusable, match="not a regular file"):
            copy_live(live)
        odd.unlink()
    Path(f"{live}-shm").write_bytes(b"short")
    assert query(copy_live(live), "SELECT count(*) FROM a") == (2,)


def test_a_database_shorter_than_its_header_is_copied_as_it_is(live: Path) -> None:
    live.write_bytes(b"SQLite")
    assert copy_live(live).read_bytes() == b"SQLite"


def test_no_descriptor_and_no_lock_is_left(live: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    copy_live(live)
    with holder(live, "BEGIN EXCLUSIVE"), pytest.raises(locks.Busy):
        copy_live(live)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    execute(live, "BEGIN EXCLUSIVE; COMMIT")
