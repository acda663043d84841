#!/usr/bin/env python3
"""Puts the files of a backup in their places and moves them back, inside the backup container.

restore.sh calls it, as root:

    restore_files.py prepare  DATA WORK KIND [DATABASE]   fills WORK/new and WORK/targets
    restore_files.py apply    DATA WORK                   swaps every target
    restore_files.py rollback DATA WORK                   undoes an apply that ended anywhere

Services choose the names below DATA, so this program never builds a path from them. It opens each
directory by its descriptor, one component at a time, and follows no link. A name of a service is
never extended: a partial copy has a short name of our own.

Files in WORK, each a list of paths relative to DATA that end with a NUL byte:

    targets    what is swapped
    existing   targets that were there before, which move to WORK/old
    absent     targets that were not there before
    made       directories that apply makes

WORK/partial holds the name of partial copies. WORK/begun exists when apply may have moved
something. WORK/reason says why a step failed.
Exit codes: 0 success, 1 failed, 2 wrong call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

Parts = tuple[bytes, ...]  # a path relative to a tree, as its components

NAME_BYTES = 255
LEVELS = 256  # deeper members of an archive are skipped
SQLITE_HEADER = b"SQLite format 3\0"
JOURNALS = (b"-journal", b"-wal", b"-shm")
OLD_PARTIAL = b".restore-partial"  # the suffix that restores of earlier versions used
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """Why nothing more is done; for the operator."""


class Tree:
    """A directory and what is below it, reached by descriptors.

    Descriptors that `open` returns belong to the tree. Each is good until the next call of `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = os.open(path, DIRECTORY)
        self._last: Parts = ()
        self._open = self._base

    def open(self, parts: Parts, *, make: bool = False) -> int:
        """The descriptor of a directory; OSError if a component is missing or not a directory.

        With `make`, missing directories are made with mode 0755.
        """
        known = self._last if self._open != self._base else ()
        below = len(known) if parts[: len(known)] == known else 0
        current = self._open if below else self._base
        for name in parts[below:]:
            try:
                child = os.open(name, DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                if not make:
                    self._keep(current, None)
                    raise
                os.mkdir(name, 0o755, dir_fd=current)
                child = os.open(name, DIRECTORY, dir_fd=current)
            except OSError:
                self._keep(current, None)
                raise
            if current not in (self._base, self._open):
                os.close(current)
            current = child
        self._keep(current, parts)
        return current

    def _keep(self, current: int, parts: Parts | None) -> None:
        """Remembers `current` for the next call, or closes it if `parts` is None."""
        if parts is None:
            if current not in (self._base, self._open):
                os.close(current)
            return
        if self._open not in (self._base, current):
            os.close(self._open)
        self._last, self._open = parts, current

    def forget(self) -> None:
        """Must be called when directories were moved or removed."""
        if self._open != self._base:
            os.close(self._open)
        self._last, self._open = (), self._base

    def facts(self, parts: Parts) -> os.stat_result | None:
        """lstat of a path; None if it is missing, or if something above it is no directory."""
        try:
            parent = self.open(parts[:-1])
            return os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
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
        return printable(b"/".join((os.fsencode(self.path), *parts)))

    def sync(self) -> None:
        sync_file_system(self._base)


def printable(path: bytes) -> str:
    """A path for a message: no control characters, and a long one is cut in the middle."""
    text = "".join(
        one if one.isprintable() else f"\\x{ord(one):02x}"
        for one in path.decode(errors="backslashreplace")
    )
    return text if len(text) <= 300 else f"{text[:150]}...{text[-145:]}"


def log(message: str) -> None:
    print(f"restore: {message}", file=sys.stderr, flush=True)


def sync_file_system(descriptor: int) -> None:
    """Everything that was written to this file system is on disk."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.syncfs(descriptor) != 0:
        raise OSError(ctypes.get_errno(), "syncfs failed")


# ---------------------------------------------------------------- lists in WORK


def read_list(path: Path) -> list[Parts]:
    return [tuple(one.split(b"/")) for one in path.read_bytes().split(b"\0") if one]


def write_list(path: Path, paths: Iterable[Parts]) -> None:
    path.write_bytes(b"".join(b"/".join(parts) + b"\0" for parts in paths))


# ---------------------------------------------------------------- prepare


def prepare(data: Tree, work: Path, kind: str, database: str = "") -> None:
    """DATABASE is the path of the SQLite file below DATA; it keeps the owner that it has there."""
    for name in ("new", "old"):
        (work / name).mkdir(exist_ok=True)
    new = Tree(work / "new")
    if kind != "database":
        extract(work / "config.tar", new)
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
    directory = database[:-1]
    if not data.is_directory(directory) and not new.is_directory(directory):
        raise Refused(f"{data.show(directory)} is not there: restore the configuration, too")
    candidates = (data.facts(database), data.facts(directory), new.facts(directory))
    owner = next(one for one in candidates if one is not None and not stat.S_ISLNK(one.st_mode))
    parent = new.open(directory, make=True)
    os.rename(work / "database.db", database[-1], dst_dir_fd=parent)
    descriptor = os.open(database[-1], READ, dir_fd=parent)
    try:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.fchmod(descriptor, 0o644)
    finally:
        os.close(descriptor)


def is_sqlite(tree: Tree, parts: Parts) -> bool:
    facts = tree.facts(parts)
    if facts is None or not stat.S_ISREG(facts.st_mode):
        return False
    descriptor = os.open(parts[-1], READ, dir_fd=tree.open(parts[:-1]))
    try:
        return os.read(descriptor, len(SQLITE_HEADER)) == SQLITE_HEADER
    finally:
        os.close(descriptor)


def extract(archive: Path, new: Tree) -> None:
    """Like `tar --extract --same-owner --same-permissions`, for paths of any length.

    GNU tar archives a path of more than 4095 bytes, and cannot extract it. Devices and pipes are
    skipped, because no service needs one from a backup. A link is made, but never followed.
    """
    directories: dict[Parts, tarfile.TarInfo] = {}
    with tarfile.open(archive, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            parts = member_parts(member.name)
            if len(parts) > LEVELS:
                log(f"skipped, more than {LEVELS} levels: {printable(b'/'.join(parts))}")
            elif member.isdir():
                new.open(parts, make=True)
                directories[parts] = member
            elif parts:
                extract_member(tar, member, new, parts)
            cast(Any, tar).members.clear()  # tarfile would keep every member in memory
    for parts in sorted(directories, key=len, reverse=True):
        descriptor = new.open(parts)
        set_facts(descriptor, directories[parts])


def member_parts(name: str) -> Parts:
    parts = tuple(one for one in os.fsencode(name).split(b"/") if one not in (b"", b"."))
    if b".." in parts:
        raise Refused(f"the archive holds a path with '..': {printable(os.fsencode(name))}")
    return parts


def extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, new: Tree, parts: Parts) -> None:
    """One member that is not a directory; a later member of the same name replaces it."""
    name = parts[-1]
    source = -1
    if member.islnk():
        linked = member_parts(member.linkname)
        if not new.facts(linked):  # that member was skipped
            log(f"skipped, a link to a skipped file: {printable(b'/'.join(parts))}")
            return
        source = os.dup(new.open(linked[:-1]))
    parent = new.open(parts[:-1], make=True)
    if not (member.isreg() or member.issym() or member.islnk()):
        log(f"skipped, a device or a pipe: {printable(b'/'.join(parts))}")
        return
    with contextlib.suppress(FileNotFoundError):
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
        content = tar.extractfile(member)
        with open(os.open(name, CREATE, 0o600, dir_fd=parent), "wb") as file:
            if content is not None:
                shutil.copyfileobj(content, file, 1 << 20)
            file.flush()
            set_facts(file.fileno(), member)


def set_facts(descriptor: int, member: tarfile.TarInfo) -> None:
    """Owner before mode, because a change of the owner drops the set-uid bits."""
    os.fchown(descriptor, member.uid, member.gid)
    os.fchmod(descriptor, member.mode & 0o7777)
    with contextlib.suppress(OverflowError, OSError):  # a time that the file system cannot hold
        os.utime(descriptor, (member.mtime, member.mtime))


# ---------------------------------------------------------------- apply


def apply(data: Tree, work: Path) -> None:
    """Everything that a roll-back needs is on disk before the first move."""
    new, old = Tree(work / "new"), Tree(work / "old")
    targets = read_list(work / "targets")
    made = [parts for parts, directory in new.walk() if directory and is_missing(data, parts)]
    existing: list[Parts] = []
    absent: list[Parts] = []
    for parts in targets:
        refuse_link_above(data, parts)
        facts = data.facts(parts)
        if facts and stat.S_ISDIR(facts.st_mode):
            raise Refused(f"{data.show(parts)} is a directory; the backup has a file there")
        (existing if facts else absent).append(parts)
    partial = f".tracker-backup-{secrets.token_hex(8)}".encode()
    (work / "partial").write_bytes(partial)
    for name, paths in (("existing", existing), ("absent", absent), ("made", made)):
        write_list(work / name, paths)
    sync_file_system(old.open(()))
    (work / "begun").write_bytes(b"")
    sync_file_system(old.open(()))
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
    facts = data.facts(parts)
    if facts and not stat.S_ISDIR(facts.st_mode):
        raise Refused(f"{data.show(parts)} is a file; the backup has a directory there")
    return facts is None


def refuse_link_above(data: Tree, parts: Parts) -> None:
    """Refuses if a directory above the path is a link or a file. Missing directories are fine."""
    for length in range(len(parts) - 1, 0, -1):
        try:
            data.open(parts[:length])
            return
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            break
    for length in range(1, len(parts)):
        facts = data.facts(parts[:length])
        if facts is None:
            return
        if stat.S_ISLNK(facts.st_mode):
            raise Refused(
                f"{data.show(parts[:length])} is a symlink; nothing is restored through it: "
                "remove it first"
            )
        if not stat.S_ISDIR(facts.st_mode):
            raise Refused(
                f"{data.show(parts[:length])} is a file; the backup has a directory there"
            )


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
        link(from_fd, to_fd, name)
    except FileNotFoundError:
        raise
    except OSError:
        copy(from_fd, to_fd, name, partial)
        sync_file_system(to_fd)
        os.rename(partial, name, src_dir_fd=to_fd, dst_dir_fd=to_fd)
        sync_file_system(to_fd)
    os.unlink(name, dir_fd=from_fd)


def link(from_fd: int, to_fd: int, name: bytes) -> None:
    def attempt() -> None:
        os.link(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)

    try:
        attempt()
    except FileExistsError:
        os.unlink(name, dir_fd=to_fd)
        attempt()


def copy(from_fd: int, to_fd: int, name: bytes, partial: bytes) -> None:
    """One file, link or pipe as `cp --archive` copies it, under the partial name."""
    remove_partial(to_fd, partial)
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
            copy_attributes(source.fileno(), file.fileno())
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


def copy_attributes(source: int, target: int) -> None:
    """Extended attributes and ACLs, where both file systems have them."""
    with contextlib.suppress(OSError):
        for attribute in os.listxattr(source):
            with contextlib.suppress(OSError):
                os.setxattr(target, attribute, os.getxattr(source, attribute))


# ---------------------------------------------------------------- rollback


def rollback(data: Tree, work: Path) -> None:
    if not (work / "begun").exists():
        return
    old = Tree(work / "old")
    targets, existing = read_list(work / "targets"), read_list(work / "existing")
    own = work / "partial"
    partial = own.read_bytes() if own.exists() else b""
    for parts in targets:
        clear_way(data, parts, work)
        name = partial or parts[-1] + OLD_PARTIAL
        if len(name) <= NAME_BYTES:
            with contextlib.suppress(FileNotFoundError):
                remove_partial(data.open(parts[:-1]), name)
    for parts in read_list(work / "absent"):
        remove_file(data, parts)
    for parts in existing:
        if old.facts(parts):
            remove_file(data, parts)  # there may be no room for both
            move(old, data, parts, partial or b".tracker-backup-rollback")
    for parts in reversed(read_list(work / "made")):
        try:
            data.forget()
            os.rmdir(parts[-1], dir_fd=data.open(parts[:-1]))
        except FileNotFoundError:
            continue
        except OSError:
            log(f"{data.show(parts)} is not empty and stays")
    data.sync()


def clear_way(data: Tree, parts: Parts, work: Path) -> None:
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
                move_aside(data, parts[:length], work)
            return


def move_aside(data: Tree, parts: Parts, work: Path) -> None:
    """Into WORK if it is on the same file system, otherwise to a name of ours beside it."""
    data.forget()
    parent = data.open(parts[:-1])
    name = f"aside.{secrets.token_hex(4)}"
    try:
        os.rename(parts[-1], os.fspath(work / name), src_dir_fd=parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        os.rename(parts[-1], f".tracker-backup-{name}", src_dir_fd=parent, dst_dir_fd=parent)
        log(f"{data.show(parts)} is now called .tracker-backup-{name}")
    data.forget()


def remove_file(data: Tree, parts: Parts) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(parts[-1], dir_fd=data.open(parts[:-1]))


def remove_partial(directory: int, name: bytes) -> None:
    """What a dead copy left. A directory of that name is not ours and stays."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=directory)


# ---------------------------------------------------------------- main


def main(words: list[str]) -> int:
    steps = {"prepare": (2, 3), "apply": (1, 1), "rollback": (1, 1)}
    step, arguments = (words or [""])[0], words[1:]
    low, high = steps.get(step, (0, 0))
    if not low + 1 <= len(arguments) <= high + 1 or step not in steps:
        print(__doc__, file=sys.stderr)
        return 2
    os.umask(0o022)
    work = Path(arguments[1])
    try:
        data = Tree(Path(arguments[0]))
        if step == "prepare":
            prepare(data, work, *arguments[2:])
        elif step == "apply":
            apply(data, work)
        else:
            rollback(data, work)
    except (Refused, OSError, tarfile.TarError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.strerror}: {printable(os.fsencode(error.filename or ''))}"
        log(f"error: {reason}")
        (work / "reason").write_text(f"{reason}\n", encoding="utf-8", errors="backslashreplace")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
