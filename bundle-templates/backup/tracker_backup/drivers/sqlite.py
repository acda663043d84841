"""SQLite: a file below the deploy directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..host import Host, Refused
from .driver import Driver

LIBRARY = "/var/lib/torrust/tracker"  # where the tracker has its database


class SQLite(Driver):
    NAME, TRACKER_NAME = "sqlite", "sqlite3"
    SETTINGS: ClassVar = {"DB_PATH": ""}
    CAPTURED = ("database.db", "database.db-journal", "database.db-wal")

    def arguments(self, host: Host) -> dict[str, Any]:
        return {"database": host.backup_settings["DB_PATH"]}

    def files(self, scope: str) -> dict[str, str]:
        return {"database.db": "db"}

    def expected(self, settings: Mapping[str, str]) -> str:
        return self.uses({"path": settings["DB_PATH"]})

    def uses(self, database: Mapping[str, str]) -> str:
        return Path(database.get("path", "")).name

    def check_mounts(self, host: Host, mounts: Mapping[str, str]) -> None:
        library = (host.deploy_dir / "storage/tracker/lib").resolve()
        if LIBRARY in mounts and Path(mounts[LIBRARY]).resolve() != library:
            raise Refused(f"the tracker's database directory is {mounts[LIBRARY]}, not {library}")

    def target(self, host: Host) -> str:
        return host.backup_settings["DB_PATH"].removeprefix("/data/")
