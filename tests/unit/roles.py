"""A deployment, and the jobs of a role on it, for the tests of the worker."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unit.sandbox import TEMPLATES

sys.dont_write_bytecode = True
sys.path.insert(0, str(TEMPLATES / "backup"))

from tracker_backup.protocol import Answer, decode_answer, encode_answer  # noqa: E402
from tracker_backup.worker import copies, reader, service  # noqa: E402

TABLES = """
    CREATE TABLE torrents (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE,
        completed INTEGER NOT NULL);
    CREATE TABLE whitelist (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE);
    CREATE TABLE keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, valid_until INTEGER);
    INSERT INTO torrents (info_hash, completed) VALUES ('aa', 1), ('bb', 0), ('cc', 7);
    INSERT INTO whitelist (info_hash) VALUES ('aa');
"""
# Does what the statements say, reports it, and stays until it is ended.
HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    database.execute(statement).fetchall()
print("done", flush=True)
sys.stdin.read()
"""


def execute(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(script)


def query(path: Path, statement: str) -> Any:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchone()


@contextlib.contextmanager
def holder(path: Path, *statements: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that executed the statements and has its connection open. It is killed."""
    words = [sys.executable, "-c", HOLDER, str(path), *statements]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"done\n"
            yield process
        finally:
            process.kill()


class Deployment:
    """A small deployment below `path`, and the role `reader`, whose jobs run in this process."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.data, self.work = path / "data", path / "work"
        self.list = path / "backup-paths.txt"
        for directory in ("etc", "lib/database", "log"):
            (self.data / "storage/tracker" / directory).mkdir(parents=True)
        self.work.mkdir()
        self.database = self.data / "storage/tracker/lib/database/tracker.db"
        (self.data / ".env").write_text("SECRET=1\n")
        (self.data / "docker-compose.yml").write_text("services: {}\n")
        self.etc = self.data / "storage/tracker/etc"
        (self.etc / "tracker.toml").write_text("[core]\n")
        execute(self.database, TABLES)
        lines = (".env", "docker-compose.yml", "storage/tracker/etc")
        self.list.write_text("# what is in the archive\n")
        self.add(*lines, "dir:storage/tracker/lib", "dir:storage/tracker/log")
        monkeypatch.setattr(service, "DATA", self.data)
        monkeypatch.setattr(service, "WORK", self.work)
        monkeypatch.setattr(service, "PATHS", self.list)
        monkeypatch.setattr(reader, "LOCK_SECONDS", 0)
        monkeypatch.setattr(copies, "MEMORY", path / "memory")
        self.memory(1000000)

    @property
    def its_database(self) -> dict[str, str]:
        """The argument of the jobs that read it."""
        return {"database": str(self.database)}

    def memory(self, kibibytes: int) -> None:
        text = f"MemTotal:       16000000 kB\nMemAvailable: {kibibytes:8} kB\n"
        (self.path / "memory").write_text(text)

    def add(self, *lines: str) -> None:
        """Lines of the path list, with paths relative to the deployment."""
        with self.list.open("ab") as file:
            for line in lines:
                marks = re.match(r"\??(dir:|sqlite:)?", line)
                end = marks.end() if marks else 0
                file.write(os.fsencode(f"{line[:end]}{self.data}/{line[end:]}\n"))

    def job(self, name: str, **arguments: Any) -> Answer:
        """The answer of a job, as the host decodes it; raises what ends the job."""
        answer = Answer()
        reader.JOBS[name](arguments, answer)
        return decode_answer(encode_answer(answer))

    def preflight(self, method: str = "copy", stall_limit: int = 5) -> Answer:
        limits = {"method": method, "stall_limit": stall_limit}
        return self.job("preflight", **limits, **self.its_database)

    def capture(self, method: str = "copy") -> Path:
        """The captured set; opening it recovers it."""
        self.job("capture", method=method, **self.its_database)
        return self.work / "database.db"

    def member(self, index: int, limit: int = 1 << 30) -> Answer:
        return self.job("capture_member", index=index, limit_bytes=limit)

    def archive(self, compression: str = "gzip", limit: int = 1 << 30, **more: Any) -> Answer:
        more.setdefault("members", [])
        return self.job("archive", compression=compression, limit_bytes=limit, **more)

    def members(self) -> dict[str, tarfile.TarInfo]:
        """The archive's members by name, in their order."""
        with tarfile.open(self.work / "config.tar.gz", errors="surrogateescape") as archive:
            return {member.name: member for member in archive}

    def unpack(self) -> Path:
        """The archive's content, as tar unpacks it."""
        target = self.path / "unpacked"
        target.mkdir()
        words = ["tar", "-xpzf", str(self.work / "config.tar.gz"), "--numeric-owner"]
        words += ["-C", str(target)]
        subprocess.run(words, check=True)
        return target
