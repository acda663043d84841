"""SQLite: a file below the deploy directory. A restore swaps it, so it imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..documents import RunManifest
from ..host import Host, Refused

TRACKER_NAME = "sqlite3"
SERVICE = SAVED = ""
LIBRARY = "/var/lib/torrust/tracker"  # where the tracker has its database

SOURCE = "reader"
CAPTURED: tuple[str, ...] = ("database.db", "database.db-journal", "database.db-wal")


def arguments(_: Host) -> dict[str, Any]:
    return {}


def files(_: str) -> dict[str, str]:
    return {"database.db": "db"}


def expected(settings: Mapping[str, str]) -> str:
    return uses(settings["DB_PATH"])


def uses(path: str) -> str:
    return Path(path).name


def check_mounts(host: Host, mounts: Mapping[str, str]) -> None:
    library = (host.deploy_dir / "storage/tracker/lib").resolve()
    if LIBRARY in mounts and Path(mounts[LIBRARY]).resolve() != library:
        raise Refused(f"the tracker's database directory is {mounts[LIBRARY]}, not {library}")


def service(_: Host) -> str:
    return ""


def target(host: Host) -> str:
    return host.backup_settings["DB_PATH"].removeprefix("/data/")


def prove_rights(_: Host) -> None:
    """A file needs none."""


def replace(
    _: Host, _work: Path, _dumps: list[Path], _run: RunManifest, _begin: Callable[[], None]
) -> None:
    """The file was swapped with the other files."""


def undo(_: Host, _work: Path) -> None:
    """The file is swapped back with the other files."""


def verify(_: Host, _run: RunManifest, _dumps: list[Path], _image: str) -> list[str]:
    """The unpacker has checked the file already."""
    return []
