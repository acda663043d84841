"""The unpacker: extracts one backup file into an empty directory, in a container of its own.

    unpack {name, limit_bytes}        decompresses ARCHIVE to WORK/name
    extract {paths, limit_bytes}      extracts the configuration archive below WORK: what is at or
                                      below one of the paths, and the directories above them;
                                      in `missing` the paths that the archive lacks

ARCHIVE is mounted alone. No file may exceed limit_bytes, and neither may all of them together.
Services choose the names in an archive, so this module never builds a path from them. It opens
each directory by its descriptor, one component at a time, and follows no link.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from ..protocol import FULL, PATH_CHARACTERS, Answer, printable
from .service import WORK, Job, StepFailed

Parts = tuple[str, ...]  # a path below WORK, as its components

ARCHIVES = Path(os.environ.get("BACKUP_ARCHIVES", "/archive"))
PROGRAMS = {".gz": ["pigz"], ".zst": ["zstd", "-q"]}
LEVELS = 256  # deeper members are skipped
MEMBERS = 4_000_000
NOTES = 100  # in one answer
PIECE_BYTES = 1 << 20
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def unpacked() -> Iterator[IO[bytes]]:
    """The content of the one backup file. Raises StepFailed if it is damaged."""
    (archive,) = ARCHIVES.iterdir()
    command = [*PROGRAMS[archive.suffix], "--decompress", "--stdout"]
    with (
        open(archive, "rb") as source,
        subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout
        yield process.stdout
    if process.returncode != 0:
        raise StepFailed(f"{archive.name} cannot be unpacked")


class Room:
    """The bytes that may still be written."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def copy(self, source: IO[bytes], target: IO[bytes]) -> None:
        while block := source.read(PIECE_BYTES):
            self.left -= len(block)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            target.write(block)


@contextmanager
def room(arguments: dict[str, Any]) -> Iterator[Room]:
    try:
        yield Room(arguments["limit_bytes"])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StepFailed("there is not enough space to unpack it", FULL) from error


def unpack(arguments: dict[str, Any], _: Answer) -> None:
    with room(arguments) as left, unpacked() as stream, open(WORK / arguments["name"], "xb") as out:
        left.copy(stream, out)


def extract(arguments: dict[str, Any], answer: Answer) -> None:
    os.umask(0o022)
    with room(arguments) as left, unpacked() as stream:
        try:
            with tarfile.open(
                fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape"
            ) as tar:
                Extraction(tar, left, answer).run(arguments["paths"])
        except tarfile.TarError as error:
            raise StepFailed(f"the configuration is not a readable archive: {error}") from error
        while stream.read(PIECE_BYTES):  # what stands behind the end of the archive
            pass


# ---------------------------------------------------------------- extracting


class Extraction:
    """Like `tar --extract --same-owner --same-permissions`, for paths of any length.

    Links come last, so that nothing can be written through one. A hard link becomes a copy. Devices
    and pipes are skipped, because no service needs one from a backup.
    """

    def __init__(self, tar: tarfile.TarFile, left: Room, answer: Answer) -> None:
        self.tar, self.left, self.answer = tar, left, answer
        self.directories: dict[Parts, tarfile.TarInfo] = {}
        self.links: dict[Parts, tarfile.TarInfo] = {}

    def run(self, paths: list[str]) -> None:
        wanted = {components(path): path for path in paths}
        for count, member in enumerate(self.tar):
            cast(Any, self.tar).members.clear()  # only one at a time is in memory
            parts = components(member.name)
            if count >= MEMBERS:
                raise StepFailed(f"the archive has more than {MEMBERS} members")
            if not is_wanted(parts, member.isdir(), wanted):
                continue
            if len(parts) > LEVELS:
                self.note(f"more than {LEVELS} levels", parts)
            else:
                self.add(member, parts)
        for parts, member in self.links.items():
            self.add_link(member, parts)
        for parts in sorted(self.directories, key=len, reverse=True):
            with below(parts) as directory:
                set_facts(directory, self.directories[parts])
        self.answer.missing = [path for parts, path in wanted.items() if not is_there(parts)]

    def note(self, why: str, parts: Parts) -> None:
        if len(self.answer.warnings) < NOTES:
            self.answer.warnings.append(f"skipped, {why}: {show(parts)}")

    def add(self, member: tarfile.TarInfo, parts: Parts) -> None:
        if member.isdir():
            with below(parts, make=True):
                self.directories[parts] = member
        elif member.issym() or member.islnk():
            self.links[parts] = member
        elif not member.isreg() or member.issparse():
            self.note("a device, a pipe or a sparse file", parts)
        elif parts:
            self.links.pop(parts, None)
            self.write(cast(IO[bytes], self.tar.extractfile(member)), member, parts)

    def write(self, content: IO[bytes], member: tarfile.TarInfo, parts: Parts) -> None:
        """A later member of the same name replaces an earlier one."""
        with below(parts[:-1], make=True) as parent:
            with suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=parent)
            with open(os.open(parts[-1], CREATE, 0o600, dir_fd=parent), "wb") as file:
                self.left.copy(content, file)
                file.flush()
                set_facts(file.fileno(), member)

    def add_link(self, member: tarfile.TarInfo, parts: Parts) -> None:
        if member.islnk():
            linked = components(member.linkname)
            try:
                with below(linked[:-1]) as parent:
                    descriptor = os.open(linked[-1], READ, dir_fd=parent)
            except OSError:
                return self.note("a link to a skipped file", parts)
            with open(descriptor, "rb") as content:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return self.note("a link to no file", parts)
                return self.write(content, member, parts)
        with below(parts[:-1], make=True) as parent:
            with suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=parent)
            os.symlink(os.fsencode(member.linkname), parts[-1], dir_fd=parent)
            owner = (member.uid, member.gid)
            os.chown(parts[-1], *owner, dir_fd=parent, follow_symlinks=False)
        return None


@contextmanager
def below(parts: Parts, *, make: bool = False) -> Iterator[int]:
    """The descriptor of a directory below WORK. With `make`, missing ones are made."""
    current = os.open(WORK, DIRECTORY)
    try:
        for name in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=current)
            child = os.open(name, DIRECTORY, dir_fd=current)
            os.close(current)
            current = child
        yield current
    finally:
        os.close(current)


def is_there(parts: Parts) -> bool:
    try:
        with below(parts[:-1]) as parent:
            os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


def components(name: str) -> Parts:
    parts = tuple(one for one in name.split("/") if one not in ("", "."))
    if ".." in parts:
        raise StepFailed(f"the archive holds a path with '..': {show(parts)}")
    return parts


def is_wanted(parts: Parts, directory: bool, wanted: Iterable[Parts]) -> bool:
    """Whether a member is at or below one of the paths, or a directory above one."""
    return any(
        parts[: len(one)] == one or (directory and one[: len(parts)] == parts) for one in wanted
    )


def show(parts: Parts) -> str:
    shown = os.fsencode("/".join(parts)).decode(errors="backslashreplace")
    return printable(shown, PATH_CHARACTERS)


def set_facts(descriptor: int, member: tarfile.TarInfo) -> None:
    """Set-uid bits are dropped. The tracker's directories have set-gid, so directories keep it."""
    os.fchown(descriptor, member.uid, member.gid)
    os.fchmod(descriptor, member.mode & (0o3777 if member.isdir() else 0o1777))
    with suppress(OverflowError, OSError):  # a time that the file system cannot hold
        os.utime(descriptor, (member.mtime, member.mtime))


JOBS: dict[str, Job] = {"unpack": unpack, "extract": extract}
