"""What the commands say: on their streams and, for what an operator starts by hand, in the log."""

from __future__ import annotations

import contextlib
import os
import sys

from .host import ROOT, utc_now

LOG = ROOT / "var/log/tracker-backup.log"
copying = False  # whether the log gets a copy of what is said


def say(text: str) -> None:
    print(text, flush=True)
    copy(text, 1)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    copy(text, 2)


def copy(text: str, descriptor: int) -> None:
    """Into the log, unless this stream is the log already, as under cron; a log that cannot be
    written stops nothing.
    """
    if not copying:
        return
    with (
        contextlib.suppress(OSError),
        open(
            os.open(LOG, os.O_WRONLY | os.O_APPEND),
            "a",
            encoding="utf-8",
            errors="backslashreplace",
        ) as log,
    ):
        if not os.path.sameopenfile(log.fileno(), descriptor):
            log.write(f"{utc_now()} tracker-backup[{os.getpid()}]: {text}\n")
