"""What the tests of the examiner and the client share."""

from __future__ import annotations

import importlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from unit.sandbox import TEMPLATES, load

ROWS = {"torrents": 3, "whitelist": 1, "keys": 0}
TRACKER = """
    CREATE TABLE torrents (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE,
        completed INTEGER NOT NULL);
    CREATE TABLE whitelist (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE);
    CREATE TABLE keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, valid_until INTEGER);
    INSERT INTO torrents (info_hash, completed) VALUES ('aa', 1), ('bb', 0), ('cc', 7);
    INSERT INTO whitelist (info_hash) VALUES ('aa');
"""


@dataclass
class Worker:
    """The jobs of a role with a directory of its own."""

    work: Path

    def __post_init__(self) -> None:
        self.work.mkdir()
        self.package = load(TEMPLATES)
        for module in ("examiner", "client"):
            vars(self.module(module))["WORK"] = self.work

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.package.__name__}.worker.{name}")

    @property
    def database(self) -> Path:
        return self.work / "database.db"

    def do(self, role: str, job: str, arguments: dict[str, Any]) -> Any:
        """The answer of a job; how it failed is in `code` and `reason`, as the host sees it."""
        answer = self.package.protocol.Answer()
        try:
            self.module(role).JOBS[job](arguments, answer)
        except self.module("service").StepFailed as failure:
            answer.code, answer.reason = failure.code, str(failure)
        line = self.package.protocol.encode_answer(answer)
        return self.package.protocol.decode_answer(line)

    def examine(
        self, scope: str = "full", driver: str = "sqlite", limit_bytes: int = 1 << 30
    ) -> Any:
        arguments = {"driver": driver, "scope": scope, "limit_bytes": limit_bytes}
        return self.do("examiner", "examine", arguments)

    def compress(self, compression: str, *files: str, limit_bytes: int = 1 << 30) -> Any:
        arguments = {"compression": compression, "files": files, "limit_bytes": limit_bytes}
        return self.do("examiner", "compress", arguments)


def make_database(path: Path, more: str = "") -> Path:
    """The tracker's tables, with three torrents, one of them on the whitelist, and no key."""
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(TRACKER + more)
    database.close()
    return path


def ask(path: Path, query: str) -> Any:
    """The first row of the answer."""
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        row = database.execute(query).fetchone()
    finally:
        database.close()
    return row[0] if len(row) == 1 else row
