"""Whether cron calls us on this host, and when next: without it, no backup and no recovery is ever
made.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import time
from pathlib import Path

from .host import ROOT, STATE

SCHEDULE = ROOT / "etc/cron.d/tracker-backup"
HEARTBEAT = STATE / "cron"  # the line of each minute in SCHEDULE touches it
BEAT_SECONDS = 150  # two minutes, and some time for a busy host
DAEMONS = {b"cron", b"crond", b"cronie", b"bcron-sched"}  # they read /etc/cron.d
MISSING = (
    "no cron daemon runs on this host, so nothing makes backups and nothing recovers a dead run"
)
REMEDY = "install and start one (apt-get install cron; systemctl enable --now cron)"
SILENT = (
    "a cron daemon runs, but has not called tracker-backup {since}, so nothing makes backups "
    f"and nothing recovers a dead run: see `journalctl -u cron`; {SCHEDULE} must be root's, 0644"
)


def cron_problem() -> str:
    """Why cron does not call us each minute; empty if it does.

    The heartbeat tells it. A daemon's process counts while cron had no time yet to beat, after an
    installation or a boot, and where the heartbeat cannot be written.
    """
    age = seconds_since_change(HEARTBEAT)
    if abs(age) <= BEAT_SECONDS:
        return ""
    if not cron_runs():
        return f"{MISSING}: {REMEDY}"
    try:
        beats = b"cron; " in SCHEDULE.read_bytes()
    except OSError as error:
        return f"{SCHEDULE} cannot be read ({error.strerror}): install the bundle again"
    had_time = min(seconds_since_change(SCHEDULE), seconds_since_boot()) > BEAT_SECONDS
    if not (beats and had_time and os.access(STATE, os.W_OK)):
        return ""
    return SILENT.format(since=f"for {age / 60:.0f} minutes" if HEARTBEAT.exists() else "yet")


def seconds_since_change(path: Path) -> float:
    """Infinite for a file that is not there; negative if the clock was set back."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def seconds_since_boot() -> float:
    """Since the first process of this host began. A container can be such a host."""
    try:
        words = (ROOT / "proc/1/stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = int(words[19])
    except (OSError, ValueError, IndexError):
        return float("inf")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def next_run(calendar: str, after: datetime.datetime) -> datetime.datetime | None:
    """The first minute later than `after`, host's wall-clock time, that the calendar names; None
    when there is none in 40 years. Raises ValueError for what is no calendar.
    """
    *fields, days_taken = calendar.split()
    minutes, hours, days, months, weekdays = (
        [int(number) for number in field.split(",")] for field in fields
    )
    combine = all if days_taken == "both" else any
    dates = (after.date() + datetime.timedelta(days=offset) for offset in range(40 * 366))
    moments = (
        datetime.datetime.combine(date, datetime.time(hour, minute))
        for date in dates
        if date.month in months and combine((date.day in days, date.isoweekday() % 7 in weekdays))
        for hour in hours
        for minute in minutes
    )
    return next((moment for moment in moments if moment > after), None)


def cron_runs() -> bool:
    """Whether root runs a daemon in our own process namespace that reads /etc/cron.d.

    Another namespace is a container, and a cron there does not read this host's files. Busybox's
    crond and fcron do not read /etc/cron.d, so they do not count. systemd-cron has no daemon, but
    makes timers.
    """
    processes = ROOT / "proc"
    try:
        own = (processes / "self/ns/pid").readlink()
    except OSError:  # unknown is not missing
        return True
    for process in processes.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if process.stat().st_uid != 0 or (process / "ns/pid").readlink() != own:
                continue
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if words[0].rpartition(b"/")[2] in DAEMONS and not is_busybox(process):
            return True
    return systemd_cron_runs()


def is_busybox(process: Path) -> bool:
    try:
        return (process / "exe").readlink().name == "busybox"
    except OSError:
        return False


def systemd_cron_runs() -> bool:
    command = ["systemctl", "is-active", "--quiet", "cron.target"]
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
