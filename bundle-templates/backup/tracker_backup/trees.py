"""Trees in which services or containers write: everything is reached by descriptors, no link is
followed, and nothing depends on the length of a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .host import Refused
from .protocol import printable

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LEVELS = 256
ENTRIES = 4_000_000


def shown(*names: str) -> str:
    return printable(os.fsencode("/".join(names)).decode(errors="backslashreplace"))


@contextlib.contextmanager
def below(base: Path, path: str, *, make: bool = False) -> Iterator[int]:
    """The descriptor of the directory `path` below `base`; with `make`, missing ones are made.

    FileNotFoundError if one is missing. Refused if something on the way is no directory.
    """
    refuse_dots(path)
    current = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    done: list[str] = [str(base)]
    try:
        for name in path.split("/") if path else ():
            done.append(name)
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=current)
            try:
                child = os.open(name, DIRECTORY, dir_fd=current)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                facts = os.stat(name, dir_fd=current, follow_symlinks=False)
                what = (
                    "a symlink; nothing is restored through it: remove it first"
                    if stat.S_ISLNK(facts.st_mode)
                    else "a file; the backup has a directory there"
                )
                raise Refused(f"{shown(*done)} is {what}") from error
            os.close(current)
            current = child
        yield current
    finally:
        os.close(current)


def refuse_dots(path: str) -> None:
    if path and {"", ".", ".."} & {*path.split("/")}:
        raise Refused(f"{shown(path)} is no plain path")


@contextlib.contextmanager
def parent(base: Path, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """The descriptor of the directory that holds the path, and the last name of the path."""
    refuse_dots(path)
    above, _, name = path.rpartition("/")
    with below(base, above, make=make) as directory:
        yield directory, name


def facts_of(base: Path, path: str) -> os.stat_result | None:
    """lstat of a path; None if it is missing."""
    try:
        with parent(base, path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def walk(base: Path, path: str) -> Iterator[tuple[int, str, str, os.stat_result]]:
    """(descriptor of the directory, name, path below base, lstat) of a path and all below it."""
    with parent(base, path) as (directory, name):
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        yield directory, name, path, facts
    waiting, count = [path] if stat.S_ISDIR(facts.st_mode) else [], 0
    while waiting:
        above = waiting.pop()
        if above.count("/") > LEVELS:
            raise Refused(f"{shown(above)} has more than {LEVELS} levels")
        with below(base, above) as directory, os.scandir(directory) as entries:
            for entry in entries:
                if (count := count + 1) > ENTRIES:
                    raise Refused(f"{shown(path)} has more than {ENTRIES} entries")
                facts = entry.stat(follow_symlinks=False)
                yield directory, entry.name, f"{above}/{entry.name}", facts
                if stat.S_ISDIR(facts.st_mode):
                    waiting.append(f"{above}/{entry.name}")


def make_plain(base: Path, path: str) -> None:
    """Drops set-uid bits of what a container has extracted. Refuses anything but directories, links
    and files of their own: a file with two links could be another service's.

    Call it when nobody else can write there.
    """
    for directory, name, found, facts in walk(base, path):
        if stat.S_ISREG(facts.st_mode):
            if facts.st_nlink != 1:
                raise Refused(f"{shown(found)} in the backup is linked twice")
            if facts.st_mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(name, facts.st_mode & 0o1777, dir_fd=directory)
        elif not (stat.S_ISDIR(facts.st_mode) or stat.S_ISLNK(facts.st_mode)):
            raise Refused(f"{shown(found)} in the backup is a device, a pipe or a socket")
