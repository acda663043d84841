"""The deployment as it is now: its services, and the database that the tracker uses."""

from __future__ import annotations

import datetime
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .docker import compose_files, service_of, stack_containers
from .documents import Owner, StackFacts
from .drivers import driver_of, used_database
from .files import make_directory
from .host import IN_SIDECAR, STATE, Host, Refused, parse_time, utc_now
from .stack import cut_off, not_backed_up, releases

TOLD_SECONDS = 600


def look_for_sidecar(host: Host) -> StackFacts:
    """What only the host can see of the stack; the sidecar's runs go by it."""
    facts, refused = stack_facts(host), ""
    tracker = [
        found["State"]["Status"]
        for found in stack_containers(host)
        if service_of(found) == "tracker"
    ]
    warnings = [f"the tracker is {status}" for status in tracker if status != "running"]
    try:
        warnings += check_deployment(host)
    except Refused as error:
        refused = str(error)
    if not tracker:
        refused = (
            f"there is no container of the service tracker in {host.deploy_dir}: what its "
            "database is nobody can tell"
        )
    return replace(facts, refused=refused, warnings=warnings)


def told_by_host() -> StackFacts:
    """The same, in the sidecar."""
    told = StackFacts.load()
    if told is None:
        raise Refused(f"{STATE / StackFacts.FILE} is missing: {StackFacts.REMEDY}")
    age = (datetime.datetime.now(datetime.timezone.utc) - parse_time(told.at)).total_seconds()
    if age <= TOLD_SECONDS:
        return told
    late = (
        f"cron on the host has told nothing of the stack for {age / 60:.0f} minutes: does it run?"
    )
    return replace(told, warnings=[*told.warnings, late])


def stack_facts(host: Host) -> StackFacts:
    """The images of the services, the compose files, and owner and mode of each directory of the
    deployment that a service mounts.
    """
    if IN_SIDECAR:
        return told_by_host()
    # Docker keeps the spelling with which the stack was started, which may lead through a link.
    deploy_dir = host.deploy_dir.resolve()
    containers = stack_containers(host)
    places = {".": deploy_dir, "storage": deploy_dir / "storage"}
    for found in containers:
        for mount in found["Mounts"]:
            source = Path(os.path.realpath(mount.get("Source", "")))  # a service can make a loop
            if source.is_relative_to(deploy_dir) and source.is_dir():
                places[str(source.relative_to(deploy_dir))] = source
    return StackFacts(
        at=utc_now(),
        images={service_of(found): found["Image"] for found in containers},
        directories={name: owner_of(place) for name, place in places.items()},
        refused="",
        warnings=[],
        releases=releases(containers),
        compose_files=inside(host, compose_files(host)),
    )


def inside(host: Host, files: list[Path]) -> list[str]:
    """Those of the files that are below the deploy directory, relative to it."""
    base = host.deploy_dir.resolve()
    found = [file.resolve() for file in files]
    return [str(file.relative_to(base)) for file in found if file.is_relative_to(base)]


def owner_of(path: Path) -> Owner:
    facts = path.stat()
    return Owner(facts.st_uid, facts.st_gid, f"{facts.st_mode & 0o7777:04o}")


def make_deploy_directory(host: Host, directories: Mapping[str, Owner]) -> None:
    """The deploy directory and its `storage`, as the run manifest has them."""
    for name in (".", "storage"):
        if (owner := directories.get(name)) is None:
            raise Refused(f"the run manifest does not say who owns {host.deploy_dir / name}")
        make_directory(host.deploy_dir / name, int(owner.mode, 8))
        os.chown(host.deploy_dir / name, owner.uid, owner.gid)


def tracker_database(host: Host, environment: Mapping[str, str]) -> dict[str, str]:
    """What the tracker's configuration says of its database: its environment first, then
    tracker.toml, as the tracker itself reads them. Both schemas of the configuration are known: 2
    has a `path`; 3 has a server's `host`, `port` and `database`. Empty if there is no database.
    """
    toml = environment.get("TORRUST_TRACKER_CONFIG_TOML", "")
    if not toml:
        toml = read_plain_file(host.deploy_dir / "storage/tracker/etc/tracker.toml")
    # A service writes this file. `\s*` would match line ends, too: hours for 1 MiB of them.
    section = re.search(
        r"^[ \t]*\[core\.database\][ \t]*(?:#[^\n]*)?\r?$(.*?)(?=^[ \t]*\[|\Z)",
        toml,
        re.MULTILINE | re.DOTALL,
    )
    found = {}
    for key in ("driver", "path", "host", "port", "database"):
        name = f"TORRUST_TRACKER_CONFIG_OVERRIDE_CORE__DATABASE__{key.upper()}"
        line = rf"""^[ \t]*{key}[ \t]*=[ \t]*(?:(["'])(.*?)\1|([0-9]+))"""
        match = re.search(line, section[1] if section else "", re.MULTILINE)
        written = (match[2] or match[3] or "") if match else ""
        if value := environment.get(name, "") or written:
            found[key] = value.lower() if key == "driver" else value
    return found


def read_plain_file(path: Path) -> str:
    """At most 1 MiB of a file that a service can replace; empty when it is no regular file.

    It is opened only when its kind is known: to open a device can do something.
    """
    try:
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ""
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            return file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(handle)


def check_tracker(host: Host, container: Mapping[str, Any]) -> list[str]:
    """The tracker's database is the one that backup.conf names, otherwise Refused; a warning when
    nothing says which one it is.
    """
    pairs = (pair.partition("=") for pair in container["Config"]["Env"] or [])
    database = tracker_database(host, {key: value for key, _, value in pairs})
    driver, uses, name = driver_of(host), used_database(database), database.get("driver", "")
    expected = driver.expected(host.backup_settings)
    if (name and name != driver.TRACKER_NAME) or (uses and uses != expected):
        raise Refused(
            f"the tracker uses {name} {uses}, backup.conf says {driver.TRACKER_NAME} {expected}: "
            "correct the environment JSON, generate and install again"
        )
    if name:
        mounts = {one.get("Destination", ""): one.get("Source", "") for one in container["Mounts"]}
        driver.check_mounts(host, mounts)
    if name and uses:
        return []
    return ["what database the tracker uses cannot be read from its environment or tracker.toml"]


def check_deployment(host: Host) -> list[str]:
    """What is not as it was installed. Refused when the tracker uses another database."""
    if IN_SIDECAR:
        told = told_by_host()
        if told.refused:
            raise Refused(told.refused)
        return told.warnings
    containers = stack_containers(host)
    trackers = [one for one in containers if service_of(one) == "tracker"]
    warnings = [text for one in trackers for text in check_tracker(host, one)]
    listed = (host.deploy_dir / "backup/backup-paths.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in listed if line.strip() and not line.startswith("#")]
    warnings += not_backed_up(host, containers, lines)
    files = compose_files(host)
    if len(inside(host, files)) < len(files):
        warnings.append(
            f"the stack has compose files outside of {host.deploy_dir}, which are in no backup: "
            + ", ".join(map(str, files))
        )
    return warnings + (cut_off(containers) if host.quiesce == "stop" else [])
