"""The unpacker: unpacks and checks the files of one run, and puts them in their places.

    measure {files}                   numbers: bytes unpacked, by file
    unpack {files, paths}             checked, into /work; tables, and in `missing` the paths that
                                      the configuration archive lacks
    prepare {work, kind, database, paths}
                                      fills WORK/new and WORK/targets; kind: database, config, all
    apply {work}                      moves what is there to WORK/old, and the new in its place
    rollback {work}                   undoes an apply that ended anywhere
    connect {host, port, user, password, tls, ca}   makes the options of the MySQL client; `tls` is
                                      "verified" or "unverified", `ca` a certificate or empty

`files` are paths below the destination, `database` one below the deployment, `work` the name of
the directory in staging.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..protocol import PATH_CHARACTERS, Answer, printable
from . import restore_files
from .examiner import DRIVERS
from .mysql import CLIENT, client_options
from .service import DATA, WORK, StepFailed

DESTINATION = Path(os.environ.get("BACKUP_DESTINATION", "/backups"))
# The name in WORK by what the name of a backup file has between its first and its last dot.
TARGETS = {"db": "database.db", "sql": "database.sql", "torrents.sql": "torrents.sql"}
TARGETS["tar"] = "config.tar"
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
        with suppress(StepFailed), unpacked(file) as stream:
            while block := stream.read(1 << 20):
                answer.numbers[file] += len(block)


def unpack(arguments: dict[str, Any], answer: Answer) -> None:
    for file in arguments["files"]:
        directory, _, name = file.partition("/")
        target = TARGETS.get(name.partition(".")[2].rpartition(".")[0])
        if not target:
            raise StepFailed(f"{file} is not a backup", 2)
        with unpacked(file) as stream, open(WORK / target, "wb") as output:
            shutil.copyfileobj(stream, output, 1 << 20)
        if directory == "config":
            answer.missing = missing(WORK / target, arguments["paths"])
    # An SQLite database is the excerpt already. Of a server, an excerpt has two dumps.
    scope = "exclude-statistics" if (WORK / "torrents.sql").exists() else "full"
    for driver in {file.partition("/")[0] for file in arguments["files"]} & DRIVERS.keys():
        DRIVERS[driver].examine(WORK, {"scope": scope}, answer)


def missing(archive: Path, paths: list[str]) -> list[str]:
    """Those of the paths that the archive lacks, after the whole archive was read."""
    wanted = dict.fromkeys(paths)
    try:
        for _, member in restore_files.members(archive):
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
    authority = str(CLIENT / "ca.pem") if arguments["ca"] else ""
    if authority:
        Path(authority).write_text(arguments["ca"])
    (CLIENT / "client.cnf").write_text(client_options({**arguments, "ca_file": authority}))


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
        kind, database, paths = (arguments[name] for name in ("kind", "database", "paths"))
        restore_files.prepare(data, work, kind, database, paths, answer)
    except tarfile.TarError as error:
        raise StepFailed(str(error)) from error


def apply(arguments: dict[str, Any], _: Answer) -> None:
    restore_files.apply(*place(arguments))


def rollback(arguments: dict[str, Any], answer: Answer) -> None:
    restore_files.rollback(*place(arguments), answer)


JOBS = {step.__name__: step for step in (measure, unpack, prepare, apply, rollback, connect)}
