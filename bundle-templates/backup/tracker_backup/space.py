"""Free space, and how much of it stays free."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .host import Refused

LARGEST = 1 << 60  # bytes; a larger number stands for "unknown", as FUSE file systems report
RESERVE_BYTES, RESERVE_INODES = 512 << 20, 10_000
HEAD_ROOM_BYTES = 1 << 30
SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class Space:
    """A file system's size and what is free there. None: unknown."""

    size: int
    free: int | None
    inodes: int
    free_inodes: int | None

    @classmethod
    def of(cls, directory: Path) -> Space:
        facts = os.statvfs(directory)
        size, free = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
        known = 0 < size < LARGEST and free < LARGEST
        inodes = facts.f_favail if facts.f_files else None
        return cls(size, free if known else None, facts.f_files, inodes)

    @property
    def reserve(self) -> int:
        """Bytes that stay free while a role works: 2 %, at most RESERVE_BYTES."""
        return min(RESERVE_BYTES, self.size // 50)

    @property
    def room(self) -> int:
        """Bytes that may be written until the reserve is reached."""
        return LARGEST if self.free is None else max(0, self.free - self.reserve)

    def head_room(self, backups_alone: bool) -> int:
        """Bytes that a run leaves free: 2 % where only backups lie. Where the tracker, the system
        or Docker write, 5 % and at least HEAD_ROOM_BYTES, but no more than a quarter.
        """
        if backups_alone:
            return self.size // 50
        return min(max(HEAD_ROOM_BYTES, self.size // 20), self.size // 4)


def require_reserve(directories: Iterable[Path]) -> None:
    """Refuses if a file system of these directories has less free than its reserve."""
    for directory in directories:
        space = Space.of(directory)
        if space.free is not None and space.free < space.reserve:
            raise Refused(
                f"only {space.free} bytes are left in {directory}; "
                f"{space.reserve} are kept in reserve"
            )
        kept = min(RESERVE_INODES, space.inodes // 50)
        if space.free_inodes is not None and space.free_inodes < kept:
            raise Refused(
                f"only {space.free_inodes} inodes are left in {directory}; {kept} are kept"
            )


def require_space(directory: Path, needed: int, kept: int = SPARE_BYTES) -> None:
    """Refuses if so many bytes would not leave the other number of bytes free."""
    free = Space.of(directory).free
    if free is not None and free < needed + kept:
        raise Refused(
            f"not enough space in {directory}: {needed} bytes are needed and {kept} have to stay "
            f"free; {free} are free"
        )
