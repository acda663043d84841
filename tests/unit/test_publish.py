"""The publisher: what reaches the destination, and what a dead run left there."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unit.sandbox import mode

RUN = "20260102_030405"
DATABASE, CONFIG = f"sqlite/sqlite_{RUN}.db.gz", f"config/config_{RUN}.tar.gz"
LIMIT = 1 << 30


class Publisher:
    """A role's directory with two finished files, and a destination."""

    def __init__(self, tool: ModuleType, path: Path) -> None:
        self.path, self.module = path, importlib.import_module(f"{tool.__name__}.publish")
        self.destination, self.work = path / "destination", path / "work"
        for directory in ("sqlite", "mysql", "config", "runs"):
            (self.destination / directory).mkdir(parents=True)
        self.work.mkdir()
        (self.work / "database.db.gz").write_bytes(b"database" * 1000)
        (self.work / "config.tar.gz").write_bytes(b"configuration")
        self.directory = os.open(self.work, os.O_RDONLY)
        self.warnings: list[str] = []
        self.host = SimpleNamespace(destination=self.destination, staging=path)

    def source(self, kind: str, **changes: Any) -> Any:
        path, name = {
            "database": (DATABASE, "database.db.gz"),
            "config": (CONFIG, "config.tar.gz"),
        }[kind]
        given = {"uid": os.geteuid(), "limit": LIMIT, **changes}
        return self.module.Source(kind, path, self.directory, name, given["uid"], given["limit"])

    def publish(self, *sources: Any) -> Any:
        return self.module.publish(self.host, sources or self.both)

    @property
    def both(self) -> list[Any]:
        return [self.source("database"), self.source("config")]

    def refuses(self, *sources: Any) -> str:
        """The message; nothing may have been published, not even in part."""
        before = self.files()
        with pytest.raises(self.module.Refused) as refused:
            self.publish(*sources)
        assert self.files() == before
        return str(refused.value)

    def files(self) -> set[str]:
        paths = self.destination.rglob("*")
        return {str(path.relative_to(self.destination)) for path in paths if not path.is_dir()}

    def clear(self) -> list[str]:
        warnings: list[str] = []
        self.module.clear_leftovers(self.host, warnings.append)
        return warnings


@pytest.fixture
def publisher(tool: ModuleType, tmp_path: Path) -> Publisher:
    return Publisher(tool, tmp_path)


# ---------------------------------------------------------------- publish


def test_what_is_published_is_what_was_made_with_its_size_and_hash(publisher: Publisher) -> None:
    expected = []
    for kind, path, name in (
        ("database", DATABASE, "database.db.gz"),
        ("config", CONFIG, "config.tar.gz"),
    ):
        content = (publisher.work / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        expected.append(publisher.module.BackupFile(kind, path, len(content), digest))
    assert publisher.publish() == expected
    for file in expected:
        published = publisher.destination / file.path
        assert hashlib.sha256(published.read_bytes()).hexdigest() == file.sha256
        assert mode(published) == "0600"
    assert publisher.files() == {DATABASE, CONFIG}


def test_a_large_file_is_written_back_in_pieces(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[tuple[int, int]] = []
    monkeypatch.setattr(publisher.module, "PIECE_BYTES", 1000)
    monkeypatch.setattr(
        publisher.module,
        "write_back",
        lambda file, start: pieces.append((start, os.fstat(file).st_size)),
    )
    (file,) = publisher.publish(publisher.source("database"))
    assert pieces == [(start, start + 1000) for start in range(0, 8000, 1000)]
    content = (publisher.work / "database.db.gz").read_bytes()
    assert (publisher.destination / DATABASE).read_bytes() == content
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_names_are_computed_from_the_run(publisher: Publisher) -> None:
    assert publisher.module.backup_path("sqlite", RUN, "db.gz") == DATABASE
    assert publisher.module.backup_path("mysql", RUN, "torrents.sql.zst") == (
        f"mysql/mysql_{RUN}.torrents.sql.zst"
    )


def test_a_final_name_appears_only_after_the_whole_file_was_synced_and_its_directory_after_that(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    here = str(publisher.destination)

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(here + "/")
        synced.append((path, sorted(publisher.files())))

    monkeypatch.setattr(os, "fsync", fsync)
    publisher.publish()
    assert synced == [
        (f"{DATABASE}.partial", [f"{DATABASE}.partial"]),
        (f"{CONFIG}.partial", [f"{CONFIG}.partial", f"{DATABASE}.partial"]),
        ("sqlite", [f"{CONFIG}.partial", DATABASE]),
        ("config", [CONFIG, DATABASE]),
    ]


def test_an_existing_backup_of_that_name_is_not_overwritten_and_nothing_is_published_beside_it(
    publisher: Publisher,
) -> None:
    (publisher.destination / CONFIG).write_text("precious\n")
    assert publisher.refuses().endswith(f"{CONFIG} is there already; nothing was published")
    assert (publisher.destination / CONFIG).read_text() == "precious\n"


def test_a_link_at_a_partial_name_is_not_followed(publisher: Publisher) -> None:
    target = publisher.path / "precious"
    target.write_text("precious\n")
    partial = publisher.destination / f"{DATABASE}.partial"
    partial.symlink_to(target)
    with pytest.raises(publisher.module.Refused, match="File exists"):
        publisher.publish()
    assert target.read_text() == "precious\n"


def test_a_subdirectory_of_the_destination_that_is_a_link_is_refused(publisher: Publisher) -> None:
    elsewhere = publisher.path / "elsewhere"
    (publisher.destination / "sqlite").rename(elsewhere)
    (publisher.destination / "sqlite").symlink_to(elsewhere)
    assert "sqlite is not a directory that can be opened" in publisher.refuses()
    assert not list(elsewhere.iterdir())


def test_a_disk_that_is_full_publishes_nothing(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in publisher.refuses()


def test_a_file_that_would_not_leave_the_reserve_is_not_copied(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (4096, 4096, 1 << 20, 1000, 1000, 10**6, 10**6, 10**6, 0, 255)  # 4 GiB, 4 MB free
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(values))
    assert f"not enough space in {publisher.destination}: " in publisher.refuses()


def test_a_rename_that_fails_takes_the_other_file_back(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def fail(old: str, new: str, **where: int) -> None:
        if new.startswith("config"):
            raise OSError(5, "Input/output error")
        rename(old, new, **where)

    monkeypatch.setattr(os, "rename", fail)
    assert "Input/output error" in publisher.refuses()


# ---------------------------------------------------------------- take


def plant_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def plant_hard_link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def plant_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def plant_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def plant_nothing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_link, "cannot be read: Too many levels of symbolic links"),
        (plant_hard_link, "is no regular file of its own"),
        (plant_pipe, "is no regular file of its own"),
        (plant_directory, "is no regular file of its own"),
        (plant_nothing, "cannot be read: No such file or directory"),
    ],
)
def test_only_a_regular_file_of_the_role_is_taken(
    publisher: Publisher, plant: Any, message: str
) -> None:
    plant(publisher.work / "database.db.gz")
    assert publisher.refuses() == f"the container's file database.db.gz {message}"


def test_a_file_of_another_user_or_of_more_bytes_than_expected_is_refused(
    publisher: Publisher,
) -> None:
    other = publisher.source("database", uid=os.geteuid() + 1)
    assert "is no regular file of its own" in publisher.refuses(other)
    small = publisher.source("database", limit=7999)
    assert publisher.refuses(small) == (
        "the container's file database.db.gz has 8000 bytes; at most 7999 were expected"
    )
    assert publisher.publish(publisher.source("database", limit=8000))[0].bytes == 8000


def test_a_file_that_grows_while_it_is_copied_is_refused(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = publisher.work / "database.db.gz"

    def grow(_descriptor: int, _start: int) -> None:
        with grown.open("ab") as file:
            file.write(b"more" * 1000)

    monkeypatch.setattr(publisher.module, "PIECE_BYTES", 4000)
    monkeypatch.setattr(publisher.module, "write_back", grow)
    assert publisher.refuses(publisher.source("database", limit=10000)) == (
        "database.db.gz grew beyond 10000 bytes"
    )


# ---------------------------------------------------------------- leftovers


def test_partial_files_of_dead_runs_are_removed(publisher: Publisher) -> None:
    left = [f"{DATABASE}.partial", f"{CONFIG}.partial", f"runs/{RUN}.json.partial"]
    for name in left:
        (publisher.destination / name).write_text("half")
    (publisher.destination / "sqlite/mine.partial").write_text("of somebody else")
    assert sorted(publisher.clear()) == sorted(
        f"removing what a dead run left: {publisher.destination / name}" for name in left
    )
    assert publisher.files() == {"sqlite/mine.partial"}


def test_whole_files_that_no_run_manifest_names_are_moved_out_of_the_way(
    publisher: Publisher,
) -> None:
    publisher.publish()
    kept = {"runs/20260101_030405.json", "sqlite/sqlite_20260101_030405.db.gz"}
    for name in kept:
        (publisher.destination / name).write_text("{}")
    (publisher.destination / "sqlite/notes.txt").write_text("of somebody else")
    place = publisher.destination
    assert publisher.clear() == [
        f"moving what a dead run left, without a run manifest: {place / path} to "
        f"{place / 'leftover' / Path(path).name}"
        for path in (DATABASE, CONFIG)
    ]
    assert publisher.files() == {
        *kept,
        "sqlite/notes.txt",
        f"leftover/{Path(DATABASE).name}",
        f"leftover/{Path(CONFIG).name}",
    }
    assert mode(place / "leftover") == "0700"
    assert publisher.clear() == []


def test_a_file_in_the_place_of_the_directory_for_leftovers_is_a_warning(
    publisher: Publisher,
) -> None:
    publisher.publish()
    (publisher.destination / "leftover").write_text("a file")
    left = publisher.files()
    assert [warning.partition(" could not be moved: ")[2] for warning in publisher.clear()][
        1::2
    ] == ["File exists"] * 2
    assert publisher.files() == left


def test_files_of_a_damaged_run_manifest_stay_where_they_are(publisher: Publisher) -> None:
    publisher.publish()
    (publisher.destination / f"runs/{RUN}.json").write_text("{")
    assert publisher.clear() == []
    assert (publisher.destination / DATABASE).exists()


def test_leftovers_are_removed_by_the_time_in_their_name(publisher: Publisher) -> None:
    publisher.publish()
    publisher.clear()
    notes = publisher.destination / "leftover/notes.txt"
    notes.write_text("of somebody else")
    began = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    said: list[str] = []
    publisher.module.remove_old_leftovers(publisher.host, began, said.append)
    assert said == []
    later = began + datetime.timedelta(seconds=1)
    publisher.module.remove_old_leftovers(publisher.host, later, said.append)
    assert said == [
        f"retention: removed leftover/{Path(path).name}, which a dead run left"
        for path in (CONFIG, DATABASE)
    ]
    assert list(notes.parent.iterdir()) == [notes]


def test_a_destination_without_leftovers_stays_as_it_is(publisher: Publisher) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    publisher.module.remove_old_leftovers(publisher.host, now, publisher.warnings.append)
    assert publisher.clear() == publisher.warnings == []
    assert not (publisher.destination / "leftover").exists()


# ---------------------------------------------------------------- removal


def test_a_large_file_shrinks_in_steps_before_it_is_removed(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    truncate = os.ftruncate

    def record(file: int, size: int) -> None:
        sizes.append(size)
        truncate(file, size)

    monkeypatch.setattr(publisher.module, "SHRINK_BYTES", 65536)
    monkeypatch.setattr(os, "ftruncate", record)
    large = publisher.work / "large"
    large.write_bytes(bytes(range(256)) * 1024)
    os.sync()  # before that, some file systems have not allocated the blocks
    publisher.module.remove_in_steps(publisher.directory, "large", publisher.warnings.append)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) >= 4
    assert not large.exists()


def test_a_sparse_file_of_10_tb_is_removed_at_once(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (publisher.work / "sparse").open("wb") as file:
        file.truncate(10 << 40)
    monkeypatch.setattr(publisher.module, "SHRINK_SECONDS", 3600)
    publisher.module.remove_in_steps(publisher.directory, "sparse", publisher.warnings.append)
    assert not (publisher.work / "sparse").exists()


def test_what_cannot_be_removed_is_a_warning_and_a_link_is_not_followed(
    publisher: Publisher,
) -> None:
    (publisher.work / "link").symlink_to("config.tar.gz")
    (publisher.work / "directory\x1b").mkdir()
    for name in ("link", "directory\x1b"):
        publisher.module.remove_in_steps(publisher.directory, name, publisher.warnings.append)
    assert publisher.warnings == ["directory\\x1b could not be removed: Is a directory"]
    assert (publisher.work / "config.tar.gz").read_bytes() == b"configuration"
    assert not (publisher.work / "link").is_symlink()
