"""The unpacker as a process: what it extracts, and what it refuses or skips."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from unit import worker

FULL = 20
MANY = 1 << 30  # bytes
DEEP = "d" * 200
LONG = "雪" * 83 + "x"  # 250 bytes


class Unpacker:
    """A place for one backup file, and an empty directory."""

    def __init__(self, path: Path) -> None:
        self.archives, self.work = path / "archive", path / "work"
        self.archives.mkdir()
        self.work.mkdir()

    def ask(self, job: str, limit_bytes: int = MANY, **arguments: Any) -> dict[str, Any]:
        environment = {"BACKUP_ARCHIVES": str(self.archives), "BACKUP_WORK": str(self.work)}
        return worker.ask("unpacker", job, environment, limit_bytes=limit_bytes, **arguments)

    def backup(self, name: str, content: bytes) -> None:
        if name.endswith(".gz"):
            (self.archives / name).write_bytes(gzip.compress(content))
        else:
            done = subprocess.run(["zstd", "-q"], input=content, capture_output=True, check=True)
            (self.archives / name).write_bytes(done.stdout)

    def archive(self, *members: tarfile.TarInfo) -> None:
        """Each regular file has its own name as its content."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for one in members:
                content = one.name.encode() if one.isreg() else b""
                one.size = len(content)
                tar.addfile(one, io.BytesIO(content))
        self.backup("c.tar.gz", stream.getvalue())

    def extract(self, *paths: str) -> dict[str, Any]:
        """The answer; the job must succeed."""
        answer = self.ask("extract", paths=list(paths))
        assert answer["code"] == 0, answer["reason"]
        return answer

    def content(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.work)): path.read_text()
            for path in self.work.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o640) -> Any:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, link, mode
    found.uid, found.gid, found.mtime = 1000, 1001, 1700000000
    return found


@pytest.fixture
def unpacker(tmp_path: Path) -> Unpacker:
    return Unpacker(tmp_path)


# ---------------------------------------------------------------- one file


@pytest.mark.parametrize("name", ["a.db.gz", "a.db.zst"])
def test_a_database_is_decompressed(unpacker: Unpacker, name: str) -> None:
    content = os.urandom(300000)
    unpacker.backup(name, content)
    assert unpacker.ask("unpack", name="database.db")["code"] == 0
    assert (unpacker.work / "database.db").read_bytes() == content


@pytest.mark.parametrize("name", ["a.db.gz", "a.db.zst"])
def test_a_file_that_is_cut_short_is_damaged(unpacker: Unpacker, name: str) -> None:
    unpacker.backup(name, os.urandom(5000))
    path = unpacker.archives / name
    path.write_bytes(path.read_bytes()[:2000])
    assert unpacker.ask("unpack", name="x")["reason"] == f"{name} cannot be unpacked"


def test_what_does_not_fit_is_not_damage(unpacker: Unpacker) -> None:
    unpacker.backup("a.db.gz", bytes(5000))
    assert unpacker.ask("unpack", limit_bytes=4999, name="x")["code"] == FULL
    (unpacker.work / "x").unlink()
    assert unpacker.ask("unpack", limit_bytes=5000, name="x")["code"] == 0


def test_all_files_of_an_archive_have_one_limit(unpacker: Unpacker) -> None:
    unpacker.archive(member("a/1"), member("a/2"))
    assert unpacker.ask("extract", limit_bytes=5, paths=["a"])["code"] == FULL


# ---------------------------------------------------------------- archives


def test_files_come_with_their_owners_modes_and_times(unpacker: Unpacker) -> None:
    unpacker.archive(member("a", tarfile.DIRTYPE, mode=0o2770), member("a/b", mode=0o4755))
    unpacker.extract("a")
    directory, file = unpacker.work / "a", unpacker.work / "a/b"
    assert directory.stat().st_mode & 0o7777 == 0o2770
    assert file.stat().st_mode & 0o7777 == 0o755  # without the set-uid bit
    for path in (directory, file):
        facts = path.stat()
        assert (facts.st_uid, facts.st_gid, facts.st_mtime) == (1000, 1001, 1700000000)


