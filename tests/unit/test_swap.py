"""swap.py and undo_older.py: after a death at any moment, everything is as it was before."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unit.sandbox import TEMPLATES, load

LONG = "l" * 245
DATABASE = "storage/tracker/lib/database/tracker.db"
CADDY = "storage/caddy/data"
ENV = ".env"


class Died(Exception):
    pass


class Swapper:
    """A deployment, and a restore's directory with new content for it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("TRACKER_BACKUP_STATE_DIR", str(path / "state"))
        (path / "state").mkdir()
        self.tool = load(TEMPLATES)
        self.deploy = path / "deploy"
        staging = self.deploy / "storage/backup-staging"
        self.host: Any = SimpleNamespace(
            deploy_dir=self.deploy, staging=staging, configuration=self.deploy / "backup"
        )
        self.work = staging / "20260101_030000.restore"
        self.mounts = path / "mountinfo"
        self.mount("/")
        monkeypatch.setattr(self.tool.swap, "MOUNTS", self.mounts)
        for root, text in ((self.deploy, "old"), (self.work / "new", "new")):
            self.put(root / ENV, text)
            self.put(root / CADDY / f"{text}/{LONG}", text)
            self.put(root / CADDY / "cert", text)
            (root / DATABASE).parent.mkdir(parents=True)
            sqlite3.connect(root / DATABASE).execute(f"CREATE TABLE {text} (a)")
        self.work.chmod(0o700)
        self.put(self.deploy / f"{DATABASE}-journal", "hot")
        self.put(self.work / "new/storage/grafana/provisioning/x", "new")
        self.paths = [ENV, CADDY, "storage/grafana/provisioning", DATABASE]

    def put(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mount(self, *points: str) -> None:
        """What /proc/self/mountinfo says."""
        lines = [
            f"1 0 8:1 / {point} rw - ext4 x rw\n".replace("\t", "\\011") for point in ("/", *points)
        ]
        self.mounts.write_text("".join(lines))

    def picture(self) -> dict[str, Any]:
        """What is in the deployment, but for staging."""
        return {
            str(path.relative_to(self.deploy)): (
                stat.filemode(path.lstat().st_mode),
                str(path.readlink())
                if path.is_symlink()
                else path.read_bytes()
                if path.is_file()
                else "",
            )
            for path in self.deploy.rglob("*")
            if "backup-staging" not in path.parts and ".tracker-backup-restore" not in path.parts
        }

    def dies_at(self, number: int) -> Callable[[], None]:
        """The rename with this number, from 0, is not made any more. Returns what heals it."""
        rename, left = os.rename, [number]

        def dying(*words: Any, **options: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Died
            rename(*words, **options)

        self.monkeypatch.setattr(self.tool.swap.os, "rename", dying)
        return lambda: self.monkeypatch.setattr(self.tool.swap.os, "rename", rename)

    def swap(self) -> tuple[Any, Any]:
        """The moves and the directories made, as the journal has them, after the swap."""
        self.tool.swap.check(self.host, self.work, self.paths)
        moves = self.tool.swap.prepare(self.host, self.work, self.paths)
        journal = self.tool.swap.look(self.host, moves, ["storage/mysql/data"])
        self.tool.swap.make_directories(self.host, self.work / "new", journal[1])
        self.journal = journal
        self.tool.swap.swap(self.host, journal[0])
        return journal  # type: ignore[no-any-return]

    def undo(self) -> None:
        self.tool.swap.undo(self.host, *self.journal)


@pytest.fixture
def swapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Swapper:
    return Swapper(tmp_path, monkeypatch)


# ---------------------------------------------------------------- there and back


def test_whole_targets_are_swapped_and_the_database_with_its_journals(swapper: Swapper) -> None:
    swapper.swap()
    assert (swapper.deploy / ENV).read_text() == "new"
    assert sorted(path.name for path in (swapper.deploy / CADDY).iterdir()) == ["cert", "new"]
    assert not (swapper.deploy / f"{DATABASE}-journal").exists()
    assert (swapper.deploy / "storage/mysql/data").is_dir()
    old = swapper.work / "old"
    assert (old / f"{DATABASE}-journal").read_text() == "hot"
    assert (old / CADDY / "old" / LONG).read_text() == "old"
    assert not (swapper.work / "new" / DATABASE).exists()


def test_what_was_swapped_is_swapped_back(swapper: Swapper) -> None:
    before = swapper.picture()
    swapper.swap()
    swapper.put(swapper.deploy / f"{DATABASE}-wal", "of the restored database")
    swapper.undo()
    assert swapper.picture() == before
    swapper.undo()
    assert swapper.picture() == before


@pytest.mark.parametrize("empty", [False, True])
def test_what_a_server_began_in_a_directory_of_the_restore_goes_where_the_machine_was_empty(
    swapper: Swapper, empty: bool
) -> None:
    before = swapper.picture()
    swapper.swap()
    swapper.put(swapper.deploy / "storage/mysql/data/ibdata1", "half")
    room = str(swapper.work.relative_to(swapper.deploy)) if empty else ""
    swapper.tool.swap.undo(swapper.host, *swapper.journal, room)
    left = swapper.picture().keys() - before.keys()
    data = {"storage/mysql", "storage/mysql/data", "storage/mysql/data/ibdata1"}
    assert left == (set() if empty else data)


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("second", range(9))
def test_a_death_at_any_rename_of_the_swap_and_of_the_roll_back_is_undone(
    swapper: Swapper, number: int, second: int
) -> None:
    before = swapper.picture()
    heal = swapper.dies_at(number)
    with suppress(Died):
        swapper.swap()
        assert number == 8, "there are eight renames"
    heal()
    heal = swapper.dies_at(second)
    with suppress(Died):
        swapper.undo()
    heal()
    swapper.undo()
    assert swapper.picture() == before


def test_a_failure_of_one_target_keeps_no_other_from_being_put_back(swapper: Swapper) -> None:
    swapper.swap()
    shutil.rmtree(swapper.work / "old" / CADDY)
    swapper.put(swapper.work / "old" / "storage/caddy/data/cert", "old")
    moves, made = swapper.journal
    swapper.put(swapper.work / "elsewhere", "")
    broken = type(moves[1])(moves[1].path, "storage/gone", True, True)
    with pytest.raises(swapper.tool.host.Refused, match=CADDY):
        swapper.tool.swap.undo(swapper.host, [moves[0], broken, *moves[2:]], made)
    assert (swapper.deploy / ENV).read_text() == "old"
    assert (swapper.deploy / f"{DATABASE}-journal").read_text() == "hot"


# ---------------------------------------------------------------- what services plant meanwhile


def test_a_roll_back_writes_through_no_link_and_is_kept_from_nothing(
    swapper: Swapper, tmp_path: Path
) -> None:
    before = swapper.picture()
    swapper.swap()
    elsewhere = tmp_path / "elsewhere"
    swapper.put(elsewhere / "tracker.db", "mine")
    directory = (swapper.deploy / DATABASE).parent
    directory.rename(tmp_path / "moved")
    directory.symlink_to(elsewhere)
    shutil.rmtree(swapper.deploy / CADDY)
    (swapper.deploy / CADDY).symlink_to("/etc")
    swapper.undo()
    assert [path.name for path in elsewhere.iterdir()] == ["tracker.db"]
    assert (elsewhere / "tracker.db").read_text() == "mine"
    assert swapper.picture() == before


def test_a_link_above_a_target_is_refused_before_anything_moves(
    swapper: Swapper, tmp_path: Path
) -> None:
    (swapper.deploy / "storage/caddy").rename(tmp_path / "caddy")
    (swapper.deploy / "storage/caddy").symlink_to(tmp_path / "caddy")
    with pytest.raises(swapper.tool.host.Refused, match="storage/caddy is a symlink"):
        swapper.tool.swap.check(swapper.host, swapper.work, swapper.paths)


@pytest.mark.parametrize("kind", ["pipe", "hard link"])
def test_what_an_extractor_cannot_leave_is_refused(swapper: Swapper, kind: str) -> None:
    """A hard link would give a service another one's file."""
    planted = swapper.work / "new" / CADDY / "planted"
    if kind == "pipe":
        os.mkfifo(planted)
    else:
        os.link(swapper.work / "new" / ENV, planted)
    with pytest.raises(swapper.tool.host.Refused, match=r"linked twice|a pipe"):
        swapper.tool.swap.check(swapper.host, swapper.work, swapper.paths)


def test_set_uid_bits_are_dropped_again(swapper: Swapper) -> None:
    (swapper.work / "new" / CADDY / "cert").chmod(0o6755)
    swapper.swap()
    assert (swapper.deploy / CADDY / "cert").stat().st_mode & 0o7777 == 0o755


def test_only_paths_of_our_own_list_are_replaced(
    swapper: Swapper, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run manifest names what a reader said that it archived."""
    swapper.put(
        swapper.deploy / "backup/backup-paths.txt",
        "/data/.env\n?/data/storage/caddy/data\ndir:/data/storage/mysql\n"
        "sqlite:/data/storage/grafana/data/grafana.db\n",
    )
    paths = [".env", "storage/mysql", "storage/grafana/data/grafana.db", "backup/secrets", "../x"]
    run = SimpleNamespace(paths=paths, compose_files=[])
    found = swapper.tool.swap.targets(swapper.host, run, {"config", "database"}, DATABASE)
    assert found == [".env", "storage/grafana/data/grafana.db", DATABASE]
    assert "backup/secrets is in the backup, but not in the path list" in capsys.readouterr().out
    assert swapper.tool.swap.targets(swapper.host, run, {"database"}, DATABASE) == [DATABASE]


def test_the_compose_files_of_the_run_are_replaced_and_nothing_in_their_disguise(
    swapper: Swapper,
) -> None:
    swapper.put(swapper.deploy / "backup/backup-paths.txt", "/data/.env\n")
    good = ["docker-compose.yml", "docker-compose.override.yml", "compose/extra.yaml"]
    bad = ["backup/x.yml", "storage/tracker/x.yml", "docker-compose.backup.yml", "secrets"]
    run = SimpleNamespace(paths=[*good, *bad], compose_files=[*good, *bad])
    assert swapper.tool.swap.targets(swapper.host, run, {"config"}, "") == good


@pytest.mark.parametrize("path", ["a/../../x", "..", "./a", "a//b", "/etc"])
def test_no_path_leads_up(swapper: Swapper, path: str) -> None:
    with pytest.raises(swapper.tool.host.Refused, match="is no plain path"):
        swapper.tool.trees.facts_of(swapper.deploy, path)


# ---------------------------------------------------------------- mounts


@pytest.mark.parametrize("point", [CADDY, f"{CADDY}/with space/x", DATABASE])
def test_a_mount_point_at_or_below_a_target_is_refused(swapper: Swapper, point: str) -> None:
    swapper.mount(f"{swapper.deploy}/{point}".replace(" ", "\\040"))
    with pytest.raises(swapper.tool.host.Refused, match=f"{point} is a mount point"):
        swapper.tool.swap.check(swapper.host, swapper.work, swapper.paths)


@pytest.fixture
def database_elsewhere(swapper: Swapper) -> Iterator[Path]:
    """The database's directory, on a file system of its own."""
    mount = (swapper.deploy / DATABASE).parent
    other = Path(tempfile.mkdtemp(dir="/dev/shm"))
    for path in mount.iterdir():
        shutil.copy(path, other)
    shutil.rmtree(mount)
    mount.mkdir(parents=True)
    if subprocess.run(["mount", "--bind", other, mount], check=False).returncode != 0:
        shutil.rmtree(other)
        pytest.skip("this machine does not let us mount anything")
    swapper.mount(str(mount))
    yield mount
    subprocess.run(["umount", mount], check=True)
    shutil.rmtree(other)


def test_a_database_on_a_file_system_of_its_own_is_swapped_there(
    swapper: Swapper, database_elsewhere: Path
) -> None:
    before = swapper.picture()
    inode = (swapper.deploy / DATABASE).stat().st_ino
    swapper.swap()
    room = database_elsewhere / ".tracker-backup-restore"
    assert room.stat().st_mode & 0o7777 == 0o700
    assert (room / "old" / DATABASE).stat().st_ino == inode
    assert b"CREATE TABLE new" in (swapper.deploy / DATABASE).read_bytes()
    swapper.undo()
    assert swapper.picture() == before
    assert (swapper.deploy / DATABASE).stat().st_ino == inode


def test_a_room_that_a_service_has_put_there_is_refused(
    swapper: Swapper, database_elsewhere: Path
) -> None:
    swapper.swap()
    room = database_elsewhere / ".tracker-backup-restore"
    os.chown(room, 1000, 1000)
    with pytest.raises(swapper.tool.host.Refused, match="is not ours"):
        swapper.undo()


# ---------------------------------------------------------------- what stays


def test_what_was_there_before_is_kept_until_the_next_restore(
    swapper: Swapper, capsys: pytest.CaptureFixture[str]
) -> None:
    moves, _ = swapper.swap()
    swapper.put(swapper.host.staging / "before-restore/older", "")
    swapper.tool.swap.keep_old(swapper.host, swapper.work, moves)
    before = swapper.host.staging / "before-restore"
    assert (before / ENV).read_text() == "old"
    assert not (before / "older").exists()
    assert f"what was there before is in {before}" in capsys.readouterr().out


def test_files_that_the_backup_does_not_have_are_named(
    swapper: Swapper, capsys: pytest.CaptureFixture[str]
) -> None:
    swapper.put(swapper.deploy / CADDY / "mine", "")
    swapper.swap()
    said = capsys.readouterr().out
    assert f"warning: {CADDY}/mine is not in the backup and moves away" in said
    assert f"{CADDY}/cert" not in said


def test_a_database_keeps_the_owner_and_the_mode_that_it_has(
    swapper: Swapper, tool: ModuleType
) -> None:
    os.chown(swapper.deploy / DATABASE, 1000, 1001)
    (swapper.deploy / DATABASE).chmod(0o660)
    shutil.rmtree(swapper.work / "new/storage/tracker")
    swapper.put(swapper.work / "database/database.db", "")
    swapper.tool.workshop.place_database(swapper.host, swapper.work, DATABASE)
    facts = (swapper.work / "new" / DATABASE).stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (1000, 1001, 0o660)


# ---------------------------------------------------------------- an older version's restore


def older(swapper: Swapper) -> dict[str, Any]:
    """What a dead restore of an older version leaves half-way; returns the picture before it."""
    before, work, old = swapper.picture(), swapper.work, swapper.work / "old"
    moved = [ENV, f"{CADDY}/cert", f"{CADDY}/old/{LONG}", f"{DATABASE}-journal"]
    new = ["storage/grafana/provisioning/x"]
    for path in moved:
        (old / path).parent.mkdir(parents=True, exist_ok=True)
        (swapper.deploy / path).rename(old / path)
    swapper.put(swapper.deploy / f"{CADDY}/cert", "new")
    (swapper.deploy / "storage/grafana/provisioning").mkdir(parents=True)
    swapper.put(swapper.deploy / new[0], "new")
    swapper.put(swapper.deploy / f"{ENV}.restore-partial", "cut")
    for name, paths in {
        "targets": [*moved, *new],
        "existing": moved,
        "absent": new,
        "made": ["storage/grafana", "storage/grafana/provisioning"],
    }.items():
        (work / name).write_text("".join(f"{path}\0" for path in paths))
    (work / "begun").touch()
    return before


def test_a_restore_that_an_older_version_began_is_rolled_back(swapper: Swapper) -> None:
    before = older(swapper)
    swapper.tool.undo_older.undo_older(swapper.host, swapper.work)
    assert swapper.picture() == before
    swapper.tool.undo_older.undo_older(swapper.host, swapper.work)
    assert swapper.picture() == before


def test_the_roll_back_of_an_older_restore_follows_no_link(
    swapper: Swapper, tmp_path: Path
) -> None:
    older(swapper)
    elsewhere = tmp_path / "elsewhere"
    swapper.put(elsewhere / "cert", "mine")
    (swapper.deploy / CADDY).rename(tmp_path / "data")
    (swapper.deploy / CADDY).symlink_to(elsewhere)
    swapper.tool.undo_older.undo_older(swapper.host, swapper.work)
    assert (elsewhere / "cert").read_text() == "mine"
    assert (swapper.deploy / CADDY / "cert").read_text() == "old"
    assert not (swapper.deploy / CADDY).is_symlink()


def test_the_roll_back_of_an_older_restore_copies_between_file_systems(
    swapper: Swapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = older(swapper), os.rename

    def between(source: Any, target: Any, **options: Any) -> None:
        if options and options["src_dir_fd"] != options["dst_dir_fd"]:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target, **options)

    monkeypatch.setattr(swapper.tool.undo_older.os, "rename", between)
    swapper.tool.undo_older.undo_older(swapper.host, swapper.work)
    assert swapper.picture() == before
