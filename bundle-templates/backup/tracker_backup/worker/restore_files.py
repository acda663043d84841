"""Puts the files of a backup in their places and moves them back.

Services choose the names below the deployment, so this module never builds a path from them. It
opens each directory by its descriptor, one component at a time, and follows no link. A name of a
service is never extended: a partial copy has a short name of our own.

Files in WORK, each a list of paths relative to the deployment that end with a NUL byte:

    targets    what is swapped
    existing   targets that were there before, which move to WORK/old
    absent     targets that were not there before
    made       directories that apply makes

WORK/partial holds the name of partial copies. WORK/begun exists when apply may have moved
something. An older version's roll-back is read, too, so these names stay.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from ..protocol import Answer, printable
from .service import StepFailed

Parts = tuple[bytes, ...]  # a path relative to a tree, as its components

NAME_BYTES = 255
LEVELS = 256  # deeper members of an archive are skipped
NOTES = 100  # in one answer
SQLITE_HEADER = b"SQLite format 3\0"
JOURNALS = (b"-journal", b"-wal", b"-shm")
OLD_PARTIAL = b".restore-partial"  # the suffix that restores of earlier versions used
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """A directory and what is below it, reached by descriptors.

    Descriptors that `open` returns belong to the tree. Each is good until the next call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = os.open(path, DIRECTORY)
        self._parts: Parts = ()
        self._last = os.dup(self._base)

    def open(self, parts: Parts, *, make: bool = False) -> int:
        """The descriptor of a directory; OSError if a component is missing or not a directory.

        With `make`, missing directories are made with mode 0755.
        """
        if parts != self._parts:
            self.forget()
            for name in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=self._last)
                try:
                    child = os.open(name, DIRECTORY, dir_fd=self._last)
                except OSError:
                    self.forget()
                    raise
                os.close(self._last)
                self._last = child
            self._parts = parts
        return self._last

    def forget(self) -> None:
        """Must be called when directories were moved or removed."""
        os.close(self._last)
        self._parts, self._last = (), os.dup(self._base)

    def facts(self, parts: Parts) -> os.stat_result | None:
        """lstat of a path; None if it is missing, or if something above it is no directory."""
        try:
            return os.stat(parts[-1], dir_fd=self.open(parts[:-1]), follow_symlinks=False)
        except OSError as error:
            if error.errno in NOTHING_THERE:
                return None
            raise

    def is_directory(self, parts: Parts) -> bool:
        facts = self.facts(parts)
        return facts is not None and stat.S_ISDIR(facts.st_mode)

    def walk(self) -> Iterator[tuple[Parts, bool]]:
        """(path, whether it is a directory) of everything below, a directory before its content."""
        waiting: list[Parts] = [()]
        while waiting:
            parts = waiting.pop()
            with os.scandir(self.open(parts)) as entries:
                found = [
                    (os.fsencode(one.name), one.is_dir(follow_symlinks=False)) for one in entries
                ]
            for name, directory in sorted(found):
                yield (*parts, name), directory
                if directory:
                    waiting.append((*parts, name))

    def show(self, parts: Parts) -> str:
        return show((os.fsencode(self.path), *parts))

    def sync(self) -> None:
        sync_file_system(self._base)


def show(parts: Parts) -> str:
    return printable(b"/".join(parts).decode(errors="backslashreplace"))


def note(answer: Answer, text: str) -> None:
    if len(answer.warnings) < NOTES:
        answer.warnings.append(text)


