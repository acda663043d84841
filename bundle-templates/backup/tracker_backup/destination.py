"""Whose backups the destination holds."""

from __future__ import annotations

import json

from .files import make_directory, write_durably
from .host import ROOT, Host, Refused
from .log import say

IDENTITY = ".tracker-backup.json"


def machine_id() -> str:
    return (ROOT / "etc/machine-id").read_text(encoding="ascii").strip()


def check_destination(host: Host) -> None:
    """The destination is ours: neither an empty mount point, nor another environment's, nor another
    machine's.
    """
    path = host.destination / IDENTITY
    try:
        owner = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Refused(
            f"{path} is missing: is the destination mounted? When it is new, install the "
            "bundle again"
        ) from error
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read: {error}") from error
    if not isinstance(owner, dict):
        raise Refused(
            f"{path} does not say whose backups these are: restore it from another copy, or "
            "remove it and install again"
        )
    if owner.get("environment") != host.environment:
        raise Refused(
            f"{host.destination} holds the backups of the environment "
            f"{owner.get('environment')!r}, not of {host.environment!r}"
        )
    if owner.get("machine_id") != machine_id():
        raise Refused(
            f"{host.destination} belongs to another machine of this environment; when that "
            "machine is gone, "
            "take it over: ansible-playbook install-backup.yml -e take_over_destination=yes"
        )


def check_restorable(host: Host) -> None:
    """As `check_destination`; but another machine's of this environment will do: restoring takes it
    over.
    """
    try:
        check_destination(host)
    except Refused:
        if identity_environment(host) != host.environment:
            raise


def identity_environment(host: Host) -> str:
    """The environment whose backups the destination holds; empty when it does not say."""
    try:
        return str(json.loads((host.destination / IDENTITY).read_bytes())["environment"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def claim_destination(host: Host, take_over: bool) -> None:
    """Makes the destination's directories and its identity; refuses one that is somebody else's."""
    if host.destination.resolve() == (host.deploy_dir / "storage/backup").resolve():
        make_directory(host.destination, 0o700)
    elif not host.destination.is_dir():
        raise Refused(
            f"the destination {host.destination} is not there: mount it or create it, then "
            "install again",
            2,
        )
    identity = host.destination / IDENTITY
    if identity.exists():
        try:
            check_destination(host)
        except Refused:
            if not take_over or identity_environment(host) != host.environment:
                raise
            say(f"changed: {identity} (taken over from another machine)")
            identity.unlink()
    if not identity.exists():
        owner = {"environment": host.environment, "machine_id": machine_id()}
        write_durably(identity, json.dumps(owner, indent=2) + "\n")
        say(f"changed: {identity}")
    for name in ("sqlite", "mysql", "config", "runs"):
        make_directory(host.destination / name, 0o700)
