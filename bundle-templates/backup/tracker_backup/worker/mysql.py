"""MySQL: its client programs and its dumps.

Neither the server nor the content of its dumps is trusted. What it sends is bounded, and every call
has a time limit.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import IO, Any

from ..protocol import LARGEST, MOST_TABLES, REASON_CHARACTERS, Answer, printable, table_name
from .service import StepFailed, file_size_limit, log

CLIENT = Path(os.environ.get("BACKUP_CLIENT", "/run/client"))  # a tmpfs of its own
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
QUERY_SECONDS = 60
QUERY_BYTES = 1 << 23
DUMP_SECONDS = 43200
MESSAGE_BYTES = 4096  # how much of a program's standard error is kept
BLOCK_BYTES = 1 << 20
HEADER_BYTES = 1 << 16  # of a statement's first line

DUMP = "--single-transaction --quick --no-tablespaces --hex-blob"
QUERY = "--batch --raw --quick --skip-column-names --execute"
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
    answer.tools["mariadb-dump"] = printed(work, ["mariadb-dump", "--version"]).strip()
    with option_file(arguments) as options:
        answer.tables = {table_name(table): 0 for table in tables(work, options, name)}
        for what, everywhere, here in UNSEEN:
            query = GRANTS.format(everywhere, here)
            if number("the server's number of privileges", ask(work, options, name, query)) == 0:
                answer.warnings.append(
                    f"user {user} may not see {what} in database {name}: if there are any, the "
                    "backup lacks them"
                )
        size = ask(work, options, name, SIZE)
        answer.numbers["database_bytes"] = number("the size of the database", size)


def capture(work: Path, arguments: dict[str, Any], answer: Answer) -> None:
    """Writes database.sql, and torrents.sql if the scope leaves statistics out.

    Two dumps are needed to leave rows out, because --where applies to every table. Each is
    consistent in itself. The second one has the rows of torrents and all triggers, because a
    trigger must not exist before the rows are there.
    """
    name = arguments["name"]
    with option_file(arguments) as options:

        def take(file: str, words: str, *more: str) -> None:
            command = ["mariadb-dump", options, *DUMP.split(), *words.split(), *more, "--", name]
            with open(work / file, "wb") as output:
                run(command, output, arguments["limit_bytes"], DUMP_SECONDS)

        if arguments["scope"] == "full":
            take("database.sql", "--routines --triggers --events")
            return
        ignore = f"--ignore-table-data={name}."
        take("database.sql", "--routines --skip-triggers --events", f"{ignore}torrents")
        others = [ignore + table for table in tables(work, options, name) if table != "torrents"]
        take("torrents.sql", "--triggers --no-create-info", "--where=completed > 0", *others)


def examine(work: Path, arguments: dict[str, Any], answer: Answer) -> list[Path]:
    """Counts the rows of the dumps together."""
    files = [work / "database.sql", work / "torrents.sql"]
    files = files[:1] if arguments["scope"] == "full" else files
    for path in files:
        with open(path, "rb", buffering=0) as file:
            for table, rows in digest(file).items():
                answer.tables[table] = answer.tables.get(table, 0) + rows
    return files


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


def tables(work: Path, options: str, database: str) -> list[str]:
    """Names of the tables that the user sees. Raises StepFailed if one is no UTF-8."""
    lines = ask(work, options, database, TABLES).split()
    if len(lines) > MOST_TABLES:
        raise StepFailed(f"the database has more than {MOST_TABLES} tables")
    try:
        names = [bytes.fromhex(line).decode() for line in lines]
        if "\0" in "".join(names):
            raise ValueError("one has a zero byte")
    except ValueError as error:
        raise StepFailed(f"the server's names of tables cannot be read: {error}") from error
    return names


def number(what: str, text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text.strip(), re.ASCII) or int(text) > LARGEST:
        raise StepFailed(f"{what} is not a whole number: '{printable(text.strip(), 60)}'")
    return int(text)


def ask(work: Path, options: str, database: str, query: str) -> str:
    """The server's answer to one query."""
    return printed(work, ["mariadb", options, *QUERY.split(), query, "--", database])


def printed(work: Path, command: list[str]) -> str:
    with tempfile.TemporaryFile(dir=work) as output:
        run(command, output, QUERY_BYTES, QUERY_SECONDS)
        output.seek(0)
        return output.read().decode(errors="replace")


def run(command: list[str], output: IO[bytes], limit: int, seconds: float) -> None:
    """Runs a client program, and writes what it prints into a file of at most `limit` bytes.

    Its standard error goes to the log. If it fails, StepFailed has the last line.
    """
    with file_size_limit(limit):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, bufsize=0
        )
    expired = Timer(seconds, process.kill)
    expired.start()
    messages = b""
    try:
        assert process.stderr
        while block := process.stderr.read(BLOCK_BYTES):
            messages = (messages + block)[-MESSAGE_BYTES:]
        code = process.wait()
    finally:
        expired.cancel()
        process.kill()
    said = messages.decode(errors="replace").strip()
    if said:
        log(said)
    if code == -signal.SIGXFSZ:
        raise StepFailed(f"{command[0]} wrote more than {limit} bytes")
    if code == -signal.SIGKILL:
        raise StepFailed(f"{command[0]} was killed; its time limit is {seconds:.0f} s")
    if code != 0:
        reason = printable(said.rpartition("\n")[2], REASON_CHARACTERS // 2)
        raise StepFailed(f"{reason} ({command[0]}, exit code {code})")


# ---------------------------------------------------------------- dumps

# mariadb-dump writes each row on its own line and no raw line end inside a value. The text of
# triggers, routines and events is between two lines that set the delimiter.
STATEMENT = re.compile(
    rb"\n(?:(?:CREATE TABLE|INSERT INTO) `((?:[^`]|``){1,600})`"
    rb"(?: \(|(?: \([^\n]{1,64000}\))? (VALUES))|DELIMITER ;;)(?=\n)"
)
ROWS_END, BODY_END = b");\n", b"\nDELIMITER ;\n"


def digest(stream: IO[bytes]) -> dict[str, int]:
    """The rows by table of a dump. Raises StepFailed if the dump is cut off.

    It works on blocks, because a hostile dump may have lines of any length.
    """
    rows: dict[bytes, int] = {}
    table, end = b"", b""  # whose rows we are among, and what ends the present statement
    text, done = b"\n", 0
    while block := stream.read(BLOCK_BYTES):
        text, done = text[done:] + block, 0
        while True:
            if end:
                found = text.find(end, done)
                # A part of `end` may be at the end of the block.
                until = found if found >= 0 else max(done, len(text) - len(end))
                if table:
                    rows[table] += text.count(b"\n(", done, until + 1)
                if found < 0:
                    done = until
                    break
                done, end = found + len(end) - 1, b""
            elif match := STATEMENT.search(text, done):
                done, table = match.end(), match[1] if match[2] else b""
                end = ROWS_END if table else b"" if match[1] else BODY_END
                if match[1]:
                    rows.setdefault(match[1], 0)
            else:
                done = max(done, len(text) - HEADER_BYTES)
                break
        if len(rows) > MOST_TABLES:
            raise StepFailed(f"the dump has more than {MOST_TABLES} tables")
    last = text.removesuffix(b"\n").rpartition(b"\n")[2]
    if end or not last.startswith(b"-- Dump completed"):
        raise StepFailed("the dump is cut off: it does not end with '-- Dump completed'")
    by_name: dict[str, int] = {}
    for quoted, count in rows.items():
        name = table_name(quoted.decode(errors="replace").replace("``", "`"))
        by_name[name] = by_name.get(name, 0) + count
    return by_name
