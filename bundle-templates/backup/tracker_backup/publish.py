"""The publisher: finished files of the roles become backups in the destination, all or none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from .documents import BACKUP_FILE, SUBDIRECTORIES, BackupFile, run_time
from .fault_points import fault_point
from .host import Host, Refused
from .log import say
from .protocol import printable
from .space import Space, require_space
from .writeback import PIECE_BYTES, write_back

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
SHRINK_BYTES, SHRINK_SECONDS = 64 << 20, 0.02
SHRINK_STEPS = 3000  # at most a minute, whatever a file says that it has
LEFTOVER = "leftover"
FAULT_POINTS = {"database": "publishing-the-database", "config": "publishing-the-configuration"}
PARTIAL = re.compile(r".*[0-9]_[0-9].*\.partial")


@dataclass(frozen=True)
class Source:
    """A finished file, and the name below the destination that the host computed for it."""

    kind: Literal["database", "config"]
    path: str
    directory: int  # the descriptor of the role's directory
    name: str
    uid: int  # of the role
    limit: int  # bytes


def backup_path(subdirectory: str, run_id: str, ending: str) -> str:
    """Where a file of a run lies below the destination: `sqlite/sqlite_20260102_030405.db.gz`."""
    return f"{subdirectory}/{subdirectory}_{run_id}.{ending}"


def publish(host: Host, sources: Sequence[Source]) -> list[BackupFile]:
    """Copies the files into the destination and then gives each its final name.

    If one fails, none of them is published.
    Call it when the roles that worked for a service have ended.
    """
    with contextlib.ExitStack() as stack:
        places = []
        for source in sources:
            final = host.destination / source.path
            directory = stack.enter_context(opened(final.parent))
            if final.name in names(directory):
                raise Refused(f"{final} is there already; nothing was published")
            places.append((source, directory, final.name))
        try:
            published = [copy(host, *place) for place in places]
            for source, directory, name in places:
                fault_point(FAULT_POINTS[source.kind], host)
                os.rename(f"{name}.partial", name, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
        except BaseException as error:
            for _, directory, name in places:
                for made in {name, f"{name}.partial"} & set(names(directory)):
                    remove_in_steps(directory, made, say)
            if isinstance(error, OSError):
                raise Refused(f"publishing in {host.destination} failed: {error}") from error
            raise
    return published


def copy(host: Host, source: Source, directory: int, name: str) -> BackupFile:
    """Copies and hashes a file in one pass into a new one of our own, which is then on disk.

    It is written back in pieces, because the tracker's commits would wait behind one large sync.
    """
    digest, size = hashlib.sha256(), 0
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with (
        open(take(source.directory, source.name, source.uid, source.limit), "rb") as reading,
        open(os.open(f"{name}.partial", create, 0o600, dir_fd=directory), "wb") as writing,
    ):
        needed, space = os.fstat(reading.fileno()).st_size, Space.of(host.destination)
        require_space(host.destination, needed, space.reserve)
        while block := reading.read(PIECE_BYTES):
            size += len(block)
            if size > source.limit:
                raise Refused(f"{source.name} grew beyond {source.limit} bytes")
            digest.update(block)
            writing.write(block)
            writing.flush()
            write_back(writing.fileno(), size - len(block))
            for file in (reading, writing):
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        if source.kind == "database":
            fault_point("syncing-the-compressed-database", host)
        os.fsync(writing.fileno())
    return BackupFile(source.kind, source.path, size, digest.hexdigest())


def take(directory: int, name: str, uid: int, limit: int) -> int:
    """A descriptor of a file that a role left in its directory.

    Raises Refused unless it is a regular file of `uid` with one link and at most `limit` bytes.
    """
    try:
        descriptor = os.open(name, READ, dir_fd=directory)
    except OSError as error:
        raise Refused(f"the container's file {name} cannot be read: {error.strerror}") from error
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and (facts.st_uid, facts.st_nlink) == (uid, 1):
        if facts.st_size <= limit:
            return descriptor
        problem = f"has {facts.st_size} bytes; at most {limit} were expected"
    else:
        problem = "is no regular file of its own"
    os.close(descriptor)
    raise Refused(f"the container's file {name} {problem}")


def clear_leftovers(host: Host, warn: Callable[[str], None]) -> None:
    """Removes partial files of dead runs, and moves whole files without a run manifest away.

    Call it under the lock, when no other run is alive. A run that is killed before it writes its
    run manifest leaves whole files that nothing lists.
    """
    for subdirectory in filter(os.path.exists, (host.destination / one for one in SUBDIRECTORIES)):
        with opened(subdirectory) as directory:
            for name in names(directory):
                path, target = subdirectory / name, host.destination / LEFTOVER / name
                match = BACKUP_FILE.fullmatch(f"{subdirectory.name}/{name}")
                if PARTIAL.fullmatch(name):
                    warn(f"removing what a dead run left: {path}")
                    remove_in_steps(directory, name, warn)
                elif match and not (host.destination / f"runs/{match[2]}.json").exists():
                    warn(f"moving what a dead run left, without a run manifest: {path} to {target}")
                    try:
                        target.parent.mkdir(mode=0o700, exist_ok=True)
                        os.rename(name, target, src_dir_fd=directory)
                    except OSError as error:
                        warn(f"{path} could not be moved: {error.strerror}")


def remove_old_leftovers(host: Host, before: datetime, say: Callable[[str], None]) -> None:
    """Removes moved files of runs that began before this time, by the times in their names."""
    if (host.destination / LEFTOVER).exists():
        with opened(host.destination / LEFTOVER) as directory:
            for name in names(directory):
                match = BACKUP_FILE.fullmatch(f"{name.partition('_')[0]}/{name}")
                if match and run_time(match[2]) < before:
                    remove_in_steps(directory, name, say)
                    say(f"retention: removed {LEFTOVER}/{name}, which a dead run left")


def remove_backup(file: Path, say: Callable[[str], None]) -> None:
    """Removes a backup file in steps, under a name that the next run removes if this one dies.

    Raises OSError if it cannot be removed.
    """
    partial = file.with_name(f"{file.name}.partial")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(file.lstat().st_mode):
            return file.unlink()
        file.rename(partial)
        with opened(partial.parent) as directory:
            remove_in_steps(directory, partial.name, say)
    return None


def remove_in_steps(directory: int, name: str, warn: Callable[[str], None]) -> None:
    """Removes a file. A large one shrinks in steps first, because the tracker's commits wait while
    the file system frees its blocks. A file that cannot be removed is a warning.
    """
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            with open(os.open(name, READ | os.O_WRONLY, dir_fd=directory), "wb") as file:
                facts = os.fstat(file.fileno())
                steps = facts.st_blocks * 512 // SHRINK_BYTES if facts.st_nlink == 1 else 0
                steps = min(steps, SHRINK_STEPS)
                for step in range(steps, 0, -1):
                    os.ftruncate(file.fileno(), facts.st_size * step // (steps + 1))
                    time.sleep(SHRINK_SECONDS)
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        warn(f"{printable(name)} could not be removed: {error.strerror}")


@contextlib.contextmanager
def opened(path: Path | str, directory: int | None = None) -> Iterator[int]:
    """The descriptor of a directory, relative to another one if given. A link is refused."""
    try:
        descriptor = os.open(path, DIRECTORY, dir_fd=directory)
    except OSError as error:
        raise Refused(f"{path} is not a directory that can be opened: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries)
