"""SQLite: recovers, checks, counts and excerpts a captured database.

A service that was taken over can write any bytes into its database and its journals. So SQL runs on
a captured copy only, and no text from a database reaches SQLite's shell. A statement from
`sqlite_master` is executed alone, by `Connection.execute`, while an authorizer allows only that it
creates the one object it belongs to.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ..protocol import MOST_TABLES, Answer, printable, table_name
from .service import StepFailed, timed

LIMIT_SECONDS = 14400  # for the work with one connection
REPORT_CHARACTERS = 400
SQL_BYTES = 1_000_000  # of one statement; a schema with a longer one is refused
VALUE_BYTES = 100_000_000  # of one value or row; a database with a longer one is refused
CACHE_KIBIBYTES = 262144
# Mapping the file makes the check two to three times as fast. SQLite maps at most 2 GB. The page
# cache serves the rest.
MAPPED_BYTES = 2147418112
PROGRESS_STEPS = 100_000
MORE_PAGES = 1000  # what an excerpt may have beyond twice the pages of the whole database
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
JOURNALS = ("-journal", "-wal", "-shm")
# The first three must be set before the first page is written.
SETTINGS = ("page_size", "encoding", "auto_vacuum", "user_version", "application_id")
READ_ONLY = "mode=ro&immutable=1"  # for a checked database, which nobody writes

FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "fsdir"}
FORBIDDEN = {
    sqlite3.SQLITE_ATTACH,
    sqlite3.SQLITE_DETACH,
    sqlite3.SQLITE_CREATE_VTABLE,
    sqlite3.SQLITE_DROP_VTABLE,
    sqlite3.SQLITE_RECURSIVE,
}
CREATES = {
    "table": {sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX},  # with its own indexes
    "index": {sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_REINDEX},
    "view": {sqlite3.SQLITE_CREATE_VIEW},
    "trigger": {sqlite3.SQLITE_CREATE_TRIGGER},
}
READS = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT}
WRITES = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE}
ANALYZES = {*WRITES, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_ANALYZE, sqlite3.SQLITE_CREATE_TABLE}

# Text may hold bytes that are no UTF-8. Python reports a broken statement with several types.
FAILURES = (sqlite3.Error, sqlite3.Warning, ValueError, OSError)

Name = str | None
Rule = Callable[[int, str, Name, Name], bool]


# ---------------------------------------------------------------- jobs


def examine(work: Path, arguments: dict[str, Any], answer: Answer) -> list[Path]:
    """Turns database.db and its journals into one checked file, or into a checked excerpt of it."""
    os.environ["SQLITE_TMPDIR"] = str(work)  # temporary files can be large
    path, whole = work / "database.db", work / "whole.db"
    answer.warnings += check(path)
    if arguments["scope"] != "full":
        with timed(answer, "excerpt"):
            path.rename(whole)
            excerpt(whole, path)
            whole.unlink()
        check(path)
    with open(path, "rb") as file:
        answer.tables = digest(file)
    answer.tools["sqlite3"] = sqlite3.sqlite_version
    return [path]


def digest(file: IO[bytes]) -> dict[str, int]:
    """The rows by table of a checked database. SQLite opens the file by its name."""
    rows: dict[str, int] = {}
    failed = "the rows of the captured database cannot be counted"
    with database(Path(file.name), READ_ONLY, failed) as counted:
        tables = counted.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = [str(name) for (name,) in tables.fetchmany(MOST_TABLES + 1)]
        if len(names) > MOST_TABLES:
            raise StepFailed(f"the database has more than {MOST_TABLES} tables")
        authorize(counted, queries)
        for name in names:
            if not is_internal(name):
                (count,) = counted.execute(f"SELECT count(*) FROM {identifier(name)}").fetchone()
                rows[table_name(name)] = rows.get(table_name(name), 0) + count
    return rows


# ---------------------------------------------------------------- what SQLite may do


def authorize(connection: sqlite3.Connection, rule: Rule) -> None:
    """Lets SQLite prepare only what `rule` allows, and never what is forbidden.

    `rule` gets the action and its first argument, the database, and the view or trigger that
    contains the access.
    """

    def decide(action: int, first: Name, second: Name, database: Name, accessor: Name) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            allowed = (second or "").lower() not in FORBIDDEN_FUNCTIONS
        else:
            allowed = action not in FORBIDDEN and rule(action, first or "", database, accessor)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    connection.set_authorizer(decide)


def creates(entry: Entry) -> Rule:
    """A rule that allows to create this one object in the database `main`, and no query."""

    def rule(action: int, name: str, database: Name, _accessor: Name) -> bool:
        if database != "main":
            return False
        if action in CREATES[entry.kind]:
            automatic = entry.kind == "table" and name.startswith("sqlite_autoindex_")
            return name == entry.name or automatic
        if action in WRITES:
            return name in ("sqlite_master", "sqlite_schema")
        return action == sqlite3.SQLITE_READ

    return rule


def copies_rows(action: int, name: str, database: Name, accessor: Name) -> bool:
    """The rule for our own statements that read rows from `live` and write them into `main`."""
    if action == sqlite3.SQLITE_INSERT:
        return database == "main"
    if action == sqlite3.SQLITE_DELETE:
        return database == "main" and name == "sqlite_sequence"
    if action == sqlite3.SQLITE_PRAGMA:
        return name == "table_xinfo"
    return action in READS and accessor is None


def analyzes(action: int, _name: str, database: Name, _accessor: Name) -> bool:
    """The rule for ANALYZE, which writes the tables sqlite_stat1 and sqlite_stat4."""
    if action in ANALYZES:
        return database == "main"
    return action in READS


def queries(action: int, _name: str, _database: Name, accessor: Name) -> bool:
    """The rule for our own queries. Virtual tables need more than reading, views nothing."""
    return action not in READS or accessor is None


# ---------------------------------------------------------------- opening


@contextmanager
def database(path: Path, options: str, failed: str) -> Iterator[sqlite3.Connection]:
    """A connection with safe settings. `options` are the parameters of SQLite's URI, as `mode=ro`.

    A failure becomes StepFailed: `failed` and the reason. SQLite does not look at the clock during
    one call of a function, so only the host's time limit ends such a call.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    try:
        with closing(sqlite3.connect(uri(path, options), isolation_level=None, uri=True)) as opened:
            opened.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS_STEPS)
            if sys.version_info >= (3, 12):
                opened.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
            if sys.version_info >= (3, 11):
                opened.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES)
                opened.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)
            opened.execute("PRAGMA trusted_schema=OFF")
            opened.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
            yield opened
    except FAILURES as error:
        late = time.monotonic() > deadline
        reason = f"it took more than {LIMIT_SECONDS} s" if late else str(error)
        raise StepFailed(f"{failed}: {printable(reason, REPORT_CHARACTERS)}") from error


