"""The unpacker as a process: sizes, what is checked, and a swap that is undone."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unit import worker

NAME = "20260101_030000.restore"
DATABASE = "storage/tracker/tracker.db"


class Unpacker:
    """The places of the container, with what `prepare` leaves: a file that is there, one that is
    not, and a directory.
    """

    def __init__(self, path: Path, staging: Path) -> None:
        self.path = path
        self.data, self.backups = path / "deploy", path / "backups"
        self.elsewhere = path / "elsewhere"
        self.work = staging / NAME
        for place in (self.data / "storage/tracker", self.work / "old", self.backups):
            place.mkdir(parents=True)
        for directory in ("caddy", "tracker"):
            (self.work / "new/storage" / directory).mkdir(parents=True)
        self.database.write_text("as it is\n")
        (self.work / "new" / DATABASE).write_text("as it was\n")
        (self.work / "new/storage/caddy/cert").write_text("new\n")
        targets = (DATABASE, "storage/caddy/cert", f"{DATABASE}-wal")
        (self.work / "targets").write_text("".join(f"{target}\0" for target in targets))

    @property
    def database(self) -> Path:
        return self.data / DATABASE

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        environment = {
            "BACKUP_DATA": str(self.data),
            "BACKUP_WORK": str(self.work),
            "BACKUP_DESTINATION": str(self.backups),
            "BACKUP_CLIENT": str(self.path / "client"),
        }
        return worker.ask("unpacker", job, environment, **arguments)

    def step(self, job: str, **arguments: Any) -> list[str]:
        """Its warnings; it must succeed."""
        answer = self.ask(job, work=NAME, **arguments)
        assert answer["code"] == 0, answer["reason"]
        return list(answer["warnings"])

    def backup(self, path: str, content: bytes) -> str:
        """A file of the destination; its name below it."""
        target = self.backups / path
        target.parent.mkdir(exist_ok=True)
        if target.suffix == ".gz":
            target.write_bytes(gzip.compress(content))
        else:
            done = subprocess.run(["zstd", "-q"], input=content, capture_output=True, check=True)
            target.write_bytes(done.stdout)
        return path

    @property
    def live(self) -> dict[str, str]:
        """Content by path, of the deployment."""
        return {
            str(path.relative_to(self.data)): path.read_text()
            for path in self.data.rglob("*")
            if path.is_file() and "backup-staging" not in path.parts
        }


@pytest.fixture
def unpacker(tmp_path: Path) -> Unpacker:
    return Unpacker(tmp_path, tmp_path / "deploy/storage/backup-staging")


@pytest.fixture
def on_two_file_systems(tmp_path: Path) -> Iterator[Unpacker]:
    other = Path(tempfile.mkdtemp(dir="/dev/shm"))
    assert other.stat().st_dev != tmp_path.stat().st_dev
    yield Unpacker(tmp_path, other)
    shutil.rmtree(other)


# ---------------------------------------------------------------- a swap, and back


def there_and_back(unpacker: Unpacker) -> None:
    before = unpacker.live
    unpacker.step("apply")
    assert unpacker.live == {DATABASE: "as it was\n", "storage/caddy/cert": "new\n"}
    assert (unpacker.work / "old" / DATABASE).read_text() == "as it is\n"
    unpacker.step("rollback")
    assert unpacker.live == before
    assert not (unpacker.data / "storage/caddy").exists()


def test_what_was_swapped_is_swapped_back(unpacker: Unpacker) -> None:
    there_and_back(unpacker)


def test_what_was_swapped_is_swapped_back_between_two_file_systems(
    on_two_file_systems: Unpacker,
) -> None:
    there_and_back(on_two_file_systems)
    places = (on_two_file_systems.data, on_two_file_systems.work)
    assert not [path for place in places for path in place.rglob(".tracker-backup-*")]


def test_files_are_not_copied_where_they_can_be_linked(unpacker: Unpacker) -> None:
    before = unpacker.database.stat().st_ino
    unpacker.step("apply")
    assert (unpacker.work / "old" / DATABASE).stat().st_ino == before
    unpacker.step("rollback")
    assert unpacker.database.stat().st_ino == before


def test_a_symlink_is_moved_as_one_between_two_file_systems(on_two_file_systems: Unpacker) -> None:
    unpacker = on_two_file_systems
    unpacker.database.unlink()
    unpacker.database.symlink_to("/etc/passwd")
    unpacker.step("apply")
    assert (unpacker.work / "old" / DATABASE).readlink() == Path("/etc/passwd")
    assert not unpacker.database.is_symlink()


def test_a_roll_back_that_is_cut_short_is_rolled_back_again(on_two_file_systems: Unpacker) -> None:
    unpacker = on_two_file_systems
    unpacker.step("apply")
    partial = unpacker.database.with_name((unpacker.work / "partial").read_text())
    partial.write_text("cut")
    unpacker.step("rollback")
    assert unpacker.live == {DATABASE: "as it is\n"}
    unpacker.step("rollback")
    assert unpacker.live == {DATABASE: "as it is\n"}


def test_a_rollback_writes_through_no_link_that_was_put_there_since_and_is_kept_from_nothing(
    unpacker: Unpacker,
) -> None:
    unpacker.step("apply")
    unpacker.elsewhere.mkdir()
    (unpacker.elsewhere / "tracker.db").write_text("mine\n")
    (unpacker.data / f"{DATABASE}-wal").mkdir()
    unpacker.database.parent.rename(unpacker.path / "moved")
    unpacker.database.parent.symlink_to(unpacker.elsewhere)
    unpacker.step("rollback")
    assert (unpacker.elsewhere / "tracker.db").read_text() == "mine\n"
    assert not unpacker.database.parent.is_symlink()
    assert unpacker.database.read_text() == "as it is\n"


def test_a_directory_in_the_place_of_a_file_does_not_keep_a_rollback_from_the_rest(
    unpacker: Unpacker,
) -> None:
    unpacker.step("apply")
    unpacker.database.unlink()
    unpacker.database.mkdir()
    unpacker.step("rollback")
    assert unpacker.database.read_text() == "as it is\n"


def test_a_directory_with_the_name_of_a_journal_stays_and_keeps_no_restore(
    unpacker: Unpacker,
) -> None:
    directory = unpacker.data / f"{DATABASE}-wal"
    directory.mkdir()
    unpacker.step("apply")
    assert unpacker.database.read_text() == "as it was\n"
    unpacker.step("rollback")
    assert unpacker.database.read_text() == "as it is\n"
    assert directory.is_dir()


def test_a_directory_in_the_place_of_a_file_refuses_a_restore(unpacker: Unpacker) -> None:
    unpacker.database.unlink()
    unpacker.database.mkdir()
    answer = unpacker.ask("apply", work=NAME)
    assert answer["code"] == 1
    assert "is a directory; the backup has a file there" in answer["reason"]
    assert not (unpacker.work / "begun").exists()


def test_what_is_not_empty_stays_with_a_warning(unpacker: Unpacker) -> None:
    unpacker.step("apply")
    (unpacker.data / "storage/caddy/mine").write_text("mine\n")
    (warning,) = unpacker.step("rollback")
    assert warning.endswith("storage/caddy is not empty and stays")


def test_a_restore_that_an_earlier_version_began_is_rolled_back_without_its_partial_copies(
    unpacker: Unpacker,
) -> None:
    unpacker.step("apply")
    (unpacker.work / "partial").unlink()
    unpacker.database.with_name("tracker.db.restore-partial").write_text("cut")
    unpacker.step("rollback")
    assert unpacker.live == {DATABASE: "as it is\n"}


def test_no_database_that_is_restored_stands_beside_the_journal_of_another(
    unpacker: Unpacker,
) -> None:
    shutil.rmtree(unpacker.work / "new")
    config = unpacker.path / "config"
    grafana = "storage/grafana/grafana.db"
    (config / grafana).parent.mkdir(parents=True)
    sqlite3.connect(config / grafana).execute("CREATE TABLE dashboard (id)")
    subprocess.run(["tar", "-C", config, "-cf", unpacker.work / "config.tar", "."], check=True)
    (unpacker.data / grafana).parent.mkdir()
    journal = unpacker.data / f"{grafana}-journal"
    journal.write_text("hot")
    unpacker.step("prepare", kind="config", database="", paths=[grafana])
    unpacker.step("apply")
    assert (unpacker.data / grafana).exists()
    assert not journal.exists()
    unpacker.step("rollback")
    assert journal.read_text() == "hot"
    assert not (unpacker.data / grafana).exists()


# ---------------------------------------------------------------- unpacking


def test_the_sizes_are_those_of_what_is_unpacked(unpacker: Unpacker) -> None:
    files = [
        unpacker.backup("sqlite/a.db.gz", bytes(12345)),
        unpacker.backup("config/b.tar.zst", bytes(678)),
    ]
    answer = unpacker.ask("measure", files=files)
    assert answer["numbers"] == {"sqlite/a.db.gz": 12345, "config/b.tar.zst": 678}


def test_a_database_is_checked_and_counted(unpacker: Unpacker) -> None:
    database = unpacker.path / "x.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE keys (id)")
        connection.execute("INSERT INTO keys VALUES (1), (2)")
    content = database.read_bytes()
    file = unpacker.backup("sqlite/a.db.gz", content)
    assert unpacker.ask("unpack", files=[file], paths=[])["tables"]["keys"] == 2
    unpacker.backup(file, content[:4096])
    assert unpacker.ask("unpack", files=[file], paths=[])["code"] == 1


DUMP = b"""/*M!999999\\- enable the sandbox mode */
CREATE TABLE `keys` (
  `id` int
);
CREATE TABLE `odd``name` (
  `id` int
);
INSERT INTO `odd``name` VALUES
(1),
(2);
(not a row)
-- Dump completed on 2026-01-01
"""


def test_the_rows_of_all_dumps_are_counted(unpacker: Unpacker) -> None:
    files = [
        unpacker.backup("mysql/a.sql.gz", DUMP),
        unpacker.backup(
            "mysql/a.torrents.sql.zst",
            b"INSERT INTO `torrents` VALUES\n(1);\n-- Dump completed\n",
        ),
    ]
    answer = unpacker.ask("unpack", files=files, paths=[])
    assert answer["tables"] == {"keys": 0, "odd`name": 2, "torrents": 1}
    assert (unpacker.work / "torrents.sql").exists()


def test_a_dump_that_is_cut_off_is_refused(unpacker: Unpacker) -> None:
    file = unpacker.backup("mysql/a.sql.gz", DUMP[:-40])
    assert "the dump is cut off" in unpacker.ask("unpack", files=[file], paths=[])["reason"]


def test_what_the_archive_lacks_is_answered(unpacker: Unpacker) -> None:
    for name in ("storage/x y", "storage/ä"):
        (unpacker.path / "config" / name).mkdir(parents=True)
    tar = subprocess.run(
        ["tar", "-C", unpacker.path / "config", "-c", "storage/x y", "storage/ä"],
        check=True,
        capture_output=True,
    ).stdout
    file = unpacker.backup("config/a.tar.gz", tar)
    paths = ["storage/x y", "storage/ä", ".env"]
    assert unpacker.ask("unpack", files=[file], paths=paths)["missing"] == [".env"]
    unpacker.backup(file, b"x" * 2000)
    answer = unpacker.ask("unpack", files=[file], paths=paths)
    assert "is not a readable archive" in answer["reason"]


@pytest.mark.parametrize("file", ["sqlite/a.db.gz", "config/a.tar.zst"])
def test_a_file_that_is_cut_short_cannot_be_unpacked(unpacker: Unpacker, file: str) -> None:
    unpacker.backup(file, os.urandom(5000))
    path = unpacker.backups / file
    path.write_bytes(path.read_bytes()[:2000])
    reason = unpacker.ask("unpack", files=[file], paths=[])["reason"]
    assert reason == f"{file} cannot be unpacked"


# ---------------------------------------------------------------- the client's options


@pytest.mark.parametrize("tls", ["verified", "unverified"])
def test_the_clients_options_are_quoted_and_nobody_else_may_read_them(
    unpacker: Unpacker, tls: str
) -> None:
    answer = unpacker.ask(
        "connect", host="db", port="3306", user="u", password='a"b\\c', tls=tls, ca="CERTIFICATE"
    )
    assert answer["code"] == 0, answer
    options = unpacker.path / "client/client.cnf"
    assert options.stat().st_mode & 0o777 == 0o600
    lines = options.read_text().splitlines()
    assert 'password="a\\"b\\\\c"' in lines
    assert ("ssl-verify-server-cert" in lines) == (tls == "verified")
    assert ("skip-ssl-verify-server-cert" in lines) == (tls == "unverified")
    assert (f'ssl-ca="{unpacker.path}/client/ca.pem"' in lines) == (tls == "verified")
    assert (unpacker.path / "client/ca.pem").read_text() == "CERTIFICATE"
