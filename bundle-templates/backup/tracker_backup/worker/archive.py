"""Writes what services have written into an archive that tar reads: GNU format, numeric owners.

Services choose names, kinds and sizes. Nothing is followed, opened before its kind is known, or
read without a limit.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from ..protocol import Answer
from .paths import DIRECTORY, PATH, READ, held, reopen, shown

LEVELS = 64
ENTRIES = 1_000_000
WARNINGS = 20  # of one kind
PIECE_BYTES = 1 << 20
BLOCK = 512
SPARSE_BYTES = 16 << 20  # that a file may have beside four times what it has on disk
RECORD = 20 * BLOCK  # tar reads an archive in such pieces


@dataclass
class Findings:
    """Warnings about what services have. Only the first of each kind are listed."""

    answer: Answer
    counts: Counter[str] = field(default_factory=Counter)
    lost: bool = False  # whether content of the present line is not archived

    def warn(self, path: str, kind: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= WARNINGS:
            self.answer.warnings.append(f"{shown(path)} {kind}")

    def lose(self, path: str, kind: str) -> None:
        self.lost = True
        self.warn(path, f"{kind}, so the archive lacks it")

    def close(self) -> None:
        for kind, count in self.counts.items():
            if count > WARNINGS:
                self.answer.warnings.append(f"{count - WARNINGS} more: {kind}")


@dataclass(frozen=True)
class Entry:
    """Something below the deployment. The O_PATH descriptor is good until the next entry."""

    path: str
    descriptor: int
    facts: os.stat_result


class Walk:
    """Goes through trees, with a limit for the levels and one for the entries of each."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.entries = 0  # of all trees
        self.most = 0

    def below(self, path: str, descriptor: int, level: int = 0) -> Iterator[Entry]:
        """The entry of an O_PATH descriptor and all that is below it, a directory first."""
        facts = os.fstat(descriptor)
        if not level:
            self.most = self.entries + ENTRIES
        self.entries += 1
        yield Entry(path, descriptor, facts)
        if not stat.S_ISDIR(facts.st_mode):
            return
        try:
            with held(reopen(descriptor, DIRECTORY)) as directory, os.scandir(directory) as names:
                yield from self._content(path, directory, names, level + 1)
        except OSError as error:
            self.findings.lose(path, f"cannot be read ({error.strerror})")

    def _content(
        self, path: str, directory: int, names: Iterator[os.DirEntry[str]], level: int
    ) -> Iterator[Entry]:
        for one in names:
            if level > LEVELS:
                return self.findings.lose(path, f"has content below {LEVELS} levels")
            if self.entries >= self.most:
                return self.findings.lose(path, f"has content beyond {ENTRIES} entries")
            try:
                child = os.open(one.name, PATH, dir_fd=directory)
            except FileNotFoundError:
                self.findings.warn(f"{path}/{one.name}", "vanished while it was read")
                continue
            with held(child):
                yield from self.below(f"{path}/{one.name}", child, level)
        return None


def archived_bytes(facts: os.stat_result) -> int:
    """What an entry takes in the archive, unless its name is long."""
    size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return BLOCK + size + -size % BLOCK


class Archive:
    """Writes members to a stream. `limit` is in bytes, for files that services have written."""

    def __init__(self, stream: IO[bytes], limit: int, findings: Findings) -> None:
        self.stream, self.limit, self.findings = stream, limit, findings
        self.written = 0

    def add(self, entry: Entry) -> None:
        mode = entry.facts.st_mode
        if stat.S_ISREG(mode):
            self._add_file(entry)
        elif stat.S_ISDIR(mode):
            self._add_header(entry.path, entry.facts, tarfile.DIRTYPE)
        elif stat.S_ISLNK(mode):
            target = os.readlink("", dir_fd=entry.descriptor)
            self._add_header(entry.path, entry.facts, tarfile.SYMTYPE, target)
        else:
            self.findings.warn(entry.path, "is no file, directory or link, and was skipped")

    def add_file(self, path: str, descriptor: int, facts: os.stat_result, size: int) -> None:
        """Exactly so many bytes, whatever the file has by now."""
        self._add_header(path, facts, tarfile.REGTYPE, size=size)
        left = size
        try:
            while left and (piece := os.read(descriptor, min(PIECE_BYTES, left))):
                self._write(piece)
                left -= len(piece)
            if left:
                self.findings.warn(path, "shrank while it was read, and was padded with zeros")
        except OSError as error:
            if error.errno == errno.EPIPE:  # the compressor's
                raise
            self.findings.lose(path, f"cannot be read whole ({error.strerror})")
        while left:
            padding = bytes(min(PIECE_BYTES, left))
            self._write(padding)
            left -= len(padding)
        self._write(bytes(-size % BLOCK))

    def close(self) -> None:
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.written % RECORD))

    def _add_file(self, entry: Entry) -> None:
        # Holes count in an archive. One service's must not take the space of another's files.
        if entry.facts.st_size > 4 * BLOCK * entry.facts.st_blocks + SPARSE_BYTES:
            return self.findings.lose(entry.path, "is nearly all holes")
        if self.written + archived_bytes(entry.facts) > self.limit:
            return self.findings.lose(entry.path, "is beyond the limit of size")
        try:
            descriptor = reopen(entry.descriptor, READ)
        except OSError as error:
            why = "in use" if isinstance(error, BlockingIOError) else error.strerror
            return self.findings.lose(entry.path, f"cannot be read ({why})")
        with held(descriptor):
            size = entry.facts.st_size
            self.add_file(entry.path, descriptor, entry.facts, size)
            now = os.fstat(descriptor)
            if now.st_size > size:
                self.findings.warn(entry.path, "grew while it was read, and was cut")
            elif now.st_size == size and now.st_mtime_ns != entry.facts.st_mtime_ns:
                self.findings.warn(entry.path, "changed while it was read")
        return None

    def _add_header(
        self, path: str, facts: os.stat_result, kind: bytes, link: str = "", size: int = 0
    ) -> None:
        header = tarfile.TarInfo(path)
        header.type, header.linkname, header.size = kind, link, size
        header.mode, header.mtime = stat.S_IMODE(facts.st_mode), int(facts.st_mtime)
        header.uid, header.gid = facts.st_uid, facts.st_gid
        encoding = sys.getfilesystemencoding()
        self._write(header.tobuf(tarfile.GNU_FORMAT, encoding, "surrogateescape"))

    def _write(self, data: bytes) -> None:
        self.stream.write(data)
        self.written += len(data)
