"""Places at which the test suite can stop a run and kill something."""

from __future__ import annotations

import os
import time

from .host import CONFIG, Host
from .log import log

STAND_STILL_SECONDS = 60


def fault_point(name: str, host: Host | None = None) -> None:
    """Stands still, at most 60 s, if TRACKER_BACKUP_STOP_AT is the name and the suite prepared it.

    Prepared means that the directory `.fault-points` is in staging. The program makes `reached`
    there and waits until `hold` is gone. Each run stops once. With TRACKER_BACKUP_TRACE, the log
    gets the time of each point.
    """
    if os.environ.get("TRACKER_BACKUP_TRACE"):
        log(f"step {time.time():.3f} {name}")
    if os.environ.get("TRACKER_BACKUP_STOP_AT") != name:
        return
    directory = (host or Host.read(CONFIG)).staging / ".fault-points"
    try:
        (directory / "reached").mkdir()
    except OSError:
        return
    end = time.monotonic() + STAND_STILL_SECONDS
    while (directory / "hold").exists() and time.monotonic() < end:
        time.sleep(0.02)