def sync_file_system(descriptor: int) -> None:
    """Everything that was written to this file system is on disk."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
        raise OSError(ctypes.get_errno(), "syncfs failed")


def read_list(path: Path) -> list[Parts]:
    return [tuple(one.split(b"/")) for one in path.read_bytes().split(b"\0") if one]


def write_list(path: Path, paths: Iterable[Parts]) -> None:
    path.write_bytes(b"".join(b"/".join(parts) + b"\0" for parts in paths))


# ---------------------------------------------------------------- prepare


def prepare(
    data: Tree, work: Path, kind: str, database: str, paths: list[str], answer: Answer
) -> None:
    """`database` is the path of the SQLite file below the deployment, or empty. `paths` are those
    that the run has archived: nothing else is restored.
    """
    for name in ("new", "old"):
        (work / name).mkdir(exist_ok=True)
    new = Tree(work / "new")
    if kind != "database":
        extract(work / "config.tar", new, [member_parts(path) for path in paths], answer)
    if kind != "config" and database:
        place_database(data, new, work, tuple(os.fsencode(database).split(b"/")))
    targets = [parts for parts, directory in new.walk() if not directory]
    # A restored database must not meet the journal of another one.
    journals = [
        (*parts[:-1], parts[-1] + suffix)
        for parts in targets
        if is_sqlite(new, parts)
        for suffix in JOURNALS
        if len(parts[-1] + suffix) <= NAME_BYTES  # a longer name cannot exist
    ]
    write_list(work / "targets", [*targets, *(one for one in journals if not new.facts(one))])


def place_database(data: Tree, new: Tree, work: Path, database: Parts) -> None:
    """It keeps the owner that the database in the deployment has."""
    directory = database[:-1]
    if not data.is_directory(directory) and not new.is_directory(directory):
        raise StepFailed(f"{data.show(directory)} is not there: restore the configuration, too")
    candidates = (data.facts(database), data.facts(directory), new.facts(directory))
    owner = next(one for one in candidates if one is not None and not stat.S_ISLNK(one.st_mode))
    parent = new.open(directory, make=True)
    os.rename(work / "database.db", database[-1], dst_dir_fd=parent)
    with open(os.open(database[-1], READ, dir_fd=parent), "rb") as file:
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.fchmod(file.fileno(), 0o644)


def is_sqlite(tree: Tree, parts: Parts) -> bool:
    facts = tree.facts(parts)
    if facts is None or not stat.S_ISREG(facts.st_mode):
        return False
    with open(os.open(parts[-1], READ, dir_fd=tree.open(parts[:-1])), "rb") as file:
        return file.read(len(SQLITE_HEADER)) == SQLITE_HEADER


def members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of an archive, in order. Only one at a time is in memory."""
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            yield tar, member
            cast(Any, tar).members.clear()


def extract(archive: Path, new: Tree, wanted: list[Parts], answer: Answer) -> None:
    """Like `tar --extract --same-owner --same-permissions`, for paths of any length.

    GNU tar archives a path of more than 4095 bytes, and cannot extract it. Devices and pipes are
    skipped, because no service needs one from a backup. A link is made, but never followed.
    """
    directories: dict[Parts, tarfile.TarInfo] = {}
    for tar, member in members(archive):
        parts = member_parts(member.name)
        if not is_wanted(parts, member.isdir(), wanted):
            note(answer, f"skipped, not below a path of the run: {show(parts)}")
        elif len(parts) > LEVELS:
            note(answer, f"skipped, more than {LEVELS} levels: {show(parts)}")
        elif member.isdir():
            new.open(parts, make=True)
            directories[parts] = member
        elif parts:
            extract_member(tar, member, new, parts, answer)
    for parts in sorted(directories, key=len, reverse=True):
        set_facts(new.open(parts), directories[parts])


def is_wanted(parts: Parts, directory: bool, wanted: list[Parts]) -> bool:
    """Whether a member is at or below a path of the run, or a directory above one."""
    return any(
        parts[: len(one)] == one or (directory and one[: len(parts)] == parts) for one in wanted
    )


def member_parts(name: str) -> Parts:
    parts = tuple(one for one in os.fsencode(name).split(b"/") if one not in (b"", b"."))
    if b".." in parts:
        raise StepFailed(f"the archive holds a path with '..': {show(parts)}")
    return parts


def extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, new: Tree, parts: Parts, answer: Answer
) -> None:
    """One member that is not a directory; a later member of the same name replaces it."""
    if not (member.isreg() or member.issym() or member.islnk()) or member.issparse():
        note(answer, f"skipped, a device, a pipe or a sparse file: {show(parts)}")
        return
    source = -1
    if member.islnk():
        linked = member_parts(member.linkname)
        if not new.facts(linked):  # that member was skipped
            note(answer, f"skipped, a link to a skipped file: {show(parts)}")
            return
        source = os.dup(new.open(linked[:-1]))
    name, parent = parts[-1], new.open(parts[:-1], make=True)
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
    if member.islnk():
        try:
            os.link(linked[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)
    elif member.issym():
        os.symlink(os.fsencode(member.linkname), name, dir_fd=parent)
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    else:
        content = cast(IO[bytes], tar.extractfile(member))
        with open(os.open(name, CREATE, 0o600, dir_fd=parent), "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.flush()
            set_facts(file.fileno(), member)


def set_facts(descriptor: int, member: tarfile.TarInfo) -> None:
    """Set-uid bits are dropped. The tracker's directories have set-gid, so directories keep it."""
    os.fchown(descriptor, member.uid, member.gid)
    os.fchmod(descriptor, member.mode & (0o3777 if member.isdir() else 0o1777))
    with suppress(OverflowError, OSError):  # a time that the file system cannot hold
        os.utime(descriptor, (member.mtime, member.mtime))


# ---------------------------------------------------------------- apply


def apply(data: Tree, work: Path) -> None:
    """Everything that a roll-back needs is on disk before the first move."""
    new, old = Tree(work / "new"), Tree(work / "old")
    made = [parts for parts, directory in new.walk() if directory and is_missing(data, parts)]
    targets = []
    for parts in read_list(work / "targets"):
        refuse_link_above(data, parts)
        if not data.is_directory(parts):
            targets.append(parts)
        elif new.facts(parts):  # a directory with the name of a journal stays
            raise StepFailed(f"{data.show(parts)} is a directory; the backup has a file there")
    existing = [parts for parts in targets if data.facts(parts)]
    partial = f".tracker-backup-{secrets.token_hex(8)}".encode()
    (work / "partial").write_bytes(partial)
    write_list(work / "targets", targets)
    write_list(work / "existing", existing)
    write_list(work / "absent", set(targets) - set(existing))
    write_list(work / "made", made)
    old.sync()
    (work / "begun").write_bytes(b"")
    old.sync()
    for parts in made:
        make_directory(data, new, parts)
    for parts in existing:
        move(data, old, parts, partial)
    for parts in targets:
        if new.facts(parts):
            move(new, data, parts, partial)
    data.sync()


def is_missing(data: Tree, parts: Parts) -> bool:
    """Whether this directory has to be made; refuses if something else is in its place."""
    refuse_link_above(data, (*parts, b""))
    return data.facts(parts) is None


def refuse_link_above(data: Tree, parts: Parts) -> None:
    """Refuses if a directory above the path is a link or a file. Missing directories are fine."""
    try:
        data.open(parts[:-1])
        return
    except OSError as error:
        if error.errno not in NOTHING_THERE:
            raise
    for length in range(1, len(parts)):
        facts = data.facts(parts[:length])
        if facts is None:
            return
        place = data.show(parts[:length])
        if stat.S_ISLNK(facts.st_mode):
            raise StepFailed(
                f"{place} is a symlink; nothing is restored through it: remove it first"
            )
        if not stat.S_ISDIR(facts.st_mode):
            raise StepFailed(f"{place} is a file; the backup has a directory there")


def make_directory(data: Tree, new: Tree, parts: Parts) -> None:
    """A missing directory, with the owner and the mode that the backup has."""
    wanted = os.fstat(new.open(parts))
    os.mkdir(parts[-1], 0o700, dir_fd=data.open(parts[:-1]))
    descriptor = data.open(parts)
    os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode))


