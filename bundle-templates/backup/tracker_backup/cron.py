"""Whether a cron daemon runs on this host: without one, no backup and no recovery is ever made."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .host import ROOT

DAEMONS = {b"cron", b"crond", b"cronie", b"bcron-sched"}  # they read /etc/cron.d
MISSING = (
    "no cron daemon runs on this host, so nothing makes backups and nothing recovers a dead run"
)
REMEDY = "install and start one (apt-get install cron; systemctl enable --now cron)"


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
