"""`install` and `uninstall`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from .cron import MISSING, REMEDY, cron_runs
from .destination import claim_destination
from .docker import check_docker, docker, make_image, remove_images, stack_containers
from .files import make_directory, put, remove
from .host import BUNDLE, CONFIG, ROOT, STATE, Host, Refused, config_path
from .log import LOG, say
from .runs import newest_success, read_runs
from .secrets import named_secrets, put_secrets, read_secrets, require_secrets
from .sidecar import bring_up_sidecar, remove_sidecar
from .state import lock

WINDOW_ONLY = "host/maintenance-backup.sh"
LIBRARY = ROOT / "usr/local/lib/tracker-backup"
PACKAGE = "backup/tracker_backup/"


def read_bundle(bundle: Path) -> dict[str, bytes]:
    """Every file of the bundle, checked against its manifest; a torn upload is refused, strays are
    removed.
    """
    try:
        listed = json.loads((bundle / "manifest.json").read_bytes())["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{bundle}/manifest.json cannot be read: upload the bundle again") from error
    files = {}
    for name, facts in listed:
        content = (bundle / name).read_bytes() if (bundle / name).is_file() else b""
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise Refused(f"{bundle / name} is not as manifest.json says: upload the bundle again")
        files[name] = content
    for stray in [
        path
        for path in bundle.rglob("*")
        if path.is_file() and str(path.relative_to(bundle)) not in {*files, "manifest.json"}
    ]:
        stray.unlink()
        say(f"changed: {stray} (removed)")
    return files


def placed(host: Host, names: Iterable[str]) -> list[tuple[str, Path, int]]:
    """(file of the bundle, path on the host, mode), in the order in which they are put there.

    The schedule comes last: nothing runs before everything is in its place. Of `names`, the
    bundle's files, those of the package are taken. The package goes to two places: the host's
    program and the image are made of it.
    """
    package = [name for name in names if name.startswith(PACKAGE)]
    return [
        *((name, host.deploy_dir / name, 0o644) for name in package),
        *((name, LIBRARY / name.removeprefix("backup/"), 0o644) for name in package),
        *((name, path, mode) for name, (path, mode) in fixed_places(host).items()),
    ]


def fixed_places(host: Host) -> dict[str, tuple[Path, int]]:
    """(path on the host, mode) of each file of the bundle that is not in the package."""
    deploy = host.deploy_dir
    return {
        "docker-compose.backup.yml": (deploy / "docker-compose.backup.yml", 0o644),
        "backup/Dockerfile": (deploy / "backup/Dockerfile", 0o644),
        "backup/.dockerignore": (deploy / "backup/.dockerignore", 0o644),
        "backup/backup.sh": (deploy / "backup/backup.sh", 0o755),
        "backup/backup.py": (deploy / "backup/backup.py", 0o644),
        "backup/backup.conf": (deploy / "backup/backup.conf", 0o644),
        "backup/backup-paths.txt": (deploy / "backup/backup-paths.txt", 0o644),
        "host/tracker-backup.conf": (CONFIG, 0o644),
        "host/tracker-backup": (ROOT / "usr/local/bin/tracker-backup", 0o755),
        "host/maintenance-backup.sh": (ROOT / "usr/local/bin/maintenance-backup.sh", 0o755),
        "host/tracker-backup.logrotate": (ROOT / "etc/logrotate.d/tracker-backup", 0o644),
        "host/tracker-backup.cron": (ROOT / "etc/cron.d/tracker-backup", 0o644),
    }


def command_install(arguments: argparse.Namespace) -> int:
    """Puts the bundle that this program lies in into its places; again, when it is there, changes
    nothing.
    """
    files = read_bundle(BUNDLE)
    host = Host.read(BUNDLE / "host/tracker-backup.conf")
    secrets = read_secrets()
    needed = named_secrets(BUNDLE / "backup/backup.conf")
    require_secrets(host, needed, secrets)
    check_docker(host, BUNDLE / "docker-compose.backup.yml")
    if not cron_runs():
        raise Refused(f"{MISSING}: {REMEDY}, then install again; nothing was changed")
    places = placed(host, files)
    others = {WINDOW_ONLY} if host.strategy == "sidecar" else set()
    with lock():
        foreign = not CONFIG.exists()
        make_image(host, BUNDLE / "backup", arguments.rebuild_image)
        claim_destination(host, arguments.take_over_destination)
        make_directory(host.staging, 0o700)
        make_directory(host.deploy_dir / "backup", 0o755)
        packages = [LIBRARY / "tracker_backup", host.deploy_dir / "backup/tracker_backup"]
        make_directory(LIBRARY, 0o755)
        folders = [package / name for package in packages for name in ("", "drivers", "worker")]
        for folder in folders:
            make_directory(folder, 0o755)
        if host.strategy != "sidecar":
            remove_sidecar(host)
        for name, path, mode in places:
            if name in others:
                continue
            if name == "host/tracker-backup.conf":
                put_secrets(host, needed, secrets)
            if foreign and path.exists():
                say(f"info: {path} was there before and is replaced")
            put(path, files[name], mode)
        ours = {path for name, path, _mode in places if name not in others}
        there = {path for _name, path, _mode in places} | {
            path for package in packages for path in package.rglob("*")
        }
        there |= set(LIBRARY.glob("*.sh"))  # of an older bundle
        for stray in sorted(there - ours - set(folders)):
            remove(stray)
        if host.strategy == "sidecar":
            bring_up_sidecar(host)
        if not LOG.exists():
            put(LOG, b"", 0o640)
        remove_images(keep=host.image)
    old = host.deploy_dir / "storage/backup/etc/backup.conf"
    if old.exists():
        say(
            f"warning: {old} is of an older backup and may hold a password that every user "
            "can read: remove it"
        )
    if newest_success(read_runs(host)) is None:
        say("info: no backup yet")
    return 0


def command_uninstall(_: argparse.Namespace) -> int:
    """Removes everything of ours but the backups; also after an installation that ended early."""
    host = Host.read(config_path())
    with lock():
        if host.strategy == "sidecar":
            remove_sidecar(host)
        for _name, path, _mode in reversed(placed(host, ())):
            remove(path)
        package = host.deploy_dir / "backup/tracker_backup"
        for directory in (LIBRARY, package, host.deploy_dir / "backup/secrets", host.staging):
            remove(directory)
        with contextlib.suppress(OSError):  # not empty: somebody else's files
            (host.deploy_dir / "backup").rmdir()
        for path in LOG.parent.glob(LOG.name + "*"):
            remove(path)
        try:
            remove_images(keep="")
            for project in {
                found["Config"]["Labels"]["com.docker.compose.project"]
                for found in stack_containers(host)
            }:
                ours = (
                    "label=com.docker.compose.network=backup_network",
                    f"label=com.docker.compose.project={project}",
                )
                for network in docker(
                    "network", "ls", "--quiet", "--filter", ours[0], "--filter", ours[1]
                ).split():
                    docker("network", "rm", network)
        except Refused as error:
            say(f"warning: {error}")
        remove(STATE)
    say(f"info: the backups in {host.destination} were left alone")
    return 0
