"""`install` and `uninstall`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import files
from .checks import examine, show_findings
from .cron import MISSING, REMEDY, cron_runs
from .destination import claim_destination
from .docker import (
    WORK_SECONDS,
    check_docker,
    make_image,
    remove_build_cache,
    remove_images,
    remove_networks,
    reported,
)
from .files import make_directory, partial_of, put, remove, remove_tree
from .host import BUNDLE, CONFIG, RECORD, ROOT, STATE, Host, Refused, read_settings
from .log import LOG, say
from .monitoring import put_monitoring, remove_monitoring
from .runs import newest_success, read_runs
from .secrets import named_secrets, put_secrets, read_secrets, require_secrets
from .sidecar import bring_up_sidecar, prepare_sidecar, remove_sidecar
from .state import lock

WINDOW_ONLY = "host/maintenance-backup.sh"
BIN = ROOT / "usr/local/bin"
LIBRARY = ROOT / "usr/local/lib/tracker-backup"
PACKAGE = "backup/tracker_backup/"
FORMER = ("lib.sh", "restic.sh", "restore.sh")  # of older bundles, in the image's context
PATH_OF_CRON = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_TEST = "import sys; sys.exit(sys.version_info < (3, 10))"
UNFINISHED = {  # by file of the state: who finishes what died
    "window": ("maintenance-backup.sh", "--recover"),
    "restore.json": ("tracker-backup", "rollback"),
}
AGAIN = "upload the bundle again; if that does not help, generate it again"


def read_bundle(bundle: Path) -> dict[str, bytes]:
    """Every file of the bundle, compared with its manifest; one that is torn is refused."""
    manifest = bundle / "manifest.json"
    try:
        content = manifest.read_bytes()
        listed = {name: facts["sha256"] for name, facts in json.loads(content)["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{manifest} cannot be read: {AGAIN}") from error
    found = {}
    for name, digest in listed.items():
        found[name] = (bundle / name).read_bytes() if (bundle / name).is_file() else b""
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise Refused(f"{bundle / name} is not as manifest.json says: {AGAIN}")
    return found | {manifest.name: content}


def version(bundle: Path) -> tuple[int, ...]:
    """Of the generator that wrote the bundle; empty if the bundle does not say."""
    try:
        told = str(json.loads((bundle / "manifest.json").read_bytes())["generator"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()
    numbers = re.fullmatch(r"gen-backup-bundle (\d{1,9})\.(\d{1,9})\.(\d{1,9})\D?.*", told)
    return tuple(map(int, numbers.groups())) if numbers else ()


def installed_settings() -> dict[str, str]:
    """The configuration of the host; of the bundle that was installed last, if the former is
    missing or damaged.
    """
    for path in (CONFIG, RECORD / "host/tracker-backup.conf"):
        with contextlib.suppress(Refused):
            return read_settings(path)
    return {}


def refuse_other_installation(host: Host) -> None:
    """A bundle goes over an installation of its own environment and deploy directory, and over no
    newer one.
    """
    old = installed_settings()
    there = (old.get("ENVIRONMENT", host.environment), old.get("DEPLOY_DIR", host.deploy_dir))
    if (there[0], Path(there[1]).resolve()) != (host.environment, host.deploy_dir.resolve()):
        raise Refused(
            f"this host has the backup of the environment {there[0]!r} in {there[1]}, and the "
            f"bundle is for {host.environment!r} in {host.deploy_dir}; nothing was changed. To go "
            "over to this one, run `tracker-backup uninstall` on the host, which leaves the "
            "backups, then install again"
        )
    new, installed = version(BUNDLE), version(RECORD)
    if new and new < installed:
        names = (".".join(map(str, numbers)) for numbers in (installed, new))
        raise Refused(
            "gen-backup-bundle {} wrote what is installed here, and {} wrote this bundle, which "
            "may not read what the newer one wrote; nothing was changed. Generate the bundle with "
            "the newer version, then install again".format(*names)
        )


def places(host: Host, names: Iterable[str]) -> dict[Path, tuple[str, int]]:
    """(file of the bundle, mode) by path on the host, in the order in which they are put there.

    The schedule comes last: nothing runs before everything is in its place. Of `names`, the
    bundle's files, those of the package are taken. The package goes to two places: the host's
    program and the image are made of it.
    """
    deploy, package = host.deploy_dir, [name for name in names if name.startswith(PACKAGE)]
    context = ("Dockerfile", ".dockerignore", "backup.py", "backup.conf", "backup-paths.txt")
    return {
        **{deploy / name: (name, 0o644) for name in package},
        **{LIBRARY / name.removeprefix("backup/"): (name, 0o644) for name in package},
        deploy / "docker-compose.backup.yml": ("docker-compose.backup.yml", 0o644),
        **{deploy / "backup" / name: (f"backup/{name}", 0o644) for name in context},
        deploy / "backup/backup.sh": ("backup/backup.sh", 0o755),
        CONFIG: ("host/tracker-backup.conf", 0o644),
        BIN / "tracker-backup": ("host/tracker-backup", 0o755),
        BIN / "maintenance-backup.sh": (WINDOW_ONLY, 0o755),
        ROOT / "etc/logrotate.d/tracker-backup": ("host/tracker-backup.logrotate", 0o644),
        ROOT / "etc/cron.d/tracker-backup": ("host/tracker-backup.cron", 0o644),
    }


def check_host(host: Host, wanted: Iterable[Path]) -> None:
    """What the backup needs of the host, beside Docker."""
    if not cron_runs():
        raise Refused(f"{MISSING}: {REMEDY}, then install again; nothing was changed")
    try:
        command = ["python3", "-c", PYTHON_TEST]
        fits = subprocess.run(command, env={"PATH": PATH_OF_CRON}, check=False).returncode == 0
    except OSError:
        fits = False
    if not fits:
        raise Refused(
            f"cron and sudo find no python3 of version 3.10 or newer in {PATH_OF_CRON}: "
            "apt-get install python3, then install again; nothing was changed"
        )
    ours = (LIBRARY, host.deploy_dir)
    for path in sorted({path.parent for path in wanted}):
        directory = next(one for one in (path, *path.parents) if one.exists())
        if path != directory and not any(path.is_relative_to(one) for one in ours):
            raise Refused(f"there is no directory {path}: make it; nothing was changed", 2)
        if not os.access(directory, os.W_OK):
            raise Refused(
                f"{directory} cannot be written, is its file system mounted read-only? Make it "
                "writable, also for later installations; nothing was changed"
            )


def finish_dead_work() -> None:
    """Lets the installed program undo what it left when it died: it knows its own files. Whatever
    it cannot undo, the lock refuses.
    """
    for name, (program, word) in UNFINISHED.items():
        if (STATE / name).exists() and (BIN / program).exists():
            say(f"info: {STATE / name} is there, so the installed {program} {word} comes first")
            subprocess.run([BIN / program, word], timeout=WORK_SECONDS, check=False)


def keep_bundle(bundle: dict[str, bytes]) -> None:
    """A copy of the bundle says what is installed here, also if the installation dies."""
    kept = {
        str(path.relative_to(RECORD)): path.read_bytes()
        for path in RECORD.rglob("*")
        if path.is_file()
    }
    if RECORD.is_symlink() or kept != bundle:
        partial = partial_of(RECORD)
        for old in (partial, RECORD):
            remove_tree(old)
        for name, content in bundle.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        partial.rename(RECORD)


def command_install(arguments: argparse.Namespace) -> int:
    """Puts the bundle that this program lies in into its places; again, when it is there, changes
    nothing. With --check it only says what it would change.
    """
    files.checking, files.showing = arguments.check, arguments.diff
    bundle = read_bundle(BUNDLE)
    host = Host.read(BUNDLE / "host/tracker-backup.conf")
    wanted = places(host, bundle)
    if missing := [name for name, _mode in wanted.values() if name not in bundle]:
        raise Refused(f"{BUNDLE}/manifest.json does not name {', '.join(missing)}: {AGAIN}")
    refuse_other_installation(host)
    secrets = read_secrets()
    require_secrets(host, named_secrets(BUNDLE / "backup/backup.conf"), secrets)
    check_docker(host, BUNDLE / "docker-compose.backup.yml")
    check_host(host, wanted)
    if arguments.check:
        make_ready(host, arguments)
        put_everything(host, bundle, secrets, arguments)
        return 0
    finish_dead_work()
    with lock():
        # What can fail easily comes before the record of what is installed changes.
        make_ready(host, arguments)
        keep_bundle(bundle)
        put_everything(host, bundle, secrets, arguments)
    old = host.deploy_dir / "storage/backup/etc/backup.conf"
    if old.exists():
        say(
            f"warning: {old} is of an older backup and may hold a password that every user "
            "can read: remove it"
        )
    if newest_success(read_runs(host)) is None:
        say("info: no backup yet")
    show_findings(examine(host))  # the first backup, or `doctor`, shows the rest
    return 0


def make_ready(host: Host, arguments: argparse.Namespace) -> None:
    make_image(host, BUNDLE / "backup", arguments.rebuild_image)
    claim_destination(host, arguments.take_over_destination)


def put_everything(
    host: Host, bundle: dict[str, bytes], secrets: dict[str, str], arguments: argparse.Namespace
) -> None:
    wanted = places(host, bundle)
    if host.strategy == "sidecar":
        wanted = {path: what for path, what in wanted.items() if what[0] != WINDOW_ONLY}
    foreign = not CONFIG.exists()
    before = [image for key, image in installed_settings().items() if key == "IMAGE"]
    old_metrics = installed_settings().get("METRICS_DIRECTORY", "")
    make_directory(host.staging, 0o700)
    for directory in folders(host):
        make_directory(directory, 0o755)
    if host.strategy != "sidecar":
        remove_sidecar(host)
    put_secrets(host, named_secrets(BUNDLE / "backup/backup.conf"), secrets)
    if not LOG.exists():  # before cron's shell makes it, for everybody to read
        put(LOG, b"", 0o640)
    unsynced = False  # the package has many files, so they go to disk together, before the rest
    for path, (name, mode) in wanted.items():
        if foreign and path.exists():
            say(f"info: {path} was there before and is replaced")
        together = name.startswith(PACKAGE)
        if unsynced and not together and not arguments.check:
            os.sync()
        changed = put(path, bundle[name], mode, sync=not together)
        unsynced = together and (changed or unsynced)
    for stray in strays(host, wanted):
        remove(stray)
    if "METRICS_DIRECTORY" in read_settings(BUNDLE / "host/tracker-backup.conf"):
        put_monitoring(host, bundle)
    elif not arguments.check:
        remove_monitoring(host, old_metrics)
    if host.strategy == "sidecar":
        prepare_sidecar(host, bundle["docker-compose.backup.yml"])
        if not arguments.check:
            bring_up_sidecar(host)
    remove_images(host.image, *before)


def folders(host: Host) -> list[Path]:
    """The directories of the image's context and of the host's program; the first is not ours
    alone.
    """
    packages = (LIBRARY / "tracker_backup", host.deploy_dir / "backup/tracker_backup")
    inside = (package / name for package in packages for name in ("", "drivers", "worker"))
    return [host.deploy_dir / "backup", LIBRARY, *inside]


def strays(host: Host, wanted: Iterable[Path]) -> Iterator[Path]:
    """What other bundles have put here."""
    shared, *ours = folders(host)
    kept = {*wanted, *ours}
    for directory in ours:
        yield from sorted({*(directory.iterdir() if directory.is_dir() else ())} - kept)
    yield from (shared / name for name in FORMER)
    if (script := BIN / "maintenance-backup.sh") not in kept:
        yield script


def command_uninstall(_: argparse.Namespace) -> int:
    """Removes everything of ours but the backups; also after an installation that ended early."""
    files.checking = files.showing = False
    hosts, directory = installed_hosts(), installed_settings().get("METRICS_DIRECTORY", "")
    if not any(
        path.exists() for path in (STATE, *(one for host in hosts for one in places(host, ())))
    ):
        say("info: the backup is not installed on this host; nothing was changed")
        return 0
    with lock():
        for host in hosts:
            remove_monitoring(host, directory)
            for path in reversed(places(host, ())):  # the schedule first
                remove(path)
                remove(partial_of(path))
            with reported():
                remove_sidecar(host)
            shared, *own = folders(host)
            names = ("secrets", "sidecar.env", *FORMER)
            for path in (*own, host.staging, *(shared / name for name in names)):
                remove(path)
            with contextlib.suppress(OSError):  # not empty: somebody else's files
                shared.rmdir()
            with reported():
                remove_networks(host)
        for path in LOG.parent.glob(LOG.name + "*"):
            remove(path)
        with reported():
            remove_images("", *(host.image for host in hosts))
            remove_build_cache()
        remove(STATE)
    for host in hosts:
        say(f"info: the backups in {host.destination} were left alone")
    return 0


def installed_hosts() -> list[Host]:
    """What is installed here, by deploy directory: from the configuration, and from the bundle that
    was installed last. Without both, this program's own bundle says it.
    """
    own = BUNDLE / "host/tracker-backup.conf"
    if own.exists():
        refuse_other_installation(Host.read(own))
    hosts = dict[Path, Host]()
    for path in (CONFIG, RECORD / "host/tracker-backup.conf", own):
        if path != own or not hosts:
            with contextlib.suppress(Refused):  # damaged, or not there
                host = Host.read(path)
                hosts[host.deploy_dir] = host
    if not hosts:
        raise Refused(
            f"nothing says which deploy directory the backup is installed in: neither {CONFIG} nor "
            f"{RECORD}. Run uninstall-backup.yml of the bundle, which says it",
            2,
        )
    return list(hosts.values())
