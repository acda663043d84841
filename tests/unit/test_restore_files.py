"""worker/restore_files.py: names of any length, and what stays when a step dies."""

from __future__ import annotations

import importlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LONG = "雪" * 83 + "x"  # 250 bytes
DEEP = "d" * 200


class Steps:
    """The module, with what the unpacker calls."""

    def __init__(self, tool: ModuleType) -> None:
        self.module = importlib.import_module(f"{tool.__name__}.worker.restore_files")
        self.answer = importlib.import_module(f"{tool.__name__}.protocol").Answer()
        self.failed = importlib.import_module(f"{tool.__name__}.worker.service").StepFailed

    def prepare(self, data: Path, work: Path, *paths: str) -> None:
        """Without paths, those of the run are all that the archive has."""
        if not paths:
            with tarfile.open(work / "config.tar", errors="surrogateescape") as tar:
                paths = tuple(name for name in tar.getnames() if name != ".")
        tree = self.module.Tree(data)
        self.module.prepare(tree, work, "config", "", list(paths), self.answer)

    def apply(self, data: Path, work: Path) -> None:
        self.module.apply(self.module.Tree(data), work)

    def rollback(self, data: Path, work: Path) -> None:
        self.module.rollback(self.module.Tree(data), work, self.answer)


@pytest.fixture
def program(tool: ModuleType) -> Iterator[Steps]:
    mask = os.umask(0o022)
    yield Steps(tool)
    os.umask(mask)


