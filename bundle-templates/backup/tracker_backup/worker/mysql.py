"""MySQL: its client programs and its dumps.

Neither the server nor the content of its dumps is trusted. What it sends is bounded, and every call
has a time limit.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, Timer
from typing import IO, Any

from ..protocol import LARGEST, MOST_TABLES, REASON_CHARACTERS, Answer, printable, table_name
from .dumps import digest, write_dump
from .service import StepFailed, file_size_limit, log

CLIENT = Path(os.environ.get("BACKUP_CLIENT", "/run/client"))  # a tmpfs of its own
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
QUERY_SECONDS = 60
QUERY_BYTES = 1 << 23
DUMP_SECONDS = 43200
MESSAGE_BYTES = 4096  # how much of a program's standard error is kept
BLOCK_BYTES = 1 << 16

DUMP = ["--single-transaction", "--quick", "--no-tablespaces", "--hex-blob"]
WHOLE = ["--routines", "--triggers", "--events"]
WITHOUT_TRIGGERS = ["--routines", "--skip-triggers", "--events"]
COMPLETED_TORRENTS = ["--triggers", "--no-create-info", "--where=completed > 0"]
QUERY = ["--batch", "--raw", "--quick", "--skip-column-names", "--execute"]
OPTIONS = """[client]
host="{host}"
port={port}
user="{user}"
password="{password}"
protocol=tcp
default-character-set=utf8mb4
max-allowed-packet=1G
ssl
{tls}
[mariadb-client]
connect-timeout=10
"""
# A line end in a name must not look like the end of a line of the answer.
TABLES = """SELECT hex(table_name) FROM information_schema.tables
    WHERE table_schema = database() AND table_type = 'BASE TABLE'"""
SIZE = """SELECT coalesce(sum(data_length + index_length), 0)
    FROM information_schema.tables WHERE table_schema = database()"""
CHARACTER_SET = """SELECT default_character_set_name, default_collation_name
    FROM information_schema.schemata WHERE schema_name = database()"""
GENERATED = """SELECT hex(table_name), ordinal_position FROM information_schema.columns
    WHERE table_schema = database() AND generation_expression <> ''"""
CIPHER = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"
GRANTS = """SELECT count(*) FROM (
    SELECT 1 FROM information_schema.user_privileges WHERE privilege_type IN ({})
    UNION ALL SELECT 1 FROM information_schema.schema_privileges
    WHERE database() LIKE table_schema AND privilege_type IN ({})) AS granted"""
# The server hides what its user may not see, and a dump then lacks it without a message. One of
# the privileges is enough: of all databases, or of this one.
UNSEEN = (
    ("triggers (privilege TRIGGER)", "'TRIGGER'", "'TRIGGER'"),
    (
        "other users' routines (privilege SHOW_ROUTINE)",
        "'SELECT', 'SHOW_ROUTINE', 'EXECUTE', 'CREATE ROUTINE', 'ALTER ROUTINE'",
        "'EXECUTE', 'CREATE ROUTINE', 'ALTER ROUTINE'",
    ),
)


# ---------------------------------------------------------------- jobs


def preflight(work: Path, arguments: dict[str, Any], answer: Answer) -> None:
    user, name = arguments["user"], arguments["name"]
    answer.tools["mariadb-dump"] = printed(["mariadb-dump", "--version"]).strip()
    with option_file(arguments) as options:
        answer.tables = {table_name(table): 0 for table in tables(options, name)}
        for what, everywhere, here in UNSEEN:
            query = GRANTS.format(everywhere, here)
            if number("the server's number of privileges", ask(options, name, query)) == 0:
                answer.warnings.append(
                    f"user {user} may not see {what} in database {name}: if there are any, the "
                    "backup lacks them"
                )
        if not ask(options, name, CIPHER).partition("\t")[2].strip():
            answer.warnings.append(
                f"the connection to the server {arguments['host']} is not encrypted: it offers no "
                "TLS, and backup.database_tls does not ask for a verified certificate"
            )
        size = ask(options, name, SIZE)
        answer.numbers["database_bytes"] = number("the size of the database", size)


def capture(work: Path, arguments: dict[str, Any], answer: Answer) -> None:
    """Writes database.sql, and torrents.sql if the scope leaves statistics out.

    Two dumps are needed to leave rows out, because --where applies to every table. Each is
    consistent in itself. The second one has the rows of torrents and all triggers, because a
    trigger must not exist before the rows are there.
    """
    name = arguments["name"]
    with option_file(arguments) as options:

        def take(file: str, header: bytes, *words: str) -> None:
            limit = arguments["limit_bytes"]
            try:
                with file_size_limit(limit), open(work / file, "wb") as output:
                    dump(options, name, output, header, *words)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                raise StepFailed(f"mariadb-dump wrote more than {limit} bytes") from error

        header = character_set(options, name)
        if arguments["scope"] == "full":
            return take("database.sql", header, *WHOLE)
        ignore = f"--ignore-table-data={name}."
        take("database.sql", header, *WITHOUT_TRIGGERS, f"{ignore}torrents")
        others = [ignore + table for table in tables(options, name) if table != "torrents"]
        return take("torrents.sql", b"", *COMPLETED_TORRENTS, *others)


def character_set(options: str, name: str) -> bytes:
    """The statement that gives a database the default character set of this one."""
    found = ask(options, name, CHARACTER_SET).split()
    if len(found) != 2 or not re.fullmatch("[a-z0-9_]{1,128}", "".join(found)):
        raise StepFailed(f"the server's character set cannot be read: {printable(repr(found))}")
    return "/*!40100 ALTER DATABASE CHARACTER SET {} COLLATE {} */;\n".format(*found).encode()


def dump(options: str, name: str, output: IO[bytes], header: bytes, *words: str) -> None:
    """Writes a dump of the database that MySQL imports, with `header` as its second line."""
    generated: dict[bytes, list[int]] = {}
    for line in ask(options, name, GENERATED).splitlines():
        table, _, position = line.partition("\t")
        columns = generated.setdefault(from_hex(table).encode(), [])
        columns.append(number("the position of a column", position) - 1)
    named = ["--complete-insert"] if generated else []
    command = ["mariadb-dump", options, *DUMP, *words, *named, "--", name]
    with program(command, DUMP_SECONDS) as stream:
        write_dump(stream, output, header, generated)


def examine(work: Path, arguments: dict[str, Any], answer: Answer) -> None:
    """Counts the rows of the dumps together."""
    names = ["database.sql"] + ["torrents.sql"] * (arguments["scope"] != "full")
    for name in names:
        with open(work / name, "rb", buffering=0) as file:
            for table, rows in digest(file).items():
                answer.tables[table] = answer.tables.get(table, 0) + rows


# ---------------------------------------------------------------- client programs


@contextmanager
def option_file(server: dict[str, Any]) -> Iterator[str]:
    """The first argument of client programs. The password is in memory, and in no argument."""
    CLIENT.mkdir(mode=0o700, exist_ok=True)
    path = CLIENT / "client.cnf"
    path.unlink(missing_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(client_options(server))
        yield f"--defaults-file={path}"
    finally:
        path.unlink(missing_ok=True)


def client_options(server: dict[str, Any]) -> str:
    """The text of an option file for `server`: host, port, user, password, tls, ca_file."""
    tls = "skip-ssl-verify-server-cert"
    if server["tls"] != "unverified":
        authorities = option_value(server.get("ca_file") or AUTHORITIES)
        tls = f'ssl-verify-server-cert\nssl-ca="{authorities}"'
    values = {key: option_value(server[key]) for key in ("host", "user", "password")}
    return OPTIONS.format(port=int(server["port"]), tls=tls, **values)


def option_value(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def tables(options: str, database: str) -> list[str]:
    """Names of the tables that the user sees."""
    lines = ask(options, database, TABLES).split()
    if len(lines) > MOST_TABLES:
        raise StepFailed(f"the database has more than {MOST_TABLES} tables")
    return [from_hex(line) for line in lines]


def from_hex(line: str) -> str:
    """A name, which the server writes like this because it can hold a line end."""
    try:
        name = bytes.fromhex(line).decode()
        if "\0" in name:
            raise ValueError("one has a zero byte")
    except ValueError as error:
        raise StepFailed(f"the server's names of tables cannot be read: {error}") from error
    return name


def number(what: str, text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text.strip(), re.ASCII) or int(text) > LARGEST:
        raise StepFailed(f"{what} is not a whole number: '{printable(text.strip(), 60)}'")
    return int(text)


def ask(options: str, database: str, query: str) -> str:
    """The server's answer to one query."""
    return printed(["mariadb", options, *QUERY, query, "--", database])


