"""The sidecar, seen from the host: that it is there, and told what only the host knows; a run now,
whatever the strategy.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from .deployment import look_for_sidecar
from .docker import (
    BUILD_SECONDS,
    FRAGMENT,
    SIDECAR_LABEL,
    compose_files,
    deployed_containers,
    docker,
    make_image,
    stack_containers,
)
from .documents import RestoreJournal, StackFacts
from .files import change, put, remove
from .host import CONFIG, ROOT, STATE, Host, Refused
from .log import say
from .remote import push_what_is_new
from .restore import command_rollback
from .state import LockHeld, lock

LOCK_TRIES = 40  # a second each: no longer than until cron calls again


def time_zone() -> str:
    """The host's, by name; where it has none, by the rule that its file ends with."""
    zone = ROOT / "etc/localtime"
    if zone.is_symlink() and (name := str(zone.readlink()).rpartition("zoneinfo/")[2]):
        return name
    with contextlib.suppress(OSError):
        name = (ROOT / "etc/timezone").read_text(encoding="ascii").strip()
        if re.fullmatch(r"[\w+/-]+", name):
            return name
    with contextlib.suppress(OSError):
        rule = zone.read_bytes().split(b"\n")[-2:][0].decode("ascii", "replace")
        if re.fullmatch(r"[\w<>+,./:-]+", rule):
            return rule
    return "UTC"


def environment(host: Host) -> list[str]:
    """Of the sidecar, beside what its compose file says; with the file's digest, so that another
    one makes another container.
    """
    fragment = (host.deploy_dir / "docker-compose.backup.yml").read_bytes()
    digest = hashlib.sha256(fragment).hexdigest()
    return [f"TZ={time_zone()}", f"TRACKER_BACKUP_FRAGMENT={digest[:12]}"]


def find_sidecar(host: Host) -> dict[str, Any] | None:
    return next(iter(deployed_containers(host, SIDECAR_LABEL)), None)


def sees_other_files(found: dict[str, Any]) -> bool:
    """Whether a file that is mounted there was replaced since, or a disk mounted: a bind mount goes
    on showing the old one.
    """
    root = Path(f"/proc/{found['State']['Pid']}/root")
    try:
        return not all(
            (root / one["Destination"].lstrip("/")).samefile(one["Source"])
            for one in found["Mounts"]
        )
    except OSError:
        return True


def is_as_wanted(host: Host, found: dict[str, Any] | None) -> bool:
    return (
        found is not None
        and found["State"]["Status"] == "running"
        and not set(environment(host)) - set(found["Config"]["Env"])
        and not sees_other_files(found)
    )


def sidecar_state(host: Host) -> str:
    """How the sidecar is, in a word or two; empty where the strategy is another."""
    if host.strategy != "sidecar":
        return ""
    try:
        found = find_sidecar(host)
    except Refused as error:
        return str(error)
    if found is None:
        return "missing"
    health = found["State"].get("Health", {}).get("Status", "")
    return str(found["State"]["Status"]) + (f", {health}" if health else "")


def bring_up_sidecar(host: Host) -> None:
    """Starts or replaces the sidecar if it is not as wanted; touches no other container."""
    if not (STATE / StackFacts.FILE).exists():
        look_for_sidecar(host).store()
    before = find_sidecar(host)
    lines = "".join(f"{line}\n" for line in environment(host))
    put(host.deploy_dir / "backup/sidecar.env", lines.encode(), 0o644)
    command = ["compose"]
    labels = [found["Config"]["Labels"] for found in stack_containers(host)]
    if projects := sorted(one["com.docker.compose.project"] for one in labels):
        command += ["--project-name", projects[0]]
    command += ["--project-directory", str(host.deploy_dir)]
    for file in [*compose_files(host), host.deploy_dir / FRAGMENT]:
        command += ["--file", str(file)]
    command += ["up", "--detach", "--no-deps", "--no-build"]
    if before and before["State"]["Status"] == "running" and sees_other_files(before):
        command += ["--force-recreate"]
    docker(*command, "backup", seconds=BUILD_SECONDS)
    after = find_sidecar(host)
    if after is None:
        raise Refused("docker compose has not started the sidecar")
    if started(before) != started(after):
        say(f"changed: sidecar {after['Name'].lstrip('/')} (started)")


def started(found: dict[str, Any] | None) -> tuple[str, str] | None:
    return (found["Id"], found["State"]["StartedAt"]) if found else None


def remove_sidecar(host: Host) -> None:
    """And what it was told."""
    for found in deployed_containers(host, SIDECAR_LABEL):
        command = ("rm", "--force", "--volumes", found["Id"])
        change(f"sidecar {found['Name'].lstrip('/')} (removed)", partial(docker, *command))
    for path in (host.deploy_dir / "backup/sidecar.env", STATE / StackFacts.FILE):
        remove(path)


def command_sidecar(arguments: argparse.Namespace) -> int:
    """Every minute: undoes a restore that died, tells the sidecar of the stack, brings it back when
    it is not there, and pushes its runs.
    """
    if (STATE / "hold").exists():
        return 0
    if (STATE / RestoreJournal.FILE).exists():
        command_rollback(arguments)
    host = sidecar_host()
    look_for_sidecar(host).store()
    if is_as_wanted(host, find_sidecar(host)):
        push_what_is_new(host)
        return 0
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(LockHeld), lock(wait=0):
            host = sidecar_host()
            if not is_as_wanted(host, find_sidecar(host)):
                make_image(host, host.configuration, rebuild=False)
                bring_up_sidecar(host)
            return 0
        time.sleep(1)
        if not CONFIG.exists():  # uninstalled meanwhile
            return 0
    return 0


def sidecar_host() -> Host:
    host = Host.read(CONFIG)
    if host.strategy != "sidecar":
        raise Refused(f"{CONFIG}: STRATEGY='{host.strategy}'; there is no sidecar", 2)
    return host


def command_run(arguments: argparse.Namespace) -> int:
    """Becomes the run, so that its exit code and its output are this command's."""
    host = Host.read(CONFIG)
    options = ["--dry-run"] if arguments.dry_run else []
    if host.strategy != "sidecar":
        script = str(ROOT / "usr/local/bin/maintenance-backup.sh")
        os.execv(script, [script, *options])
    found = find_sidecar(host)
    if found is None or found["State"]["Status"] != "running":
        raise Refused("the sidecar does not run; `tracker-backup sidecar` brings it back")
    os.execvp("docker", ["docker", "exec", found["Id"], "backup.sh", "now", *options])