def uri(path: Path, options: str) -> str:
    """The URI of a file, whatever its name is."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def is_internal(name: str) -> bool:
    return name.lower().startswith("sqlite_")


# ---------------------------------------------------------------- check


def check(path: Path) -> list[str]:
    """Recovers a captured database from its journals, checks it, and leaves one file.

    Returns warnings for the run manifest. Raises StepFailed when the database is damaged.
    """
    warnings = disarm_journal(path)
    # A shared-memory index is never captured. SQLite makes a new one from the log.
    Path(f"{path}-shm").unlink(missing_ok=True)
    with database(path, "mode=rw", "integrity_check failed") as captured:
        captured.execute(f"PRAGMA mmap_size={MAPPED_BYTES}").fetchall()
        authorize(captured, queries)
        found = " ".join(str(row[0]) for row in captured.execute("PRAGMA integrity_check(10)"))
        if found == "ok":
            captured.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if found != "ok":
        raise StepFailed(f"integrity_check found: {printable(found, REPORT_CHARACTERS)}")
    # Some writers keep the journal and wipe its head. Such a journal is not hot.
    hot = first_bytes(Path(f"{path}-journal"), len(JOURNAL_MAGIC)) == JOURNAL_MAGIC
    if hot or first_bytes(Path(f"{path}-wal"), 1):
        raise StepFailed("the captured database still has a journal after recovery")
    for suffix in JOURNALS:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return warnings


def disarm_journal(path: Path) -> list[str]:
    """Removes the name of a super-journal from the end of the captured rollback journal.

    SQLite deletes the named file after the roll-back, and the name can be any path. Only a
    transaction across several databases has a super-journal. The name counts only when the last
    8 bytes are JOURNAL_MAGIC, so these are overwritten. Returns a warning, or nothing.
    """
    try:
        journal = os.open(f"{path}-journal", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    with open(journal, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END) - len(JOURNAL_MAGIC)
        if end < 0 or os.pread(journal, len(JOURNAL_MAGIC), end) != JOURNAL_MAGIC:
            return []
        os.pwrite(journal, bytes(len(JOURNAL_MAGIC)), end)
    warning = "the journal of the captured database names another file; the name is ignored, "
    return [warning + "because only a transaction across several databases has one"]


def first_bytes(path: Path, size: int) -> bytes:
    """The first bytes of a file; fewer when it is shorter or not there."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(size)
    return b""


# ---------------------------------------------------------------- excerpt


