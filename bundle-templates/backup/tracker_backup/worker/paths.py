"""How the reader opens what the path list names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ..protocol import shown as shown
from . import service

PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Unusable(Exception):
    """Why a path cannot be backed up, to be read after the path. `name` is the file's, if known."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


@contextmanager
def held(descriptor: int) -> Iterator[int]:
    """Closes the descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_path(path: str) -> int:
    """An O_PATH descriptor of a path below the deployment.

    Opens one component at a time and follows no link. FileNotFoundError if there is nothing.
    """
    current = os.open(service.DATA, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.split("/"):
        try:
            child = os.open(part, PATH, dir_fd=current)
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        finally:
            os.close(current)
        current = child
        if stat.S_ISLNK(os.fstat(current).st_mode):
            leads = shown(os.readlink("", dir_fd=current))
            os.close(current)
            raise Unusable(f"leads through a symlink to {leads}; refused")
    return current


def open_directory(path: str) -> int:
    """A descriptor of the directory, for the names in it. An empty path is the deployment."""
    with held(open_path(path or ".")) as descriptor:
        return reopen(descriptor, DIRECTORY)


def open_regular(directory: int, name: str) -> int:
    """A descriptor to read the file `name` of a directory. Raises Unusable for anything else.

    BlockingIOError if somebody holds a lease on the file.
    """
    with held(os.open(name, PATH, dir_fd=directory)) as descriptor:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            link = " but a symlink" if stat.S_ISLNK(mode) else ""
            raise Unusable(f"is not a regular file{link}", name)
        return reopen(descriptor, READ)


def reopen(descriptor: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", flags)
