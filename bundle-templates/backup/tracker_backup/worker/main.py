"""The entry point of the image: the first argument is a role, or `service` and a role."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

from ..priority import lower_priority
from .confine import confine
from .service import WORK, serve
from .supervisor import supervise

IDLE_SECONDS = 86400
WRITABLE = (WORK, *map(Path, ("/dev", "/run", "/tmp")))
ROLES = ("reader", "examiner", "client", "courier", "unpacker")  # each a module of its own
SERVICES = ("examiner", "client")  # of the sidecar


def main(words: list[str]) -> int:
    role = words[0] if len(words) == 1 else ""
    os.umask(0o077)
    # restic sends one to the process that a lock names, which can have a process id of ours.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if role == "idle":
        return idle()
    if words[:1] == ["service"] and words[1] in SERVICES and len(words) == 2:
        return supervise(words[1])
    if role == "dump":
        confine(True, WRITABLE)
        dumped: int = importlib.import_module(".client", __package__).dump()
        return dumped
    if role not in ROLES:
        programs = " | ".join(("idle", "dump", "sidecar", "now", "healthy", "service ROLE", *ROLES))
        print(f"usage: backup.sh {programs}", file=sys.stderr)
        return 2
    if role in ("examiner", "courier"):  # which work outside the window alone
        lower_priority()
    if role != "courier":  # restic, ssh and rclone are trusted with what they see
        confine(role == "client", WRITABLE)
    return serve(importlib.import_module(f".{role}", __package__).JOBS)


def idle() -> int:
    """The container's own process: waits for conversations, at most a day."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    time.sleep(IDLE_SECONDS)
    return 0
