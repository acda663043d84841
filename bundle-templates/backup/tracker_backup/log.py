"""What the commands say: on their streams and, for what an operator starts by hand, in the log.

A run writes to both by itself: see `LogFile`. Whatever others have said in a text, each line of the
log begins with the time and our name, and no terminal obeys a character of it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from .host import IN_SIDECAR, ROOT, utc_now
from .protocol import escaped

LOG = Path(
    os.environ.get("TRACKER_BACKUP_LOG")
    # the standard output of the container, where `docker logs` reads
    or ("/proc/1/fd/1" if IN_SIDECAR else ROOT / "var/log/tracker-backup.log")
)
TEE_SECONDS = 5
copying = False  # whether the log gets a copy of what is said
name = "tracker-backup"  # of the program, in the lines of the log


def log(text: str) -> None:
    """A line of a run."""
    with contextlib.suppress(OSError):
        print(line_of(name, text), file=sys.stderr, flush=True)


def line_of(program: str, text: str) -> str:
    return f"{utc_now()} {program}[{os.getpid()}]: {escaped(text)}"


def shown(text: str) -> str:
    """The text for a terminal, or for the log under cron: its first line alone is at the left."""
    return "\n  ".join(map(escaped, text.split("\n")))


class LogFile:
    """While it is open, both streams, our own and those of all children, are the log.

    Under cron they are the log already. By hand, `tee` writes them to the terminal, too. It has a
    session of its own, so that the terminal's signals do not end it.
    """

    def __enter__(self) -> None:
        self.tee: subprocess.Popen[bytes] | None = None
        if not LOG.exists():
            os.close(os.open(LOG, os.O_WRONLY | os.O_CREAT, 0o640))
            LOG.chmod(0o640)
        if not os.path.samestat(os.fstat(2), LOG.stat()):
            command = ["tee", "--append", "--output-error=warn", "--", str(LOG)]
            self.tee = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            assert self.tee.stdin
            for stream in (1, 2):
                os.dup2(self.tee.stdin.fileno(), stream)
            self.tee.stdin.close()

    def __exit__(self, *_: object) -> None:
        """The last line is written, unless a child of a child keeps the streams open."""
        if self.tee:
            with open(os.devnull, "wb") as null:
                for stream in (1, 2):
                    os.dup2(null.fileno(), stream)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.tee.wait(TEE_SECONDS)


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # under cron, this is the log, whose disk can be full
        print(shown(text), flush=True)
    copy(text, 1)


def complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(shown(text), file=sys.stderr, flush=True)
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
            log.write(line_of("tracker-backup", text) + "\n")
