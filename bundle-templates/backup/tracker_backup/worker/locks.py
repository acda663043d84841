"""Copies a live SQLite database as bytes, under SQLite's own shared locks. No SQL runs here.

The bytes that SQLite locks are those of os_unix.c and of "WAL-mode File Format". Our locks belong
to open file descriptions, so a read-only descriptor is enough and no other close drops them.

SHARED on the database keeps every writer in rollback mode from changing it. It also keeps any
connection from rolling back a hot journal, from changing the journal mode, and from removing the
log and its index at its end. CHECKPOINT and READ_1 of the index keep checkpoints from writing to
the database, and writers from starting again at the head of the log. So the log only grows. A
transaction that is written meanwhile ends in a frame with a wrong checksum, or counts as a whole.

Writers in rollback mode wait until the copy is made. In WAL mode they go on. Only the first
connection after a crash waits, because it has to make the index anew, and fails after about 10 s.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from .paths import open_regular

Range = tuple[int, int]  # first byte, number of bytes

PENDING: Range = (0x40000000, 1)
RESERVED: Range = (0x40000001, 1)
SHARED: Range = (0x40000002, 510)
CHECKPOINT: Range = (121, 1)  # of the index (-shm)
READ_1: Range = (124, 1)
FLOCK = "hhqqi0q"  # type, whence, start, length, process
RETRY_SECONDS = 0.01

Copy = Callable[[str, int, int], None]  # suffix, descriptor, size in bytes


class Busy(Exception):
    """Somebody holds a lock, or the files were replaced. Another attempt may succeed."""


def copy_live(directory: int, name: str, copy: Copy, seconds: float) -> None:
    """Calls `copy` for each file of a consistent set: "", then "-journal" and "-wal" if needed.

    `copy` replaces what an earlier attempt left. Raises Busy when no attempt succeeded in time.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return copy_once(directory, name, copy)
        except Busy:
            if time.monotonic() >= end:
                raise
        time.sleep(RETRY_SECONDS)


def copy_once(directory: int, name: str, copy: Copy) -> None:
    with ExitStack() as opened:

        def open_file(suffix: str) -> int | None:
            with suppress(FileNotFoundError), not_leased():
                descriptor = open_regular(directory, name + suffix)
                opened.callback(os.close, descriptor)
                return descriptor
            return None

        database = open_file("")
        if database is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        lock(database, PENDING)
        lock(database, SHARED)
        set_lock(database, PENDING, fcntl.F_UNLCK)
        index = open_file("-shm")
        if index is not None:
            lock(index, CHECKPOINT)
            lock(index, READ_1)
        log, journal = open_file("-wal"), open_file("-journal")
        log_bytes = 0 if log is None else os.fstat(log).st_size
        copy("", database, os.fstat(database).st_size)
        if log is not None:
            copy("-wal", log, log_bytes)
        if journal is not None and is_hot(journal, database):
            copy("-journal", journal, os.fstat(journal).st_size)
        require_same(directory, name, database)
        # Without an index no connection was open. One that was opened meanwhile made an index,
        # cannot remove it, and may have written to the database.
        require_same(directory, f"{name}-shm", index)


def is_hot(journal: int, database: int) -> bool:
    """Whether the writer of a journal is dead, as SQLite decides it. While we hold SHARED, nobody
    can change such a journal. A live writer has not changed the database yet.
    """
    if is_reserved(database):
        return False
    head = os.pread(journal, 1, 0)
    return head not in (b"", b"\0") and not is_reserved(database)


@contextmanager
def not_leased() -> Iterator[None]:
    try:
        yield
    except BlockingIOError as error:
        raise Busy("somebody holds a lease on the file") from error


def require_same(directory: int, name: str, descriptor: int | None) -> None:
    """Raises Busy unless the name still leads to the open file, or to none."""
    opened = None if descriptor is None else identity(os.fstat(descriptor))
    named = None
    with suppress(FileNotFoundError):
        named = identity(os.stat(name, dir_fd=directory, follow_symlinks=False))
    if named != opened:
        raise Busy(f"{name} was replaced or created meanwhile")


def identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def lock(descriptor: int, bytes_: Range) -> None:
    """Takes a shared lock until the descriptor is closed."""
    try:
        set_lock(descriptor, bytes_, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise Busy("database is locked") from error
        raise


def set_lock(descriptor: int, bytes_: Range, kind: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(FLOCK, kind, os.SEEK_SET, *bytes_, 0))


def is_reserved(database: int) -> bool:
    """Whether a connection is in a transaction that writes."""
    asked = struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, *RESERVED, 0)
    answer = fcntl.fcntl(database, fcntl.F_OFD_GETLK, asked)
    kind: int = struct.unpack(FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK
