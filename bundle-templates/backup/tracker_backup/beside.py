"""`restore --to DIR --name NAME`: a copy of the deployment beside the one that runs.

Writes below DIR alone. The copy is a Compose project of its own. Nothing of it is started but its
database server, for the import, and that is stopped again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .deployment import make_deploy_directory
from .docker import BUILD_SECONDS, docker, words
from .documents import RunManifest
from .drivers import driver_of
from .files import put, remove_tree
from .host import Host, Refused
from .jobs import ready_image
from .log import say
from .state import lock
from .swap import listed, look, make_directories, prepare, swap
from .verify import ready_to_swap
from .workshop import dumps, workshop

OVERRIDE = "docker-compose.beside.yml"
PROJECT = "label=com.docker.compose.project"


@dataclass(frozen=True)
class Copy:
    """Where the copy is, and the name of its Compose project."""

    host: Host  # with the copy's directory in the place of the deploy directory
    name: str
    compose_files: list[str]  # below that directory

    @property
    def files(self) -> list[str]:
        directory = self.host.deploy_dir
        return [
            *("--project-name", self.name, "--project-directory", str(directory)),
            *(word for name in self.compose_files for word in ("--file", str(directory / name))),
        ]

    @property
    def command(self) -> list[str]:
        return ["compose", *self.files, "--file", str(self.host.deploy_dir / OVERRIDE)]


def planned(host: Host, run: RunManifest, kinds: set[str], to: str, name: str) -> Copy:
    """Refuses what would touch the deployment that runs, and says what is left to the operator."""
    place = Path(to)
    if not re.fullmatch("[a-z0-9][a-z0-9_-]*", name):
        raise Refused(f"--name '{name}' is no name of a Compose project: a-z, 0-9, _ and -", 2)
    if not place.is_absolute() or place.is_symlink() or ".." in place.parts:
        raise Refused(f"--to {to}: give an absolute path without links", 2)
    for other in (host.deploy_dir, host.destination):
        real, theirs = place.resolve(), other.resolve()
        if real.is_relative_to(theirs) or theirs.is_relative_to(real):
            raise Refused(f"--to {to} and {other} overlap: choose another directory", 2)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise Refused(f"{to} is not empty; nothing is replaced there", 2)
    if docker(*words("ps --all --quiet --filter"), f"{PROJECT}={name}").strip():
        raise Refused(f"there are containers of a Compose project {name} already", 2)
    files = run.compose_files or ["docker-compose.yml"]  # an older run had no other
    if "config" not in kinds or not {*files} <= {*run.paths}:
        raise Refused("a copy needs the configuration: leave out --only database", 2)
    driver = driver_of(host)
    if "database" in kinds and not driver.target(host) and not driver.service(host):
        raise Refused(
            "the database is on an external server, which the deployment that runs uses: restore "
            "with --only config, and give the copy a database of its own",
            2,
        )
    say(
        f"the copy publishes the same ports as the deployment that runs: change them in "
        f"{place / files[0]} before you start it; nothing is started now"
    )
    return Copy(replace(host, deploy_dir=place), name, files)


def restore_beside(host: Host, copy: Copy, run: RunManifest, kinds: set[str]) -> None:
    with lock(), removed_if_it_fails(copy):
        ready_image(host)
        make_deploy_directory(copy.host, run.directories)
        own = copy.host.deploy_dir / "backup"
        for directory in (copy.host.staging, own):  # for this work alone
            directory.mkdir(mode=0o700)
        for name in ("backup.conf", "backup-paths.txt"):
            (own / name).write_bytes((host.configuration / name).read_bytes())
        with workshop(copy.host, "restore") as work:
            place_files(copy, run, kinds, work)
            write_override(host, copy)
            if "database" in kinds and not driver_of(copy.host).target(copy.host):
                import_database(copy, run, work)
        for directory in (copy.host.staging, own):
            remove_tree(directory)
    say(f"changed: restored {run.id} into {copy.host.deploy_dir}, as the project {copy.name}")
    say(f"change its published ports, then start it: docker {' '.join(copy.command)} up --detach")


@contextlib.contextmanager
def removed_if_it_fails(copy: Copy) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for left in docker(*words("ps --all --quiet --filter"), f"{PROJECT}={copy.name}").split():
            docker(*words("rm --force --volumes"), left)
        remove_tree(copy.host.deploy_dir)
        raise


def place_files(copy: Copy, run: RunManifest, kinds: set[str], work: Path) -> None:
    moves = prepare(copy.host, work, ready_to_swap(copy.host, run, kinds, work))
    directories = [path for path, kind in listed(copy.host).items() if kind == "dir"]
    moves, missing = look(copy.host, moves, directories)
    make_directories(copy.host, work / "new", missing)
    swap(copy.host, moves)


def write_override(host: Host, copy: Copy) -> None:
    """Names of containers, networks and volumes that the compose file fixes get the project's name,
    because what runs has the others.
    """
    config = json.loads(docker("compose", *copy.files, *words("config --format json")))
    override: dict[str, Any] = {"services": {}}
    for service, facts in config["services"].items():
        if "container_name" in facts:
            override["services"][service] = {"container_name": f"{copy.name}-{service}"}
        for mount in facts.get("volumes", ()):
            source = Path(os.path.realpath(mount.get("source") or "/"))
            if mount.get("type") == "volume":  # its source is a name
                continue
            if source.is_relative_to(host.deploy_dir.resolve()):
                raise Refused(
                    f"the service {service} mounts {mount['source']}, of the deployment that runs"
                )
        for port in facts.get("ports", ()):
            say(f"  {service} publishes {port.get('published', '')}/{port.get('protocol', '')}")
    for kind in ("networks", "volumes"):
        for key, facts in config.get(kind, {}).items():
            if facts.get("external"):
                say(f"warning: {key} of {kind} is external: the copy shares it with what runs")
            elif facts.get("name") != f"{copy.name}_{key}":
                override.setdefault(kind, {})[key] = {"name": f"{copy.name}_{key}"}
    put(copy.host.deploy_dir / OVERRIDE, json.dumps(override, indent=2).encode() + b"\n", 0o644)


def import_database(copy: Copy, run: RunManifest, work: Path) -> None:
    """Into the copy's own server, which has the passwords of the restored `.env`."""
    driver = driver_of(copy.host)
    service = driver.service(copy.host)
    docker(*copy.command, *words("up --detach --no-deps"), service, seconds=BUILD_SECONDS)
    driver.replace(copy.host, work, dumps(work), run, lambda: None)
    docker(*copy.command, "stop", service, seconds=BUILD_SECONDS)
