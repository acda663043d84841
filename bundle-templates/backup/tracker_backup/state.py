"""The lock of all that changes anything."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import IO

from .files import make_directory
from .host import IN_SIDECAR, STATE, Refused

LOCK_SECONDS = 60


class LockHeld(Refused):
    pass


class Uninstalled(Refused):
    pass


def acquire(seconds: float) -> IO[str] | None:
    """The open file that holds the one lock of all that changes anything. None if somebody else
    held it for so many seconds. No child inherits it, because a free lock means that its holder is
    dead.
    """
    path = STATE / "lock"
    if not IN_SIDECAR:
        make_directory(STATE, 0o700)
    elif not path.exists():
        raise Refused(f"{path} is not there; install the bundle again", 2)
    # For the sidecar, the state directory is read-only.
    file = path.open("r" if IN_SIDECAR else "a", encoding="ascii")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
        time.sleep(0.1)
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return file
    raise Uninstalled("uninstalled while waiting for the lock; nothing was done", 2)


def lock_is_held() -> bool:
    try:
        with (STATE / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def lock(wait: float = LOCK_SECONDS, *, recovering: bool = False) -> Iterator[None]:
    """Holds the lock; a run that holds it is waited for, for so many seconds. Refused while a dead
    one is to be recovered.
    """
    try:
        file = acquire(wait)
    except Uninstalled:
        file = acquire(wait)
    if not file:
        raise LockHeld("a backup is running; nothing was changed: try again when it is over", 75)
    with file:
        if not recovering:
            refuse_while_unfinished()
        yield


def refuse_while_unfinished() -> None:
    """Refuses while a dead run or restore has not been recovered."""
    for name, dead, command, by_hand in (
        ("window", "run", "maintenance-backup.sh --recover", "start or unpause the tracker"),
        (
            "restore.json",
            "restore",
            "tracker-backup rollback",
            "see docs/restore.md, for the next run clears away what was there before",
        ),
    ):
        if (STATE / name).exists():
            raise Refused(
                f"a {dead} died and left {STATE / name}: run `{command}` first. Should that "
                f"fail for good: {by_hand}; then remove the file"
            )
