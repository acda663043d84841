"""The unpacker: unpacks and checks the files of one run, and puts them in their places.

    measure {files}                   numbers: bytes unpacked, by file
    unpack {files, paths}             checked, into /work; tables, and in `missing` the paths that
                                      the configuration archive lacks
    prepare {work, kind, database}    fills WORK/new and WORK/targets; kind: database, config, all
    apply {work}                      moves what is there to WORK/old, and the new in its place
    rollback {work}                   undoes an apply that ended anywhere
    connect {host, port, user, password, tls, ca}   makes the options of the MySQL client; `tls` is
                                      "verified" or "unverified", `ca` a certificate or empty

`files` are paths below the destination, `database` one below the deployment, `work` the name of
the directory in staging.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..protocol import PATH_CHARACTERS, Answer, printable
from . import restore_files
from .service import DATA, WORK, StepFailed

DESTINATION = Path(os.environ.get("BACKUP_DESTINATION", "/backups"))
CLIENT = Path(os.environ.get("BACKUP_CLIENT", "/run/client"))
STAGING = "storage/backup-staging"


# ---------------------------------------------------------------- unpacking


@contextmanager
def unpacked(file: str) -> Iterator[IO[bytes]]:
    """The content of a backup as a stream. Raises StepFailed if it is damaged."""
    programs = {".gz": ["pigz"], ".zst": ["zstd", "-q"]}
    if not (program := programs.get(Path(file).suffix)):
        raise StepFailed(f"{file} is not a backup", 2)
    with (
        open(DESTINATION / file, "rb") as source,
        subprocess.Popen(
            [*program, "--decompress", "--stdout"], stdin=source, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout
        yield process.stdout
    if process.returncode != 0:
        raise StepFailed(f"{file} cannot be unpacked")


def measure(arguments: dict[str, Any], answer: Answer) -> None:
    """A damaged file is not found here, but by unpacking it."""
    for file in arguments["files"]:
        answer.numbers[file] = 0
        try:
            with unpacked(file) as stream:
                while block := stream.read(1 << 20):
                    answer.numbers[file] += len(block)
        except StepFailed:
            continue


def unpack(arguments: dict[str, Any], answer: Answer) -> None:
    for file in arguments["files"]:
        kind, name = file.split("/", 1)
        targets = {"sqlite": "database.db", "mysql": "database.sql", "config": "config.tar"}
        if kind not in targets:
            raise StepFailed(f"{file} is not a backup", 2)
        target = WORK / ("torrents.sql" if ".torrents.sql." in name else targets[kind])
        with unpacked(file) as stream, open(target, "wb") as output:
            while block := stream.read(1 << 20):
                output.write(block)
        if kind == "sqlite":
            look_into_database(target, answer)
        elif kind == "mysql":
            for table, rows in digest(target).items():
                answer.tables[table] = answer.tables.get(table, 0) + rows
        else:
            answer.missing = missing(target, arguments["paths"])


def look_into_database(path: Path, answer: Answer) -> None:
    from . import sqlite  # not where servers are restored

    os.environ["SQLITE_TMPDIR"] = str(WORK)
    try:
        answer.warnings = sqlite.check(path)
        lines = (line.split("\t", 1) for line in sqlite.count(path))
        answer.tables = {name: int(rows) for rows, name in lines}
    except (sqlite.Failed, sqlite.Refused) as error:
        raise StepFailed(str(error)) from error


def digest(dump: Path) -> dict[str, int]:
    """Rows by table. mariadb-dump writes each row on a line of its own, and no raw line end inside
    a value.
    """
    rows: dict[bytes, int] = {}
    table, inside, line = b"", False, b""
    with open(dump, "rb") as file:
        for line in file:
            if line.startswith(b"CREATE TABLE `"):
                rows.setdefault(line[14:].rstrip().removesuffix(b"` ("), 0)
            elif line.startswith(b"INSERT INTO `"):
                table, inside = line[13:].rstrip().removesuffix(b"` VALUES"), True
            elif inside and line.startswith(b"("):
                rows[table] = rows.get(table, 0) + 1
                inside = not line.endswith(b";\n")
    if not line.startswith(b"-- Dump completed"):
        raise StepFailed("the dump is cut off: it does not end with '-- Dump completed'")
    return {name.decode(errors="replace").replace("``", "`"): rows[name] for name in rows}


def missing(archive: Path, paths: list[str]) -> list[str]:
    """Those of the paths that the archive lacks, after the whole archive was read."""
    wanted = dict.fromkeys(paths)
    try:
        with restore_files.open_archive(archive) as tar:
            for member in restore_files.members(tar):
                wanted.pop(shown(member.name), None)
    except tarfile.TarError as error:
        raise StepFailed(f"the configuration is not a readable archive: {error}") from error
    return list(wanted)


def shown(name: str) -> str:
    """As run manifests have it."""
    path = os.fsencode(name).decode(errors="replace").removeprefix("./").rstrip("/")
    return printable(path, PATH_CHARACTERS)


def connect(arguments: dict[str, Any], _: Answer) -> None:
    """The password goes into a 0600 file in memory, never into an argument."""
    CLIENT.mkdir(mode=0o700, exist_ok=True)
    authority = "/etc/ssl/certs/ca-certificates.crt"
    if arguments["ca"]:
        authority = str(CLIENT / "ca.pem")
        Path(authority).write_text(arguments["ca"])
    lines = ["[client]"]
    for key in ("host", "user", "password"):
        value = arguments[key].replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'{key}="{value}"')
    lines += [f"port={arguments['port']}", "protocol=tcp", "default-character-set=utf8mb4"]
    lines += ["max-allowed-packet=1G", "ssl"]
    if arguments["tls"] == "verified":
        lines += ["ssl-verify-server-cert", f'ssl-ca="{authority}"']
    else:
        lines += ["skip-ssl-verify-server-cert"]
    lines += ["[mariadb-client]", "connect-timeout=10", ""]
    (CLIENT / "client.cnf").write_text("\n".join(lines))


# ---------------------------------------------------------------- putting files in their places


def place(arguments: dict[str, Any]) -> tuple[restore_files.Tree, Path]:
    """The deployment, and the directory for the work, where possible inside the deployment's
    mount: a file can be linked inside one mount only.
    """
    os.umask(0o022)
    inside = DATA / STAGING / arguments["work"]
    return restore_files.Tree(DATA), inside if inside.is_dir() else WORK


def prepare(arguments: dict[str, Any], answer: Answer) -> None:
    data, work = place(arguments)
    try:
        restore_files.prepare(data, work, arguments["kind"], arguments["database"], answer)
    except tarfile.TarError as error:
        raise StepFailed(str(error)) from error


def apply(arguments: dict[str, Any], _: Answer) -> None:
    restore_files.apply(*place(arguments))


def rollback(arguments: dict[str, Any], answer: Answer) -> None:
    restore_files.rollback(*place(arguments), answer)


JOBS = {step.__name__: step for step in (measure, unpack, prepare, apply, rollback, connect)}
