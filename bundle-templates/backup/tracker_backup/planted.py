"""Files of ours in directories that somebody else can write to, through descriptors: no link is
followed, and nothing but a regular file is read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def opened(base: Path, *names: str, make: bool = False) -> Iterator[int]:
    """A descriptor of `base/NAME/NAME...`, with what is missing made if `make`. Raises OSError if
    one of the names is no directory, such as a link.
    """
    with contextlib.ExitStack() as stack:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        for name in names:
            made = False
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
                    made = True
            descriptor = os.open(name, DIRECTORY, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
            if made:
                os.fchmod(descriptor, 0o755)
        yield descriptor


def put_at(directory: int, name: str, content: bytes, mode: int) -> bool:
    """Makes the file what it should be, by rename. Returns whether it was something else."""
    if is_at(directory, name, content, mode):
        return False
    partial = f"{name}.partial"
    remove_at(directory, partial)
    with open(os.open(partial, CREATE, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
    return True


def is_at(directory: int, name: str, content: bytes, mode: int) -> bool:
    """Whether the file is root's and regular, with exactly this content and mode."""
    try:
        descriptor = os.open(name, READ, dir_fd=directory)
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        wanted = (stat.S_IFREG | mode, os.geteuid(), os.getegid(), len(content))
        found = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_size)
        return found == wanted and file.read(len(content) + 1) == content


def remove_at(directory: int, name: str) -> bool:
    """Removes a file or a link. Returns whether there was one."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True
