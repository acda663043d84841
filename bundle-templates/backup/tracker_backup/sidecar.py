"""The sidecar, seen from the host: that its services are there, and told what only the host knows.
And a run now, whatever the strategy.
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
    SIDECAR_LABEL,
    compose,
    deployed_containers,
    make_image,
    remove_container,
    service_of,
    stack_containers,
    words,
)
from .documents import RestoreJournal, StackFacts
from .drivers import driver_of
from .files import change, make_directory, put, remove
from .host import CONFIG, ROOT, STATE, Host, Refused
from .log import say
from .remote import push_what_is_new
from .restore import command_rollback
from .roles import SERVICES
from .state import LockHeld, lock

CORE = SERVICES["reader"]
ALIVE = ("running", "restarting")  # a service ends with each of its jobs
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


def environment(host: Host, fragment: bytes | None = None) -> list[str]:
    """Of each service, beside what the compose file says; with the file's digest, so that another
    one makes other containers.
    """
    if fragment is None:
        fragment = (host.deploy_dir / "docker-compose.backup.yml").read_bytes()
    digest = hashlib.sha256(fragment).hexdigest()
    return [f"TZ={time_zone()}", f"TRACKER_BACKUP_FRAGMENT={digest[:12]}"]


def wanted_services(host: Host) -> list[str]:
    """The core first."""
    return [SERVICES[role] for role in dict.fromkeys(("reader", *outside_roles(host)))]


def outside_roles(host: Host) -> list[str]:
    """Those that work outside of the core. Each has a directory for its service in staging."""
    source = driver_of(host).SOURCE
    return ["examiner", *([source] if source != "reader" else [])]


def find_services(host: Host) -> dict[str, dict[str, Any]]:
    """The sidecar's containers by service."""
    return {service_of(found): found for found in deployed_containers(host, SIDECAR_LABEL)}


def find_core(host: Host) -> dict[str, Any] | None:
    return find_services(host).get(CORE)


def sees_other_files(found: dict[str, Any]) -> bool:
    """Whether a file that is mounted there was replaced since, or a disk mounted: a bind mount goes
    on showing the old one.
    """
    if not found["State"]["Pid"]:  # between two lives
        return False
    root = Path(f"/proc/{found['State']['Pid']}/root")
    try:
        return not all(
            (root / one["Destination"].lstrip("/")).samefile(one["Source"])
            for one in found["Mounts"]
            if one["Type"] == "bind"
        )
    except OSError:
        return True


def is_as_wanted(host: Host) -> bool:
    services = find_services(host)
    return services.keys() == set(wanted_services(host)) and all(
        found["State"]["Status"] in ALIVE
        and not set(environment(host)) - set(found["Config"]["Env"])
        and not sees_other_files(found)
        for found in services.values()
    )


def sidecar_state(host: Host) -> str:
    """How the sidecar is, in a few words; empty where the strategy is another."""
    if host.strategy != "sidecar":
        return ""
    try:
        services = find_services(host)
        for name in wanted_services(host):
            status = services[name]["State"]["Status"] if name in services else "missing"
            if status not in ALIVE:
                return str(status) if name == CORE else f"without {name}, which is {status}"
    except Refused as error:
        return str(error)
    state = services[CORE]["State"]
    health = state.get("Health", {}).get("Status", "")
    return str(state["Status"]) + (f", {health}" if health else "")


def prepare_sidecar(host: Host, fragment: bytes | None = None) -> None:
    """Puts there what the services find when they start; for this compose file, or the one that is
    there.
    """
    for role in outside_roles(host):
        make_directory(host.staging / role, 0o711)
    lines = "".join(f"{line}\n" for line in environment(host, fragment))
    put(host.deploy_dir / "backup/sidecar.env", lines.encode(), 0o644)


def bring_up_sidecar(host: Host) -> None:
    """Starts or replaces the services that are not as wanted; touches no other container."""
    if not (STATE / StackFacts.FILE).exists():
        look_for_sidecar(host).store()
    prepare_sidecar(host)
    before, wanted = find_services(host), wanted_services(host)
    for name in before.keys() - set(wanted):
        remove_service(before[name])
    labels = [found["Config"]["Labels"] for found in stack_containers(host)]
    projects = sorted(one["com.docker.compose.project"] for one in labels)
    arguments = words("up --detach --no-deps --no-build")
    if any(sees_other_files(found) for found in before.values()):
        arguments.append("--force-recreate")
    compose(host, *arguments, *wanted, project=next(iter(projects), ""), seconds=BUILD_SECONDS)
    after = find_services(host)
    for name in wanted:
        if name not in after:
            raise Refused(f"docker compose has not started the sidecar's service {name}")
        old = before.get(name)
        if not old or old["Id"] != after[name]["Id"] or old["State"]["Status"] not in ALIVE:
            say(f"changed: sidecar {after[name]['Name'].lstrip('/')} (started)")


def remove_service(found: dict[str, Any]) -> None:
    name = found["Name"].lstrip("/")
    change(f"sidecar {name} (removed)", partial(remove_container, found["Id"]))


def remove_sidecar(host: Host) -> None:
    """With what it was told, and the directories of its services."""
    for found in deployed_containers(host, SIDECAR_LABEL):
        remove_service(found)
    told = (host.deploy_dir / "backup/sidecar.env", STATE / StackFacts.FILE)
    for path in (*told, *(host.staging / role for role in SERVICES)):
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
    if is_as_wanted(host):
        push_what_is_new(host)
        return 0
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(LockHeld), lock(wait=0):
            host = sidecar_host()
            if not is_as_wanted(host):
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
    found = find_core(host)
    if found is None or found["State"]["Status"] != "running":
        raise Refused("the sidecar does not run; `tracker-backup sidecar` brings it back")
    os.execvp("docker", ["docker", "exec", found["Id"], "backup.sh", "now", *options])
