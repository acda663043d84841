"""The lock of all that changes anything."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from .files import make_directory
from .host import STATE, Refused

LOCK_SECONDS = 60


class LockHeld(Refused):
    pass


@contextlib.contextmanager
def lock(wait: float = LOCK_SECONDS, *, recovering: bool = False) -> Iterator[None]:
    """The one lock of all that changes anything; a run that holds it is waited for, for so many
    seconds. Refused while a dead one is to be recovered.
    """
    make_directory(STATE, 0o700)
    deadline = time.monotonic() + wait
    while True:
        with open(STATE / "lock", "a", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise LockHeld(
                        "a backup is running; nothing was changed: try again when it is over", 75
                    ) from error
                time.sleep(0.5)
                continue
            if (STATE / "lock").exists() and os.path.samestat(
                os.fstat(file.fileno()), (STATE / "lock").stat()
            ):
                if not recovering:
                    refuse_while_unfinished()
                yield
                return
        make_directory(STATE, 0o700)  # an uninstallation removed it meanwhile


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