@dataclass(frozen=True)
class Entry:
    """One row of sqlite_master. `kind` is table, index, view or trigger."""

    kind: str
    name: str
    root_page: int
    sql: str


def excerpt(whole: Path, target: Path) -> None:
    """Makes a new database with the same schema and settings, and every row but some of torrents.

    The rows of torrents with completed = 0 are left out. `whole` was checked and has no journal.
    Raises StepFailed for a database with virtual tables or a schema that does more than it may.
    """
    failed = "the statistics could not be left out"
    with database(whole, READ_ONLY, failed) as source:
        (pages,) = source.execute("PRAGMA page_count").fetchone()
        values = [source.execute(f"PRAGMA {name}").fetchone()[0] for name in SETTINGS]
        entries = schema(source)
    with database(target, "mode=rwc", failed) as excerpted:
        excerpted.execute("PRAGMA synchronous=OFF")
        for name, value in zip(SETTINGS, values, strict=True):
            excerpted.execute(f"PRAGMA {name}='{value}'")
        # Values of a hostile schema, such as stored columns, must not fill the disk.
        excerpted.execute(f"PRAGMA max_page_count={2 * pages + MORE_PAGES}")
        excerpted.execute("ATTACH ? AS live", (uri(whole, READ_ONLY),))
        fill_excerpt(excerpted, entries)
    if first_bytes(whole, 19)[18:] == b"\2":
        with database(target, "mode=rw", failed) as finished:
            finished.execute("PRAGMA journal_mode=WAL")


def schema(connection: sqlite3.Connection) -> list[Entry]:
    """The rows of sqlite_master in their order.

    Raises StepFailed for a row of an unknown kind, and for a virtual table, which only its
    extension can write.
    """
    rows = connection.execute("SELECT type, name, rootpage, sql FROM sqlite_master ORDER BY rowid")
    entries = [
        Entry(str(kind), str(name), root or 0, str(sql or "")) for kind, name, root, sql in rows
    ]
    for entry in entries:
        if entry.kind not in CREATES:
            raise StepFailed(f"sqlite_master has a row of the kind {printable(entry.kind)}")
    virtual = [entry.name for entry in entries if entry.kind == "table" and entry.root_page == 0]
    if virtual:
        raise StepFailed(
            f"the database has virtual tables ({printable(', '.join(virtual))}), "
            "of which no excerpt can be made: set backup.database_scope to full"
        )
    return entries


def fill_excerpt(target: sqlite3.Connection, entries: list[Entry]) -> None:
    """Makes the objects of a schema in a new database, and copies the rows from `live`."""
    names = {entry.name for entry in entries}
    ours = [entry for entry in entries if entry.sql and not is_internal(entry.name)]
    target.execute("BEGIN")
    if "sqlite_sequence" in names:
        target.execute("CREATE TABLE main.a (a INTEGER PRIMARY KEY AUTOINCREMENT)")
        target.execute("DROP TABLE main.a")
    # Indexes, views and triggers would only be in the way of the rows.
    create(target, ours, "table")
    authorize(target, copies_rows)
    for table in (entry.name for entry in ours if entry.kind == "table"):
        copy_rows(target, table)
    if "sqlite_sequence" in names:
        target.execute("DELETE FROM main.sqlite_sequence")
        target.execute("INSERT INTO main.sqlite_sequence SELECT * FROM live.sqlite_sequence")
    for kind in ("index", "view", "trigger"):
        create(target, ours, kind)
    target.set_authorizer(None)
    target.execute("COMMIT")
    if "sqlite_stat1" in names:
        authorize(target, analyzes)
        target.execute("ANALYZE main")


def create(target: sqlite3.Connection, entries: list[Entry], kind: str) -> None:
    """Executes the statements of one kind, each alone. Raises StepFailed for one that does more."""
    for entry in (entry for entry in entries if entry.kind == kind):
        authorize(target, creates(entry))
        try:
            target.execute(entry.sql)
        except FAILURES as error:
            raise StepFailed(
                f"the {kind} {printable(entry.name)} cannot be made again from the text in "
                f"sqlite_master: {printable(str(error), REPORT_CHARACTERS)}"
            ) from error


def copy_rows(target: sqlite3.Connection, table: str) -> None:
    """Copies the rows of one table from `live` into `main`, without generated columns."""
    described = target.execute(f"PRAGMA main.table_xinfo({identifier(table)})").fetchall()
    columns = ", ".join(identifier(column[1]) for column in described if column[6] == 0)
    condition = " WHERE completed > 0" if table == "torrents" else ""
    target.execute(
        f"INSERT INTO main.{identifier(table)} ({columns}) "
        f"SELECT {columns} FROM live.{identifier(table)}{condition}"
    )
