"""The entry point of the image: the one argument names a role."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

from .confine import confine
from .service import WORK, serve

IDLE_SECONDS = 86400
WRITABLE = (WORK, *map(Path, ("/dev", "/run", "/tmp")))
ROLES = ("reader", "examiner", "client", "courier", "unpacker")  # each a module of its own


def main(words: list[str]) -> int:
    role = words[0] if len(words) == 1 else ""
    os.umask(0o077)
    # restic sends one to the process that a lock names, which can have a process id of ours.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if role == "idle":
        return idle()
    if role == "dump":
        dumped: int = importlib.import_module(".client", __package__).dump()
        return dumped
    if role not in ROLES:
        programs = " | ".join(("idle", "dump", "sidecar", "now", "healthy", *ROLES))
        print(f"usage: backup.sh {programs}", file=sys.stderr)
        return 2
    if role != "courier":  # restic, ssh and rclone are trusted with what they see
        # To put files in their places, the unpacker writes to others, too.
        confine(role == "client", () if role == "unpacker" else WRITABLE)
    return serve(importlib.import_module(f".{role}", __package__).JOBS)


def idle() -> int:
    """The container's own process: waits for conversations, at most a day."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    time.sleep(IDLE_SECONDS)
    return 0
