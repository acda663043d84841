"""Copies files as bytes: shared blocks where the file system can, a preallocated copy elsewhere.

docs/decisions/0008, 0009 and 0011 say why. All copies are in the role's own directory.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from ..writeback import PIECE_BYTES, write_back
from . import service
from .paths import held

FICLONE = 0x40049409
PREALLOCATE_SECONDS = 60
MEMORY = Path("/proc/meminfo")
CREATE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def share(source: int, target: int) -> bool:
    """Makes the target share all blocks of the source, if the file system can."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True


def copy_bytes(
    source: int, target: int, size: int, deadline: float = float("inf"), settled: bool = False
) -> int:
    """Copies from both positions. Returns the bytes: fewer if the source ends, or at the deadline.
    With `settled` each piece is on the disk before the next one.

    The buffer is aligned to pages, as direct writes need it.
    """
    done = 0
    with mmap.mmap(-1, PIECE_BYTES) as pages, memoryview(pages) as buffer:
        while done < size and time.monotonic() < deadline:
            with buffer[: min(PIECE_BYTES, size - done)] as wanted:
                count = os.readv(source, [wanted])
            if count == 0:
                break
            written = 0
            while written < count:
                with buffer[written:count] as rest:
                    written += os.write(target, rest)
            if settled:
                write_back(target, done)
            done += count
    return done


def copy_file(source: int, size: int, target: Path) -> bool:
    """The first `size` bytes become the file `target`. Returns whether it shares blocks.

    If there is a preallocated copy, that one is overwritten and renamed.
    """
    preallocated = service.WORK / "room"
    target.unlink(missing_ok=True)
    # A file system that never writes in place can be full although the preallocated copy is there.
    with suppress(OSError):
        with held(os.open(preallocated, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)) as descriptor:
            os.ftruncate(descriptor, copy_bytes(source, descriptor, size))
        preallocated.rename(target)
        return False
    preallocated.unlink(missing_ok=True)
    with held(os.open(target, CREATE, 0o600)) as descriptor:
        shared = share(source, descriptor)
        if not shared:
            os.lseek(source, 0, os.SEEK_SET)
            copy_bytes(source, descriptor, size)
        os.ftruncate(descriptor, size)
    return shared


def preallocate(source: int) -> None:
    """Makes a first copy before the window, torn and synced piece by piece; see `copy_file`.

    Leaves none if blocks can be shared, memory does not hold both files, or the disk is slow.
    """
    size = os.fstat(source).st_size
    if available_bytes() <= 2 * size:
        return
    preallocated = service.WORK / "room"
    with suppress(OSError), held(os.open(preallocated, CREATE, 0o600)) as target:
        end = time.monotonic() + PREALLOCATE_SECONDS
        shared = share(source, target)
        if not shared and copy_bytes(source, target, size, end, settled=True) == size:
            return
    preallocated.unlink(missing_ok=True)


def available_bytes() -> int:
    """What /proc/meminfo says; 0 if it says nothing."""
    with suppress(OSError):
        if found := re.search(
            rb"^MemAvailable: *(\d{1,18}) kB$", MEMORY.read_bytes(), re.MULTILINE
        ):
            return 1024 * int(found[1])
    return 0


def settle(path: Path, shared: bool) -> None:
    """Writes a copy to the disk. One that shares blocks with the live file becomes a real copy."""
    if shared:
        unshare(path)
    with held(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as descriptor:
        write_back(descriptor)


def unshare(path: Path) -> None:
    """Replaces a file that shares blocks by a copy of its own, written directly if possible."""
    own = path.with_name("own")
    with held(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as source:
        size = os.fstat(source).st_size
        with suppress(OSError), held(os.open(own, CREATE | os.O_DIRECT, 0o600)) as target:
            whole = size - size % mmap.PAGESIZE
            copy_bytes(source, target, whole)
            fcntl.fcntl(target, fcntl.F_SETFL, 0)  # the rest is no whole block
            copy_bytes(source, target, size - whole)
            own.rename(path)
            return
        with held(os.open(own, CREATE, 0o600)) as target:
            os.lseek(source, 0, os.SEEK_SET)
            copy_bytes(source, target, size)
        own.rename(path)
