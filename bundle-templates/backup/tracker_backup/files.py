"""Files and directories of root's: written whole or not at all, with exactly this mode."""

from __future__ import annotations

import difflib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from .log import complain, say

PRIVATE = 0o600  # the mode of a file whose content is never shown
checking = False  # report changes, and make none
showing = False  # show how the content of each file changes


def change(what: str, action: Callable[[], object]) -> None:
    """Makes a change on this host and reports it. While `checking`, it is reported alone."""
    if not checking:
        action()
    say(f"changed: {what}")


def write_durably(
    path: Path, content: str | bytes, mode: int = 0o600, *, sync: bool = True
) -> None:
    """Writes a file so that after a power cut it is whole or not there. Without `sync` that holds
    after the caller's os.sync(), which is faster for many files.
    """
    partial = partial_of(path)
    partial.unlink(missing_ok=True)
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def partial_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_ours(path: Path, mode: int) -> bool:
    """Whether it is root's with exactly this mode."""
    facts = path.lstat()
    owner = (os.geteuid(), os.getegid())
    return (facts.st_mode & 0o7777, facts.st_uid, facts.st_gid) == (mode, *owner)


def make_directory(path: Path, mode: int) -> None:
    """One directory of root's with exactly this mode; its parent must be there."""

    def make() -> None:
        path.mkdir(mode=mode, exist_ok=True)
        os.chown(path, os.geteuid(), os.getegid())
        path.chmod(mode)

    if not (path.is_dir() and is_ours(path.resolve(), mode)):
        change(str(path), make)


def put(path: Path, content: bytes, mode: int, *, sync: bool = True) -> bool:
    """A file of root's with exactly this content and mode, replaced by rename when it differs.
    Returns whether it did.
    """
    old = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    if old == content and is_ours(path, mode):
        return False
    change(str(path), lambda: write_durably(path, content, mode, sync=sync))
    if showing:
        show_difference(path, old, content, mode)
    return True


def show_difference(path: Path, old: bytes | None, new: bytes, mode: int) -> None:
    if old == new:
        say(f"{path}: owner or mode; it becomes root's with {mode:04o}")
    elif old is None:
        say(f"{path}: a new file")
    elif mode == PRIVATE:
        say(f"{path}: other content, which is not shown")
    else:
        was, is_now = (
            content.decode(errors="backslashreplace").splitlines() for content in (old, new)
        )
        names = (f"{path} (on the host)", f"{path} (in the bundle)")
        for line in difflib.unified_diff(was, is_now, *names, lineterm=""):
            say(line)


def remove_tree(path: Path) -> None:
    """Removes whatever is there, however deep: `rm` needs neither recursion nor long paths.

    What cannot be removed stays, with a warning.
    """
    command = ["/bin/rm", "-rf", "--one-file-system", "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        complain(f"warning: {path} could not be removed: {done.stderr.strip()[-300:]!r}")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        change(f"{path} (removed)", lambda: remove_tree(path))
    elif path.exists() or path.is_symlink():
        change(f"{path} (removed)", path.unlink)