def printed(command: list[str]) -> str:
    with program(command, QUERY_SECONDS) as stream:
        text = stream.read(QUERY_BYTES + 1)
        if len(text) > QUERY_BYTES:
            raise StepFailed(f"{command[0]} wrote more than {QUERY_BYTES} bytes")
    return text.decode(errors="replace")


@contextmanager
def program(command: list[str], seconds: float) -> Iterator[IO[bytes]]:
    """What a client program prints, for the block to read. It ends with the block.

    Its standard error goes to the log. If it fails, StepFailed has the last line.
    """
    messages = bytearray()

    def collect(stream: IO[bytes]) -> None:
        while block := stream.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
            messages.extend(block)
            del messages[:-MESSAGE_BYTES]

    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        expired = Timer(seconds, process.kill)
        collector = Thread(target=collect, args=[process.stderr])
        expired.start()
        collector.start()
        try:
            yield process.stdout
            code = process.wait()
        finally:
            expired.cancel()
            process.kill()
            collector.join()
    said = messages.decode(errors="replace").strip()
    if said:
        log(said)
    if code == -signal.SIGKILL:
        raise StepFailed(f"{command[0]} was killed; its time limit is {seconds:.0f} s")
    if code != 0:
        reason = printable(said.rpartition("\n")[2], REASON_CHARACTERS // 2)
        raise StepFailed(f"{reason} ({command[0]}, exit code {code})")
