"""Whether a cron daemon runs on this host: without one, no backup and no recovery is ever made."""

from __future__ import annotations

import subprocess

from .host import ROOT

DAEMONS = {b"cron", b"crond", b"cronie", b"fcron"}
MISSING = (
    "no cron daemon runs on this host, so nothing makes backups and nothing recovers a dead run"
)
REMEDY = "install and start one (apt-get install cron; systemctl enable --now cron)"


def cron_runs() -> bool:
    """A daemon of root's in our own process namespace, or the timers of systemd-cron.

    Another namespace is a container, and a cron there does not read this host's /etc/cron.d.
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
        programs = [word.rpartition(b"/")[2] for word in words[:2]]
        if programs[0] in DAEMONS or programs == [b"busybox", b"crond"]:
            return True
    return systemd_cron_runs()


def systemd_cron_runs() -> bool:
    command = ["systemctl", "is-active", "--quiet", "cron.target"]
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
