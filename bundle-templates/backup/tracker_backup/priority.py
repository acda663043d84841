"""Low priority for what is done outside the window, so that the tracker goes first."""

from __future__ import annotations

import contextlib
import os
import subprocess

NICE = 10
IONICE = "ionice --class 2 --classdata 7 --pid"  # the lowest that still gets on with its work


def lower_priority() -> None:
    """Of this process and of what it starts from now on, for the processor and for the disk."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    null = subprocess.DEVNULL
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = [*IONICE.split(), str(os.getpid())]
        subprocess.run(command, stdout=null, stderr=null, timeout=10, check=False)