def move(source: Tree, target: Tree, parts: Parts, partial: bytes) -> None:
    """Moves a file from one tree to the other: a hard link first, a copy where no link is possible.

    A copy gets its name when it is complete and on disk. So at any moment one of the two files is
    complete, and a file with the target's name is complete.
    """
    name = parts[-1]
    from_fd = source.open(parts[:-1])
    to_fd = target.open(parts[:-1], make=True)
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=to_fd)
        os.link(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        copy(from_fd, to_fd, name, partial)
        sync_file_system(to_fd)
        os.rename(partial, name, src_dir_fd=to_fd, dst_dir_fd=to_fd)
        sync_file_system(to_fd)
    os.unlink(name, dir_fd=from_fd)


def copy(from_fd: int, to_fd: int, name: bytes, partial: bytes) -> None:
    """One file, link or pipe as `cp --archive` copies it, under the partial name."""
    remove_file(to_fd, partial)
    facts = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
    times = (facts.st_atime_ns, facts.st_mtime_ns)
    if stat.S_ISREG(facts.st_mode):
        with (
            open(os.open(name, READ, dir_fd=from_fd), "rb") as source,
            open(os.open(partial, CREATE, 0o600, dir_fd=to_fd), "wb") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fchown(file.fileno(), facts.st_uid, facts.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(facts.st_mode))
            with suppress(OSError):  # where both file systems have extended attributes
                for attribute in os.listxattr(source.fileno()):
                    with suppress(OSError):
                        value = os.getxattr(source.fileno(), attribute)
                        os.setxattr(file.fileno(), attribute, value)
            os.utime(file.fileno(), ns=times)
        return
    if stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(name, dir_fd=from_fd), partial, dir_fd=to_fd)
    else:
        os.mknod(partial, facts.st_mode, facts.st_rdev, dir_fd=to_fd)
    os.chown(partial, facts.st_uid, facts.st_gid, dir_fd=to_fd, follow_symlinks=False)
    if not stat.S_ISLNK(facts.st_mode):
        os.chmod(partial, stat.S_IMODE(facts.st_mode), dir_fd=to_fd)
    os.utime(partial, ns=times, dir_fd=to_fd, follow_symlinks=False)


# ---------------------------------------------------------------- rollback


def rollback(data: Tree, work: Path, answer: Answer) -> None:
    if not (work / "begun").exists():
        return
    old, own = Tree(work / "old"), work / "partial"
    partial = own.read_bytes() if own.exists() else b""
    for parts in read_list(work / "targets"):
        clear_way(data, parts, work, answer)
        remove(data, (*parts[:-1], partial or parts[-1] + OLD_PARTIAL))
    for parts in read_list(work / "absent"):
        remove(data, parts)
    for parts in read_list(work / "existing"):
        if old.facts(parts):
            remove(data, parts)  # there may be no room for both
            move(old, data, parts, partial or b".tracker-backup-rollback")
    for parts in reversed(read_list(work / "made")):
        data.forget()
        try:
            os.rmdir(parts[-1], dir_fd=data.open(parts[:-1]))
        except FileNotFoundError:
            continue
        except OSError:
            note(answer, f"{data.show(parts)} is not empty and stays")
    data.sync()


def clear_way(data: Tree, parts: Parts, work: Path, answer: Answer) -> None:
    """Moves aside what a service has put in the way since: a directory in the place of the file,
    a link or a file in the place of a directory above it. So nothing is written through a link,
    and nothing keeps the rest from being rolled back.
    """
    for length in range(1, len(parts) + 1):
        facts = data.facts(parts[:length])
        if facts is None:
            return
        if stat.S_ISDIR(facts.st_mode) != (length < len(parts)):
            if length < len(parts) or stat.S_ISDIR(facts.st_mode):
                move_aside(data, parts[:length], work, answer)
            return


def move_aside(data: Tree, parts: Parts, work: Path, answer: Answer) -> None:
    """Into WORK if it is on the same file system, otherwise to a name of ours beside it."""
    parent = data.open(parts[:-1])
    name = f"aside.{secrets.token_hex(4)}"
    try:
        os.rename(parts[-1], os.fspath(work / name), src_dir_fd=parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        os.rename(parts[-1], f".tracker-backup-{name}", src_dir_fd=parent, dst_dir_fd=parent)
        note(answer, f"{data.show(parts)} is now called .tracker-backup-{name}")
    data.forget()


def remove(data: Tree, parts: Parts) -> None:
    with suppress(FileNotFoundError):
        remove_file(data.open(parts[:-1]), parts[-1])


def remove_file(directory: int, name: bytes) -> None:
    """A directory of that name is not ours and stays. A name can be longer than any file's."""
    if len(name) <= NAME_BYTES:
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=directory)