def test_only_the_paths_of_the_run_are_extracted_and_missing_ones_named(
    unpacker: Unpacker,
) -> None:
    unpacker.archive(member(".env"), member("backup/secrets/x"), member("x y/ä/f"))
    answer = unpacker.extract(".env", "x y/ä", "gone")
    assert unpacker.content() == {".env": ".env", "x y/ä/f": "x y/ä/f"}
    assert answer["missing"] == ["gone"]


def test_links_come_last_and_nothing_is_written_through_one(
    unpacker: Unpacker, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    unpacker.archive(
        member("a/link", tarfile.SYMTYPE, str(elsewhere)),
        member("a/link/file"),
        member("a/other", tarfile.SYMTYPE, "/etc/passwd"),
    )
    answer = unpacker.ask("extract", paths=["a"])
    assert answer["code"] == 1  # a directory has the name of the link
    assert not list(elsewhere.iterdir())


def test_a_link_is_extracted_as_one(unpacker: Unpacker) -> None:
    unpacker.archive(member("a/link", tarfile.SYMTYPE, "/etc/passwd"))
    unpacker.extract("a")
    assert (unpacker.work / "a/link").readlink() == Path("/etc/passwd")
    assert (unpacker.work / "a/link").lstat().st_uid == 1000


def test_a_hard_link_becomes_a_file_of_its_own(unpacker: Unpacker) -> None:
    unpacker.archive(member("a/1"), member("a/2", tarfile.LNKTYPE, "a/1"))
    unpacker.extract("a")
    assert unpacker.content() == {"a/1": "a/1", "a/2": "a/1"}
    assert (unpacker.work / "a/2").stat().st_nlink == 1


def test_a_hard_link_to_a_symlink_reads_nothing(unpacker: Unpacker) -> None:
    unpacker.archive(
        member("a/1", tarfile.SYMTYPE, "/etc/passwd"), member("a/2", tarfile.LNKTYPE, "a/1")
    )
    assert unpacker.extract("a")["warnings"] == ["skipped, a link to a skipped file: a/2"]
    assert unpacker.content() == {}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_skipped(unpacker: Unpacker, kind: bytes) -> None:
    unpacker.archive(member("a/odd", kind), member("a/file"))
    answer = unpacker.extract("a")
    assert answer["warnings"] == ["skipped, a device, a pipe or a sparse file: a/odd"]
    assert unpacker.content() == {"a/file": "a/file"}


def test_a_path_that_leads_up_is_refused(unpacker: Unpacker) -> None:
    unpacker.archive(member("a/../../x"))
    assert "a path with '..'" in unpacker.ask("extract", paths=["a"])["reason"]


def test_the_last_member_of_a_name_counts(unpacker: Unpacker) -> None:
    unpacker.archive(member("a/1", tarfile.SYMTYPE, "/etc/passwd"), member("a/1"))
    unpacker.extract("a")
    assert unpacker.content() == {"a/1": "a/1"}


def test_names_of_any_length_are_extracted(unpacker: Unpacker) -> None:
    long = f"a/{LONG}"
    deep = "/".join(["a", *[DEEP] * 30, "f"])  # longer than a system call takes
    unpacker.archive(member(long), member(deep))
    unpacker.extract("a")
    assert (unpacker.work / long).read_text() == long
    found = subprocess.run(
        ["find", unpacker.work, "-type", "f", "-name", "f"], capture_output=True, check=True
    )
    assert found.stdout.count(DEEP.encode()) == 30


def test_what_is_too_deep_is_skipped(unpacker: Unpacker) -> None:
    unpacker.archive(member("a/" + "d/" * 255 + "f"), member("a/" + "d/" * 254 + "f"))
    (warning,) = unpacker.extract("a")["warnings"]
    assert warning.startswith("skipped, more than 256 levels: a/d/")
    assert sum(1 for path in unpacker.work.rglob("f") if path.is_file()) == 1


def test_what_is_no_archive_is_refused(unpacker: Unpacker) -> None:
    unpacker.backup("c.tar.gz", b"x" * 2000)
    assert "is not a readable archive" in unpacker.ask("extract", paths=[])["reason"]