@pytest.fixture(params=["one file system", "two file systems"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(deploy directory, work directory)."""
    data = tmp_path / "data"
    data.mkdir()
    if request.param == "one file system":
        yield data, tmp_path
        return
    other = Path(tempfile.mkdtemp(dir="/dev/shm"))
    assert other.stat().st_dev != tmp_path.stat().st_dev
    yield data, other
    shutil.rmtree(other)


def plant(base: Path, names: list[str], text: str) -> None:
    """A file whose whole path may be longer than a system call takes."""
    base.mkdir(parents=True, exist_ok=True)
    parent = os.open(base, os.O_RDONLY)
    for name in names[:-1]:
        if not os.access(name, os.F_OK, dir_fd=parent):
            os.mkdir(name, dir_fd=parent)
        child = os.open(name, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    with open(os.open(names[-1], os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=parent), "w") as file:
        file.write(text)
    os.close(parent)


def look(program: Steps, base: Path) -> dict[bytes, bytes]:
    """Content by path, of everything below."""
    tree, found = program.module.Tree(base), {}
    for parts, directory in tree.walk():
        if directory:
            continue
        parent = tree.open(parts[:-1])
        try:
            with open(os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent), "rb") as file:
                found[b"/".join(parts)] = file.read()
        except OSError:
            found[b"/".join(parts)] = b"link to " + os.readlink(parts[-1], dir_fd=parent)
    return found


def pack(source: Path, work: Path) -> None:
    assert os.system(f"tar -C '{source}' --sort=name --create --file '{work}/config.tar' .") == 0


@pytest.mark.parametrize("levels", [19, 20, 40])
def test_long_names_and_deep_paths_are_restored_and_rolled_back(
    program: Steps, places: tuple[Path, Path], tmp_path: Path, levels: int
) -> None:
    """19 levels make 4079 bytes, 20 and 40 are more than any path of a system call."""
    data, work = places
    for name in (LONG, "y" * 255):
        plant(data / "storage", [name], "now")
        plant(tmp_path / "then/storage", [name], "then")
    for base, text in ((data, "now"), (tmp_path / "then", "then")):
        plant(base / "storage", [*[DEEP] * levels, LONG], text)
    plant(tmp_path / "then/storage", ["made", *[DEEP] * levels, LONG], "then")
    before = look(program, data)
    pack(tmp_path / "then", work)
    program.prepare(data, work)
    program.apply(data, work)
    assert look(program, data) == look(program, tmp_path / "then")
    assert sorted(look(program, work / "old").values()) == [b"now"] * 3
    program.rollback(data, work)
    assert look(program, data) == before
    assert not (data / "storage/made").exists()


def test_a_link_to_a_file_that_is_skipped_is_skipped_too(program: Steps, tmp_path: Path) -> None:
    data, then = tmp_path / "data", tmp_path / "then"
    data.mkdir()
    plant(then, ["a", *["d"] * (program.module.LEVELS + 1), "deep"], "deep")
    plant(then, ["shallow"], "shallow")
    deep = program.module.Tree(then).open((b"a", *[b"d"] * (program.module.LEVELS + 1)))
    os.link("deep", then / "linked", src_dir_fd=deep)
    pack(then, tmp_path)
    program.prepare(data, tmp_path)
    program.apply(data, tmp_path)
    assert look(program, data) == {b"shallow": b"shallow"}


def test_no_journal_is_looked_for_beside_a_name_that_has_no_room_for_it(
    program: Steps, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    plant(tmp_path / "then", ["s" * 250], "SQLite format 3\0 and more")
    pack(tmp_path / "then", tmp_path)
    program.prepare(data, tmp_path)
    assert (
        len((tmp_path / "targets").read_bytes().split(b"\0")) == 4
    )  # itself, -wal, -shm: 254 bytes
    program.apply(data, tmp_path)


@pytest.mark.parametrize("stop", range(1, 5))
def test_a_copy_that_dies_leaves_nothing_and_replaces_nothing(
    program: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    data = tmp_path / "data"
    for name in ("a", "b", LONG):
        plant(data, [name], "now")
        plant(tmp_path / "then", [name], "then")
    pack(tmp_path / "then", tmp_path)
    program.prepare(data, tmp_path)

    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    calls = []

    def die(source: Any, target: Any, *_: Any) -> None:
        calls.append(1)
        target.write(b"cut")
        if len(calls) == stop:
            raise KeyboardInterrupt
        target.seek(0)
        target.write(source.read())

    with monkeypatch.context() as patched:
        patched.setattr(program.module.os, "link", no_link)
        patched.setattr(program.module.shutil, "copyfileobj", die)
        with pytest.raises(KeyboardInterrupt):
            program.apply(data, tmp_path)
    program.rollback(data, tmp_path)
    assert set(look(program, data).values()) == {b"now"}
    assert len(look(program, data)) == 3


@pytest.mark.parametrize("planted", ["link", "file"])
def test_nothing_is_restored_through_a_link_or_a_file(
    program: Steps, tmp_path: Path, planted: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    plant(tmp_path / "then/storage/grafana", ["x"], "then")
    (data / "storage").mkdir()
    (tmp_path / "elsewhere").mkdir()
    if planted == "link":
        (data / "storage/grafana").symlink_to(tmp_path / "elsewhere")
    else:
        (data / "storage/grafana").write_text("mine")
    pack(tmp_path / "then", tmp_path)
    program.prepare(data, tmp_path)
    kind = "symlink" if planted == "link" else "file"
    with pytest.raises(program.failed, match=f"storage/grafana is a {kind}; "):
        program.apply(data, tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "begun").exists()


def test_a_rollback_is_not_kept_by_a_file_in_the_place_of_a_directory(
    program: Steps, places: tuple[Path, Path], tmp_path: Path
) -> None:
    data, work = places
    plant(data / "storage", ["grafana", "x"], "now")
    plant(tmp_path / "then/storage", ["grafana", "x"], "then")
    pack(tmp_path / "then", work)
    program.prepare(data, work)
    program.apply(data, work)
    shutil.rmtree(data / "storage/grafana")
    (data / "storage/grafana").write_text("in the way")
    program.rollback(data, work)
    assert (data / "storage/grafana/x").read_text() == "now"


def test_an_archive_is_extracted_as_tar_does_it(program: Steps, tmp_path: Path) -> None:
    source, data = tmp_path / "then", tmp_path / "data"
    data.mkdir()
    plant(source / "a", ["file"], "text")
    os.chown(source / "a/file", 1000, 1001)
    (source / "a/file").chmod(0o751)
    os.utime(source / "a/file", (1000000000, 1000000000))
    (source / "a/link").symlink_to("/etc/passwd")
    os.chown(source / "a/link", 1000, 1001, follow_symlinks=False)
    os.link(source / "a/file", source / "a/twin")
    os.mkfifo(source / "a/pipe")
    (source / "a").chmod(0o711)
    (source / os.fsdecode(b"\xff\n")).write_text("no text")
    pack(source, tmp_path)
    program.prepare(data, tmp_path)
    new = tmp_path / "new"
    facts = (new / "a/file").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (1000, 1001, 0o751)
    assert (facts.st_mtime, facts.st_nlink) == (1000000000, 2)
    assert (new / "a/link").readlink() == Path("/etc/passwd")
    assert (new / "a/link").lstat().st_uid == 1000
    assert (new / "a").stat().st_mode & 0o7777 == 0o711
    assert not (new / "a/pipe").exists()
    assert program.answer.warnings == ["skipped, a device, a pipe or a sparse file: a/pipe"]
    assert (new / os.fsdecode(b"\xff\n")).read_text() == "no text"


def test_a_member_with_dots_is_refused(program: Steps, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "config.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a/../../x"))
    with pytest.raises(program.failed, match=r"'\.\.'"):
        program.prepare(tmp_path / "data", tmp_path, "a")


def test_set_uid_and_set_gid_are_dropped_and_directories_keep_set_gid(
    program: Steps, tmp_path: Path
) -> None:
    source, data = tmp_path / "then", tmp_path / "data"
    data.mkdir()
    for name, bits in (("both", 0o6755), ("group", 0o2711), ("sticky", 0o1644)):
        plant(source / "a", [name], "x")
        (source / "a" / name).chmod(bits)
    (source / "a").chmod(0o6770)
    pack(source, tmp_path)
    program.prepare(data, tmp_path)
    program.apply(data, tmp_path)
    modes = {name: (data / "a" / name).stat().st_mode & 0o7777 for name in ("both", "group")}
    assert modes == {"both": 0o755, "group": 0o711}
    assert (data / "a/sticky").stat().st_mode & 0o7777 == 0o1644
    assert (tmp_path / "new/a").stat().st_mode & 0o7777 == 0o2770


def test_a_sparse_member_is_skipped_and_takes_no_space(program: Steps, tmp_path: Path) -> None:
    """Some bytes of the archive claim 100 MB."""
    (tmp_path / "data").mkdir()
    claims = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0"}
    with tarfile.open(tmp_path / "config.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("bomb", "plain"):
            member = tarfile.TarInfo(name)
            if name == "bomb":
                member.pax_headers = claims | {"GNU.sparse.size": "100000000"}
            tar.addfile(member)
    program.prepare(tmp_path / "data", tmp_path, "bomb", "plain")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plain"]
    assert program.answer.warnings == ["skipped, a device, a pipe or a sparse file: bomb"]


def test_what_is_not_below_a_path_of_the_run_is_not_restored(
    program: Steps, tmp_path: Path
) -> None:
    data, then = tmp_path / "data", tmp_path / "then"
    for name, text in (("runs", "mine"), ("etcetera", "mine")):
        plant(data / "storage" / name, ["x"], text)
    for name in ("etc", "runs", "etcetera"):
        plant(then / "storage" / name, ["x"], "then")
    plant(then, [".env"], "then")
    pack(then, tmp_path)
    program.prepare(data, tmp_path, "storage/etc", ".env")
    program.apply(data, tmp_path)
    assert look(program, data) == {
        b".env": b"then",
        b"storage/etc/x": b"then",
        b"storage/etcetera/x": b"mine",
        b"storage/runs/x": b"mine",
    }
    skipped = ("etcetera", "etcetera/x", "runs", "runs/x")
    assert sorted(program.answer.warnings) == [
        f"skipped, not below a path of the run: storage/{name}" for name in skipped
    ]
