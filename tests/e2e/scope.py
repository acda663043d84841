"""The benchmark behind scripts/bench-statistics, for both scopes and both databases.

It runs the roles of a backup in the image, one after the other, in one container.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.bundle import REPOSITORY
from e2e.host import wait_until
from e2e.images import PREFIX, base_image, stack_images

CONTEXT = REPOSITORY / "target/bundles/mysql-minimal/backup"
STEP_SECONDS = 3600
START_SECONDS = 120
NAME = f"{PREFIX}-scope-{os.getpid()}"

# The public demo's tracker had completed 3.1 % of its torrents.
_TORRENTS = (
    "INSERT INTO torrents (info_hash, completed)"
    " SELECT {hash}, CASE WHEN {random} < 31 THEN 5 ELSE 0 END"
)
_SQLITE = f"""
PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -500000;
CREATE TABLE torrents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, info_hash VARCHAR(20) NOT NULL UNIQUE,
    completed INTEGER DEFAULT 0 NOT NULL
);
CREATE TABLE whitelist (
    id INTEGER PRIMARY KEY AUTOINCREMENT, info_hash VARCHAR(20) NOT NULL UNIQUE
);
CREATE TABLE keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key VARCHAR(32) NOT NULL UNIQUE, valid_until INTEGER
);
{_TORRENTS.format(hash="lower(hex(randomblob(20)))", random="abs(random()) % 1000")}
    FROM generate_series(1, {{rows}});
PRAGMA journal_mode = DELETE;
"""
_MYSQL = f"""
SET SESSION cte_max_recursion_depth = 1000000000;
CREATE TABLE torrents (
    id INTEGER PRIMARY KEY AUTO_INCREMENT, info_hash VARCHAR(40) NOT NULL UNIQUE,
    completed INTEGER DEFAULT 0 NOT NULL
);
CREATE TABLE whitelist (
    id INTEGER PRIMARY KEY AUTO_INCREMENT, info_hash VARCHAR(40) NOT NULL UNIQUE
);
CREATE TABLE `keys` (
    id INTEGER PRIMARY KEY AUTO_INCREMENT, `key` VARCHAR(32) NOT NULL UNIQUE, valid_until INTEGER
);
{_TORRENTS.format(hash="left(sha2(concat(n, rand()), 256), 40)", random="floor(rand() * 1000)")}
    FROM (
        WITH RECURSIVE numbers (n) AS (
            SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {{rows}}
        ) SELECT n FROM numbers
    ) AS numbered;
ANALYZE TABLE torrents;
"""
_COMMON = (
    "BACKUP_MODE='single'\nBACKUP_PATHS_FILE='/etc/backup/paths'\nBACKUP_COMPRESSION='gzip'\n"
    "BACKUP_SCOPE='{scope}'\nBACKUP_ALLOW_WRITER_STALL='true'\n"
)
_DATABASE = {
    "sqlite": "DB_TYPE='sqlite'\nDB_PATH='/data/tracker.db'\n",
    "mysql": f"DB_TYPE='mysql'\nDB_HOST='{NAME}-mysql'\nDB_PORT='3306'\nDB_USER='tracker'\n"
    "DB_NAME='tracker'\nDB_PASSWORD_FILE='/etc/backup/password'\nDB_TLS='unverified'\n",
}
_CLIENT = {
    "driver": "mysql",
    "host": f"{NAME}-mysql",
    "port": "3306",
    "user": "tracker",
    "password": "password",
    "name": "tracker",
    "tls": "unverified",
    "ca_file": "",
}
_LIMIT_BYTES = 1 << 40

# In the container: plays the host's part of a backup. Without what it takes to enter a container.
# Prints the seconds of the capture and of the rest, and the bytes of the compressed database.
_ROLES = """
import json, os, subprocess, sys, time

def work(role):
    return os.path.join("/staging", role)

