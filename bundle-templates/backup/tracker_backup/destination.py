"""Whose backups the destination holds."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from .docker import end, start
from .documents import SUBDIRECTORIES, DestinationIdentity
from .files import change, make_directory, write_durably
from .host import ROOT, Host, Refused

IDENTITY = ".tracker-backup.json"
PROBE_SECONDS = float(os.environ.get("TRACKER_BACKUP_PROBE_SECONDS", "60"))


def machine_id() -> str:
    return (ROOT / "etc/machine-id").read_text(encoding="ascii").strip()


def check_restorable(host: Host) -> DestinationIdentity:
    """The destination is this environment's; it can be another machine's, which a restore takes
    over.
    """
    path = host.destination / IDENTITY
    try:
        owner = DestinationIdentity.read(path)
    except FileNotFoundError as error:
        raise Refused(
            f"{path} is missing: is the destination mounted? When it is new, install the "
            "bundle again"
        ) from error
    if owner.environment != host.environment:
        raise Refused(
            f"{host.destination} holds the backups of the environment "
            f"{owner.environment!r}, not of {host.environment!r}"
        )
    return owner


def check_destination(host: Host) -> None:
    """The same, and it is this machine's, and hidden from the reader."""
    host.require_masked()
    if check_restorable(host).machine_id != machine_id():
        raise Refused(
            f"{host.destination} belongs to another machine of this environment; when that "
            "machine is gone, "
            "take it over: ansible-playbook install-backup.yml -e take_over_destination=yes"
        )


def require_destination(host: Host) -> None:
    """The same; a file system that hangs is refused, too."""
    failure_of(host.destination, "head", "--bytes=1", "--", str(host.destination / IDENTITY))
    check_destination(host)


def failure_of(directory: Path, *command: str) -> str:
    """Why a program failed that uses a directory; empty if it did not. A server's file system can
    hang, and then only another process can be left alone. Raises Refused.
    """
    with tempfile.TemporaryFile() as message:
        probe = start([*command], stdout=subprocess.DEVNULL, stderr=message)
        try:
            probe.wait(PROBE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"{directory} does not answer within {PROBE_SECONDS:.0f} s") from error
        finally:
            end(probe)
        message.seek(0)
        return message.read(4096).decode(errors="replace").strip() if probe.returncode else ""


def claim_destination(host: Host, take_over: bool) -> None:
    """Makes the destination's directories and its identity; refuses one that is somebody else's."""
    host.require_masked()
    if host.destination.resolve() == (host.deploy_dir / "storage/backup").resolve():
        make_directory(host.destination, 0o700)
    elif not host.destination.is_dir():
        raise Refused(
            f"the destination {host.destination} is not there: mount it or create it, then "
            "install again",
            2,
        )
    identity, note = host.destination / IDENTITY, ""
    if identity.exists():
        if not take_over:
            check_destination(host)
        if check_restorable(host).machine_id != machine_id():
            note = " (taken over from another machine)"
    owner = DestinationIdentity(host.environment, machine_id()).encode()
    if note or not identity.exists() or identity.read_text(encoding="utf-8") != owner:
        change(f"{identity}{note}", lambda: write_durably(identity, owner))
    for name in SUBDIRECTORIES:
        make_directory(host.destination / name, 0o700)
