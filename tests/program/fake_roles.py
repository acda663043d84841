"""The roles in our containers, for the stand-in of Docker.

Each job has a line `job NAME {ARGUMENTS}` in `calls`, its hook, and then its usual effect.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from program import fake_docker as docker

DATABASE_BYTES = 8192
DIGEST = hashlib.sha256(b"backup\n").hexdigest()  # of every file that is published


class Refused(Exception):
    """Ends a job. `code` is that of the answer."""

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(reason)
        self.code = code


def refuse(reason: str, code: int = 1) -> NoReturn:
    """For hooks: the job fails with this reason."""
    raise Refused(reason, code)


def begin(name: str, work: Path, answer: dict[str, Any], job: dict[str, Any]) -> None:
    """Writes the job down and does what the test wants."""
    docker.log_call(f"job {name} {json.dumps(job, sort_keys=True)}")
    docker.happens(name, work=work, job=job, answer=answer, refuse=refuse, say=say)


def say(line: str) -> None:
    """For hooks: an answer exactly as it is, in place of the usual one, or before it."""
    sys.stdout.buffer.write(line.encode(errors="surrogateescape") + b"\n")
    sys.stdout.buffer.flush()


def put(path: Path, text: str) -> None:
    """A file that a role leaves. It belongs to the role, as its directory does."""
    path.write_text(text)
    if path.parent.stat().st_uid != os.geteuid():
        os.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)


# ---------------------------------------------------------------- roles


def converse(role: str, work: Path) -> None:
    """One job a line comes in, one answer a line goes out."""
    docker.happens(f"hello-{role}", work=work, say=say)
    say(json.dumps({"protocol": 1}))
    for line in sys.stdin.buffer:
        job = json.loads(line)
        name = job.pop("job")
        job.pop("protocol", None)
        answer: dict[str, Any] = {"code": 0}
        try:
            begin(name, work, answer, job)
            answer = usual_answer(role, name, job, work) | answer
        except Refused as refused:
            answer |= {"code": refused.code, "reason": str(refused)}
        say(json.dumps(answer))


def usual_answer(role: str, name: str, job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Leaves what the job leaves when all goes well, and says so."""
    suffix = {"gzip": ".gz", "zstd": ".zst"}.get(job.get("compression", ""), "")
    if name == "preflight" and role == "reader":
        numbers = {"database_bytes": DATABASE_BYTES, "config_bytes": 100}
        numbers |= {"config_disk_bytes": 4096, "entries": 2, "members": 0, "wal": 0}
        return {"numbers": numbers}
    if name == "preflight":
        return {"numbers": {"database_bytes": DATABASE_BYTES}, "tables": tables()}
    if name == "capture":
        file = work / ("database.db" if role == "reader" else "database.sql")
        put(file, "captured\n")
        return {"numbers": {"database_bytes": file.stat().st_size, "shared": 0}}
    if name == "examine":
        return {"tables": tables(), "tools": {"sqlite3": "3.40.1"}, "milliseconds": {"check": 1}}
    if name == "compress":
        for file in job["files"]:
            put(work / f"{file}{suffix}", "backup\n")
        return {"milliseconds": {"compress": 1}}
    if name == "archive":
        put(work / f"config.tar{suffix}", "backup\n")
        paths = [".env", *job.get("compose", ())]
        return {"paths": paths, "numbers": {"bytes": 7}, "milliseconds": {"archive": 1}}
    return {"text": restic_text(name)} if role == "courier" else {}


def restic_text(job: str) -> str:
    """What a restic repository that has no snapshot yet says."""
    return "1d01" if job == "identify" else ""


def tables() -> dict[str, int]:
    return {"torrents": 2, "whitelist": 0, "keys": 0}