def ask(role, *jobs):
    os.makedirs(work(role), exist_ok=True)
    environment = {**os.environ, "BACKUP_WORK": work(role)}
    with subprocess.Popen(["backup.sh", role], stdin=-1, stdout=-1, env=environment) as process:
        process.stdout.readline()
        for job in jobs:
            started = time.monotonic()
            process.stdin.write(json.dumps(job).encode() + b"\\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            if answer["code"]:
                sys.exit(job["job"] + ": " + answer["reason"])
        process.stdin.close()
    return time.monotonic() - started

given = json.loads(sys.argv[1])
source = given["source"]
capture = ask(source, given["preflight"], given["capture"])
os.makedirs(work("examiner"))
for name in os.listdir(work(source)):
    os.rename(os.path.join(work(source), name), os.path.join(work("examiner"), name))
started = time.monotonic()
ask("examiner", given["examine"], given["compress"])
ask("reader", given["archive"])
finish = time.monotonic() - started
compressed = [os.path.join(work("examiner"), name + ".gz") for name in given["compress"]["files"]]
print(capture, finish, sum(map(os.path.getsize, compressed)))
"""


@dataclass(frozen=True)
class Sample:
    """One backup: seconds of its capture and of the rest, bytes of the compressed database."""

    capture: float
    finish: float
    size: int


def docker(*words: str, stdin: str | None = None, seconds: float = STEP_SECONDS) -> str:
    """Standard output of one Docker call."""
    done = subprocess.run(
        ["docker", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"docker {' '.join(words)[:200]} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout


def backup_image() -> str:
    """The image of the backup container, on the base that the end-to-end tests have."""
    name = f"{PREFIX}/scope"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CONTEXT, folder, dirs_exist_ok=True)
        recipe = Path(folder) / "Dockerfile"
        text = recipe.read_text(encoding="utf-8")
        base = f"FROM {base_image('trixie')}"
        recipe.write_text(text.replace("FROM debian:trixie-slim", base), encoding="utf-8")
        docker("build", "--tag", name, folder)
    return name


@contextmanager
def container(name: str, image: str, *options: str) -> Iterator[str]:
    """A running container, removed at the end."""
    docker("run", "--detach", "--name", name, *options, image)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


@contextmanager
def network() -> Iterator[str]:
    """A network of its own, for the server and its client."""
    docker("network", "create", NAME)
    try:
        yield NAME
    finally:
        docker("network", "rm", NAME)


def back_up(backup: str, folder: Path, kind: str, method: str, scope: str) -> Sample:
    """The roles of one backup; what they made is removed again."""
    (folder / "etc/backup.conf").write_text(
        _COMMON.format(scope=scope) + _DATABASE[kind], encoding="utf-8"
    )
    docker("exec", backup, "bash", "-c", "sync; cat /data/* >/dev/null")
    common = {"scope": scope, "limit_bytes": _LIMIT_BYTES, "compression": "gzip"}
    asked = common | (
        {"method": method, "stall_limit": 0} if kind == "sqlite" else _CLIENT | {"driver": "mysql"}
    )
    files = ["database.db"] if kind == "sqlite" else ["database.sql"]
    if kind == "mysql" and scope != "full":
        files.append("torrents.sql")
    given = {
        "source": "reader" if kind == "sqlite" else "client",
        "preflight": asked | {"job": "preflight"},
        "capture": asked | {"job": "capture"},
        "examine": common | {"job": "examine", "driver": kind},
        "compress": common | {"job": "compress", "files": files},
        "archive": common | {"job": "archive", "members": []},
    }
    words = ("exec", "--env", "BACKUP_CLIENT=/run/client", backup, "python3", "-c", _ROLES)
    capture, finish, size = docker(*words, json.dumps(given)).split()
    docker("exec", backup, "bash", "-c", "rm -rf /staging/*")
    return Sample(float(capture), float(finish), int(size))


def fill(backup: str, folder: Path, server: str, rows: int) -> str:
    """Makes both databases; says how large they are."""
    docker(
        "run",
        "--rm",
        "--interactive",
        "--entrypoint",
        "python3",
        f"--volume={folder}/data:/data",
        f"{PREFIX}/scope",
        "-c",
        "import sqlite3, sys\nsqlite3.connect('/data/tracker.db').executescript(sys.stdin.read())",
        stdin=_SQLITE.format(rows=rows),
    )
    client = (
        "exec",
        "--interactive",
        server,
        "mysql",
        "--user=tracker",
        "--password=password",
        "--host=127.0.0.1",
        "--batch",
        "--skip-column-names",
        "tracker",
    )
    wait_until(
        "the MySQL server",
        lambda: (
            subprocess.run(
                ["docker", *client], input="", capture_output=True, text=True, check=False
            ).returncode
            == 0
        ),
        START_SECONDS,
    )
    docker(*client, stdin=_MYSQL.format(rows=rows))
    mysql = int(
        docker(
            *client,
            stdin="SELECT sum(data_length + index_length) FROM information_schema.tables"
            " WHERE table_schema = 'tracker';",
        )
    )
    sqlite = (folder / "data/tracker.db").stat().st_size
    return (
        f"{rows:,} torrents, 3.1 % of them completed;"
        f" SQLite {sqlite / 1e6:.0f} MB, MySQL {mysql / 1e6:.0f} MB"
    )


def bench(rows: int, rounds: int) -> str:
    """The Markdown of what was measured: medians."""
    measured: dict[tuple[str, str, str], list[Sample]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("data", "etc", "staging"):
            (folder / name).mkdir()
        for path, text in {
            "etc/paths": "/data/.env\n",
            "etc/password": "password",
            "data/.env": "A=1\n",
        }.items():
            (folder / path).write_text(text, encoding="utf-8")
        image, net = backup_image(), stack.enter_context(network())
        server_options = [
            f"--env=MYSQL_{key}"
            for key in (
                "ROOT_PASSWORD=password",
                "DATABASE=tracker",
                "USER=tracker",
                "PASSWORD=password",
            )
        ]
        server = stack.enter_context(
            container(
                f"{NAME}-mysql", stack_images()["mysql:8.4"], f"--network={net}", *server_options
            )
        )
        mounts = [
            f"--volume={folder}/{name}"
            for name in (
                "data:/data:ro",
                "etc:/etc/backup:ro",
                "staging:/staging",
            )
        ]
        backup = stack.enter_context(
            container(
                f"{NAME}-backup",
                image,
                "--init",
                "--tmpfs=/run/client:mode=0700",
                f"--network={net}",
                *mounts,
            )
        )
        busy = os.getloadavg()[1]
        facts = fill(backup, folder, server, rows)
        for number in range(rounds):
            for kind, method in (("sqlite", "copy"), ("sqlite", "online"), ("mysql", "online")):
                for scope in ("full", "exclude-statistics"):
                    sample = back_up(backup, folder, kind, method, scope)
                    measured.setdefault((kind, method, scope), []).append(sample)
                    print(
                        f"== round {number + 1}, {kind} {method} {scope}: {sample}",
                        file=sys.stderr,
                        flush=True,
                    )
    head = (
        "| database | captured | `database_scope` | capture, s | check, archive, compress, s"
        " | compressed, MB |"
    )
    lines = [
        (
            f"{facts}; medians of {rounds} rounds; gzip, {os.cpu_count()} cores,"
            f" Linux {platform.release().partition('-')[0]}; load before: {busy:.1f}."
        ),
        "",
        head,
        "|" + " --- |" * 6,
    ]
    for (kind, method, scope), samples in measured.items():
        capture, finish = (
            statistics.median(getattr(sample, name) for sample in samples)
            for name in ("capture", "finish")
        )
        size = statistics.median(sample.size for sample in samples) / 1e6
        lines.append(
            f"| {kind} | {method} | `{scope}` | {capture:.2f} | {finish:.2f} | {size:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench-statistics", description="What leaving statistics out saves."
    )
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="torrents in each database (default: 1000000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often everything is measured (default: 3)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(bench(arguments.rows, arguments.rounds), end="")


if __name__ == "__main__":
    main()
