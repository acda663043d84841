"""The core of the sidecar: the container's own process is cron, and a run is a job of cron's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .host import CONFIG, Refused, read_settings, utc_now
from .main import main as command

CRON_FILE = Path(os.environ.get("BACKUP_CRON_FILE", "/etc/cron.d/tracker-backup"))
ZONES = Path("/usr/share/zoneinfo")
# The host's machine id says how much later than the schedule a run begins: the same each time.
# Cron's jobs have another standard output than the container, which is where `docker logs` reads.
CRON = """SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MAILTO=""
{} root sleep $((0x$(head -c 7 /etc/machine-id) \\% ({} + 1))); backup.sh now >>/proc/1/fd/1 2>&1
"""


def main(words: list[str]) -> int:
    """`sidecar`, `now [--dry-run]` and `healthy`; returns the exit code."""
    if words == ["sidecar"]:
        try:
            keep_schedule()
        except Refused as error:
            say(f"ERROR: {error}")
            return error.code
    if words == ["healthy"]:
        return command(["check", "freshness"])
    return command(["in-sidecar", *words[1:]])


def keep_schedule() -> None:
    """Becomes cron. The schedule is in the time zone TZ."""
    schedule, zone = os.environ.get("BACKUP_SCHEDULE", ""), os.environ.get("TZ", "")
    if not schedule or "\n" in schedule:
        text = "BACKUP_SCHEDULE is not in the environment; install the bundle again"
        raise Refused(text, 2)
    jitter = read_settings(CONFIG).get("JITTER_SECONDS", "0")
    CRON_FILE.write_text(CRON.format(schedule, jitter), encoding="utf-8")
    CRON_FILE.chmod(0o644)
    # A name, or the rule itself as POSIX writes it, which ends in a number.
    if zone and not (ZONES / zone).exists() and not zone[-1].isdigit():
        say(f"WARNING: the image does not know the time zone {zone}; the schedule is in UTC")
    say(f"the schedule is {schedule}, time zone {zone or 'UTC'}")
    os.execvp("cron", ["cron", "-f"])


def say(text: str) -> None:
    print(f"{utc_now()} backup: {text}", file=sys.stderr, flush=True)
