"""Makes up for a run that the host missed because it was off. Cron calls this each minute after a
boot, for as long as the file `catch-up` is there.
"""

from __future__ import annotations

import argparse
import datetime
import time

from .cron import next_run, seconds_since_boot
from .docker import service_of, stack_containers
from .documents import run_time
from .host import CONFIG, STATE, Host, read_settings
from .log import log
from .runs import read_runs
from .sidecar import command_run, sidecar_state

FLAG = STATE / "catch-up"
TRACKER_SECONDS = 300  # for which the tracker has to run first


def command_catch_up(_: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    if (STATE / "hold").exists():
        return 0
    if not is_missed(host):
        FLAG.unlink(missing_ok=True)
        return 0
    if tracker_seconds(host) < TRACKER_SECONDS:
        return 0
    if host.strategy == "sidecar" and not sidecar_state(host).startswith("running"):
        return 0
    FLAG.unlink(missing_ok=True)
    log("the host was off when a run was due: making up for it")
    return command_run(argparse.Namespace(dry_run=False))


def is_missed(host: Host) -> bool:
    """Whether a run was due before this boot, not too long ago, and none was made since."""
    hours = int(read_settings(CONFIG).get("CATCH_UP_HOURS", "0"))
    now = time.time()
    since = max([now - hours * 3600, *(run_time(run.id).timestamp() for run in read_runs(host))])
    due = next_run(host.calendar, datetime.datetime.fromtimestamp(since))
    return due is not None and due.timestamp() < now - seconds_since_boot()


def tracker_seconds(host: Host) -> float:
    """For how long the tracker runs; 0 if it does not."""
    for found in stack_containers(host):
        if service_of(found) == "tracker" and found["State"]["Status"] == "running":
            # Docker writes nine digits of a second, and Python reads six.
            began = datetime.datetime.fromisoformat(found["State"]["StartedAt"][:19] + "+00:00")
            return time.time() - began.timestamp()
    return 0
