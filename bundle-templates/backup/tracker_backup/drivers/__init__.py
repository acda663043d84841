"""The database drivers on the host, by DB_TYPE of backup.conf."""

from __future__ import annotations

from collections.abc import Mapping

from ..documents import RunManifest
from ..host import Host, Refused
from .driver import Driver
from .mysql import MySQL
from .sqlite import SQLite

DRIVERS: dict[str, Driver] = {driver.NAME: driver for driver in (SQLite(), MySQL())}
SERVICES = {driver.SERVICE for driver in DRIVERS.values() if driver.SERVICE}


def driver_of(host: Host) -> Driver:
    kind = host.backup_settings.get("DB_TYPE", "")
    if kind not in DRIVERS:
        raise Refused(f"backup.conf: DB_TYPE='{kind}'; allowed: {' '.join(DRIVERS)}", 2)
    return DRIVERS[kind]


def driver_of_run(run: RunManifest) -> Driver | None:
    """None if the run has no database."""
    return DRIVERS[run.driver] if run.paths_of("database") else None


def used_database(database: Mapping[str, str]) -> str:
    """What the tracker's configuration means, also for a driver that we do not know."""
    name = database.get("driver", "")
    known = [driver for driver in DRIVERS.values() if name == driver.TRACKER_NAME]
    return (known[0] if known else DRIVERS["sqlite"]).uses(database)
