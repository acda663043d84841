"""The database drivers on the host. Each module has the functions of `Driver`.

A driver either restores a file, which is swapped with the other files, or imports into a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..documents import RunManifest
from ..host import Host, Refused
from . import mysql, sqlite

Begin = Callable[[], None]


class Driver(Protocol):
    """What the host needs to know of a database driver."""

    TRACKER_NAME: str  # in the tracker's own configuration
    SERVICE: str  # of the stack; a restore leaves it running. Empty if there is none
    SAVED: str  # the file in a restore's directory that `undo` needs; empty if it needs none

    SOURCE: str  # the role that captures
    CAPTURED: tuple[str, ...]  # the files that it may leave

    def arguments(self, host: Host, /) -> dict[str, Any]:
        """What the role that captures has to know; among it the password of a server."""

    def files(self, scope: str, /) -> dict[str, str]:
        """The files that are compressed, and the endings of their names in the destination."""

    def expected(self, settings: Mapping[str, str], /) -> str:
        """The database of backup.conf, in the words of `uses`."""

    def uses(self, path: str, /) -> str:
        """The database that `path` of the tracker's configuration means."""

    def check_mounts(self, host: Host, mounts: Mapping[str, str], /) -> None:
        """Refuses if the tracker, with these host directories by target, has another database."""

    def service(self, host: Host, /) -> str:
        """The stack's service that has to run for an import; empty if there is none."""

    def target(self, host: Host, /) -> str:
        """The file below the deploy directory that a restore swaps; empty if it imports."""

    def prove_rights(self, host: Host, /) -> None:
        """Refuses if an import would fail for want of a right. Nothing is changed."""

    def replace(
        self, host: Host, work: Path, dumps: list[Path], run: RunManifest, begin: Begin, /
    ) -> None:
        """Imports the dumps. Calls `begin` after the present database was saved, and before it is
        dropped.
        """

    def undo(self, host: Host, work: Path, /) -> None:
        """Puts the saved database back."""

    def verify(self, host: Host, run: RunManifest, dumps: list[Path], image: str, /) -> list[str]:
        """Imports the dumps into a throw-away server. Returns what differs from the run
        manifest.
        """


DRIVERS: dict[str, Driver] = {"sqlite": sqlite, "mysql": mysql}  # by DB_TYPE of backup.conf
SERVICES = {driver.SERVICE for driver in DRIVERS.values() if driver.SERVICE}


def driver_of(host: Host) -> Driver:
    kind = host.backup_settings.get("DB_TYPE", "")
    if kind not in DRIVERS:
        raise Refused(f"backup.conf: DB_TYPE='{kind}'; allowed: {' '.join(DRIVERS)}", 2)
    return DRIVERS[kind]


def driver_of_run(run: RunManifest) -> Driver | None:
    """None if the run has no database."""
    return DRIVERS[run.driver] if run.paths_of("database") else None


def used_database(name: str, path: str) -> str:
    """What the tracker's configuration means, also for a driver that we do not know."""
    known = [driver for driver in DRIVERS.values() if name == driver.TRACKER_NAME]
    return (known[0] if known else DRIVERS["sqlite"]).uses(path)
