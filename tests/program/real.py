"""A real SQLite database, for the real programs of the image."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

from program.host import Host

TABLES = """
CREATE TABLE torrents (info_hash TEXT); CREATE TABLE whitelist (a); CREATE TABLE keys (a);
INSERT INTO torrents VALUES ('aa'), ('bb')
"""


def database(host: Host) -> Path:
    return host.deploy / "storage/tracker/lib/database/tracker.db"


def change(host: Host, script: str) -> None:
    """Changes the tracker's database."""
    with closing(sqlite3.connect(database(host))) as connection:
        connection.executescript(script)


def make_real(host: Host) -> None:
    """The deployment has a real database, and the settings name paths of this host."""
    database(host).unlink()
    change(host, TABLES)
    paths = host.deploy / "backup/backup-paths.txt"
    paths.write_text(
        f"{host.deploy}/.env\n{host.deploy}/storage/tracker/etc\n"
        f"dir:{host.deploy}/storage/tracker/lib\n?{host.deploy}/storage/caddy/etc\n"
    )
    host.configure_backup(DB_PATH=str(database(host)))
    host.environment |= {
        "BACKUP_DATA": str(host.deploy),
        "BACKUP_PATHS": str(paths),
        "BACKUP_STAGING": str(host.staging),
        "BACKUP_DESTINATION": str(host.destination),
    }


def restored_rows(host: Host, path: Path) -> list[str]:
    """The torrents of a published database."""
    restored = host.path / "restored.db"
    restored.write_bytes(gzip.decompress(path.read_bytes()))
    with closing(sqlite3.connect(restored)) as connection:
        return [row[0] for row in connection.execute("SELECT info_hash FROM torrents")]
