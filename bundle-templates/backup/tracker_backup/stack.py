"""What the stack's containers say: their images, and what of them is in no backup."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .docker import BUILD_SECONDS, docker, image_id, service_of, words
from .documents import Release
from .host import Host, Refused
from .log import say

Container = Mapping[str, Any]  # as `docker inspect` shows it
VERSION = "org.opencontainers.image.version"
# What containers commonly mount of the host, and what is no data of theirs.
OF_THE_HOST = ("/proc", "/sys", "/dev", "/run", "/var/run", "/usr", "/lib", "/etc")
ANONYMOUS = 64  # characters of the name of a volume that nobody named
OURS = "backup"  # begins the names of services that make backups


# ---------------------------------------------------------------- images


def releases(containers: Collection[Container]) -> dict[str, Release]:
    """By service, the name of its image, and what a registry calls the one that it has."""
    found = {}
    for one in containers:
        name, id_ = one["Config"]["Image"], one["Image"]
        try:
            image = json.loads(docker(*words("image inspect --format"), "{{json .}}", id_))
        except (Refused, ValueError):  # an image that was removed while a container of it is there
            continue
        digests = image.get("RepoDigests") or []
        mine = [digest for digest in digests if repository(digest) == repository(name)]
        version = (image.get("Config", {}).get("Labels") or {}).get(VERSION, "")
        found[service_of(one)] = Release(name, (mine or digests or [""])[0], version)
    return found


def repository(image: str) -> str:
    """An image's name without its tag and digest, and without the registry that is the default."""
    name = image.partition("@")[0]
    parent, slash, last = name.rpartition("/")
    name = parent + slash + last.partition(":")[0]
    return name.removeprefix("docker.io/").removeprefix("library/")


def use_recorded_images(recorded: Mapping[str, Release]) -> None:
    """For an empty machine: what a tag of the compose file means there from now on is the image
    that the stack had when it was backed up. Where that cannot be, a warning says so.
    """
    for service, release in recorded.items():
        if "@" in release.name or service.startswith(OURS):  # a digest means one image for ever
            continue
        if not release.digest:
            say(f"warning: no registry knows the image that {service} had: {release.name} is used")
            continue
        today, version = pulled(release.name)
        had, old = pulled(release.digest)
        if not had:
            say(
                f"warning: {release.digest}, which {service} had, cannot be pulled: "
                f"{release.name} is used as it is {'here' if today else 'in its registry'}"
            )
            continue
        docker("tag", release.digest, release.name)
        say(f"changed: image {release.name} (as {service} had it, {release.digest})")
        if today not in ("", had):
            say(
                f"warning: {release.name} means another image today ({shown(today, version)}) than "
                f"the one that is restored ({shown(had, old or release.version)}). "
                "To take today's: --images current"
            )
            if major(version) != major(old or release.version):
                say("warning: they differ in the major version: a newer one may not go back")


def pulled(image: str) -> tuple[str, str]:
    """Id and version of an image, pulled if its registry answers; empty if it is not there."""
    try:
        docker("pull", "--quiet", image, seconds=BUILD_SECONDS)
    except Refused as error:
        say(f"warning: {error}")
    if not (found := image_id(image)):
        return "", ""
    template = f'{{{{index .Config.Labels "{VERSION}"}}}}'
    return found, docker(*words("image inspect --format"), template, image).strip()


def shown(image: str, version: str) -> str:
    return f"{version}, {image[:19]}" if version else image[:19]


def major(version: str) -> str:
    return version.lstrip("v").partition(".")[0]


# ---------------------------------------------------------------- what no backup has


def not_backed_up(host: Host, containers: Collection[Container], lines: list[str]) -> list[str]:
    """A warning for each service with a mount that no line of the path list covers."""
    paths = [line.lstrip("?").rpartition(":")[2].removeprefix("/data/") for line in lines]
    warnings = []
    for one in containers:
        service = service_of(one)
        if service == OURS or service.startswith(OURS + "-"):
            continue
        lacking = [shown for mount in one["Mounts"] if (shown := uncovered(host, mount, paths))]
        if lacking:
            warnings.append(
                f"the service {service} mounts {', '.join(lacking)}, and nothing of it is in the "
                "backup: add the service to the environment JSON, or the path to "
                "backup.extra_paths"
            )
    return warnings


def uncovered(host: Host, mount: Mapping[str, Any], paths: list[str]) -> str:
    """What a mount is called if no path covers it; empty if one does, or if it is no data."""
    if mount.get("Type") == "volume":
        name = str(mount.get("Name", ""))
        return "" if len(name) == ANONYMOUS else f"the volume {name}"
    if mount.get("Type") != "bind":
        return ""
    source = Path(os.path.realpath(mount.get("Source", "")))  # a service can make a loop
    base = host.deploy_dir.resolve()
    if not source.is_relative_to(base):
        system = str(source).startswith(tuple(f"{place}/" for place in OF_THE_HOST))
        is_data = (source.is_dir() or source.is_file()) and not system
        return f"{source}, outside of the deploy directory," if is_data else ""
    inside = source.relative_to(base)
    known = (Path(path) for path in paths)
    covers = any(path.is_relative_to(inside) or inside.is_relative_to(path) for path in known)
    return "" if covers else f"./{inside}"


def cut_off(containers: Collection[Container]) -> list[str]:
    """A warning for each service in the network of the tracker, which a stop takes down."""
    trackers = {f"container:{one['Id']}" for one in containers if service_of(one) == "tracker"}
    return [
        f"the service {service_of(one)} uses the network of the tracker (network_mode): while the "
        "tracker is stopped, and until you restart it afterwards, it has none. Set backup.quiesce "
        "to 'pause'"
        for one in containers
        if one.get("HostConfig", {}).get("NetworkMode", "") in trackers
    ]
