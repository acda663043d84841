"""Everything that the backup container does with SQLite databases.

A service that was taken over can write any bytes into its database and its journals. No text from a
database reaches SQLite's shell. A statement from `sqlite_master` is executed alone, by
`Connection.execute`, while an authorizer allows only that it creates the one object it belongs to.

    sqlite_database.py copy FROM TO       a copy of a live database
    sqlite_database.py excerpt FROM TO    the same without the torrents that nobody completed
    sqlite_database.py check DATABASE     recover and check a captured database; leave one file
    sqlite_database.py count DATABASE     one line a table: rows, tab, name
    sqlite_database.py version            the version of SQLite

`copy` and `excerpt` only read FROM, in one transaction. They replace TO. `check` prints each
warning for the run manifest on its own line. Messages about errors go to standard error.
Exit codes: 0 success, 1 failed and may succeed later, 2 wrong usage, 3 will fail again.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

BUSY_SECONDS = 5
SCHEMA_SECONDS = 60  # for all statements that create a table, view or trigger
ROWS_SECONDS = 14400  # for copying and counting rows, and for building indexes
NAME_CHARACTERS = 256
REPORT_CHARACTERS = 400
SQL_BYTES = 1_000_000  # of one statement; a schema with a longer one is refused
CACHE_KIBIBYTES = 262144
# Mapping the file makes the check two to three times as fast. SQLite maps at most 2 GB. The page
# cache serves the rest.
MAPPED_BYTES = 2147418112
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
JOURNALS = ("-journal", "-wal", "-shm")
PROGRESS_STEPS = 100_000
MORE_PAGES = 1000  # what an excerpt may have beyond twice the pages of the live database

FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "fsdir"}
FORBIDDEN_ALWAYS = {
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
WRITES_SCHEMA = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE}
ANALYZES = {
    sqlite3.SQLITE_ANALYZE,
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
}

# Text may hold bytes that are no UTF-8. Python reports a broken statement with several types.
FAILURES = (sqlite3.Error, sqlite3.Warning, ValueError, OSError)


class Refused(Exception):
    """The database cannot be processed, now or later."""


class Failed(Exception):
    """The step failed. Another attempt may succeed."""


@dataclass(frozen=True)
class Entry:
    """One row of sqlite_master. `kind` is table, index, view or trigger."""

    kind: str
    name: str
    root_page: int
    sql: str


# ---------------------------------------------------------------- the authorizer


class Authorizer:
    """Decides what SQLite may do while it prepares a statement.

    `rule` gets the action and its first argument, the database and the accessor (the view or
    trigger that contains the access, or None). It says whether to allow the action. Whatever the
    rule says, FORBIDDEN_ALWAYS and FORBIDDEN_FUNCTIONS are refused.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.rule: Callable[[int, str, str | None, str | None], bool] = lambda *_: False
        connection.set_authorizer(self._decide)

    def _decide(
        self,
        action: int,
        first: str | None,
        second: str | None,
        database: str | None,
        accessor: str | None,
    ) -> int:
        name = (second if action == sqlite3.SQLITE_FUNCTION else first) or ""
        if action in FORBIDDEN_ALWAYS:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION:
            forbidden = name.lower() in FORBIDDEN_FUNCTIONS
            return sqlite3.SQLITE_DENY if forbidden else sqlite3.SQLITE_OK
        allowed = self.rule(action, name, database, accessor)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def creates(entry: Entry) -> Callable[[int, str, str | None, str | None], bool]:
    """A rule that allows to create this one object in the database `main`, and no query."""

    def rule(action: int, name: str, database: str | None, _accessor: str | None) -> bool:
        if database != "main":
            return False
        if action in CREATES[entry.kind]:
            automatic = entry.kind == "table" and name.startswith("sqlite_autoindex_")
            return name == entry.name or automatic
        if action in WRITES_SCHEMA:
            return name in ("sqlite_master", "sqlite_schema")
        return action == sqlite3.SQLITE_READ

    return rule


def copies_rows(action: int, name: str, database: str | None, accessor: str | None) -> bool:
    """The rule for our own statements that read rows from `live` and write them into `main`."""
    if action == sqlite3.SQLITE_READ:
        return accessor is None
    if action == sqlite3.SQLITE_INSERT:
        return database == "main"
    if action == sqlite3.SQLITE_DELETE:
        return database == "main" and name == "sqlite_sequence"
    if action == sqlite3.SQLITE_PRAGMA:
        return name == "table_xinfo"
    return action == sqlite3.SQLITE_SELECT and accessor is None


def analyzes(action: int, _name: str, database: str | None, _accessor: str | None) -> bool:
    """The rule for ANALYZE, which writes the tables sqlite_stat1 and sqlite_stat4."""
    if action in ANALYZES:
        return database == "main"
    return action in (sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT)


def queries(action: int, _name: str, _database: str | None, accessor: str | None) -> bool:
    """The rule for our own queries. Virtual tables need more than reading, views nothing."""
    return action not in (sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT) or accessor is None


# ---------------------------------------------------------------- opening


@contextmanager
def database(path: Path, options: str) -> Iterator[sqlite3.Connection]:
    """A connection with safe settings. `options` are the parameters of SQLite's URI, as `mode=ro`.

    Raises sqlite3.Error when SQLite cannot open the file.
    """
    connection = sqlite3.connect(
        uri(path, options), timeout=BUSY_SECONDS, isolation_level=None, uri=True
    )
    try:
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.execute("PRAGMA trusted_schema=OFF")
        if sys.version_info >= (3, 11):
            connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES)
        yield connection
    finally:
        connection.close()


def uri(path: Path, options: str) -> str:
    """The URI of a file, whatever its name is."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


def open_files() -> set[str]:
    """Paths of the regular files that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            if stat.S_ISREG(link.stat().st_mode):
                found.add(str(link.readlink()))
        except OSError:
            continue  # the descriptor that lists the directory
    return found


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A live database, read-only, with a transaction that is held until the block ends.

    The transaction has begun, so a writer cannot change what it reads. A service can replace its
    own files at any time, by links too. So we look at the files that SQLite really opened, and not
    at their names. Raises Refused when one of them is another file.
    """
    before = open_files()
    with database(path, "mode=ro") as source:
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        require_own_files(path, open_files() - before)
        yield source
        source.execute("COMMIT")


def require_own_files(path: Path, opened: set[str]) -> None:
    """Raises Refused unless the opened files are the database and files that belong to it."""
    name = str(path.absolute())
    others = opened - {name, *(name + suffix for suffix in JOURNALS)}
    if others or name not in opened:
        raise Refused(f"{name} leads to other files than its own; refused")


def remove(path: Path) -> None:
    """Removes a database with its journals; what is missing is no error."""
    for suffix in ("", *JOURNALS):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextmanager
def limited(connection: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Ends the statements of the block after so many seconds. Then it raises Refused."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS_STEPS)
    try:
        yield
    except (Refused, sqlite3.Error) as error:
        if time.monotonic() > deadline:
            raise Refused(f"a statement took more than {seconds:.0f} s") from error
        raise
    finally:
        connection.set_progress_handler(None, 0)


# ---------------------------------------------------------------- copy


def copy(live: Path, target: Path) -> None:
    """Copies a live database into the file `target`.

    One read transaction is held for the whole copy, so that a writer cannot make it start again.
    """
    remove(target)
    with reading(live) as source, database(target, "mode=rwc") as copied:
        source.backup(copied, pages=-1)


# ---------------------------------------------------------------- excerpt


def excerpt(live: Path, target: Path) -> None:
    """Makes a new database with the same schema and settings, and every row but some of torrents.

    The rows of torrents with completed = 0 are left out. Everything is read in one transaction.
    Raises Refused for a database with virtual tables or with a schema that does more than it may,
    and Failed when the schema changed meanwhile.
    """
    remove(target)
    with reading(live) as source:
        refuse_virtual_tables(live, schema(source, "main"))
        version = pragma(source, "schema_version")
        journal_mode = pragma(source, "journal_mode")
        settings = {name: pragma(source, name) for name in ("page_size", "encoding", "auto_vacuum")}
    with database(target, "mode=rwc") as excerpted:
        build_excerpt(excerpted, live, settings, version)
    if journal_mode == "wal":
        with database(target, "mode=rw") as finished:
            finished.execute("PRAGMA journal_mode=WAL")


def refuse_virtual_tables(path: Path, entries: list[Entry]) -> None:
    """Raises Refused when there is a virtual table, because only its extension can write it."""
    names = [entry.name for entry in entries if entry.kind == "table" and entry.root_page == 0]
    if names:
        raise Refused(
            f"{path} has virtual tables ({printable(', '.join(names))}), "
            "of which no excerpt can be made: set backup.database_scope to full"
        )


def build_excerpt(
    target: sqlite3.Connection, live: Path, settings: dict[str, object], version: object
) -> None:
    """Fills a new, empty database from `live`, in one transaction.

    `settings` must be set before the first page is written. `version` is the version of the schema
    that they belong to.
    """
    before = open_files()
    target.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
    target.execute("PRAGMA synchronous=OFF")
    for name, value in settings.items():
        target.execute(f"PRAGMA {name}={literal(value)}")
    target.execute("ATTACH ? AS live", (uri(live, "mode=ro"),))
    target.execute("BEGIN")
    if pragma(target, "live.schema_version") != version:
        raise Failed("the schema was changed meanwhile")
    require_own_files(live, open_files() - before)
    # Values of a hostile schema, such as stored columns, must not fill the disk.
    most = 2 * int(str(pragma(target, "live.page_count"))) + MORE_PAGES
    target.execute(f"PRAGMA main.max_page_count={most}")
    for name in ("user_version", "application_id"):
        target.execute(f"PRAGMA main.{name}={literal(pragma(target, f'live.{name}'))}")
    entries = schema(target, "live")
    refuse_virtual_tables(live, entries)
    names = {entry.name for entry in entries}
    if "sqlite_sequence" in names:
        target.execute("CREATE TABLE main.a (a INTEGER PRIMARY KEY AUTOINCREMENT)")
        target.execute("DROP TABLE main.a")

    # Indexes, views and triggers would only be in the way of the rows.
    authorizer = Authorizer(target)
    ours = [entry for entry in entries if entry.sql and not is_internal(entry.name)]
    tables = [entry for entry in ours if entry.kind == "table"]
    with limited(target, SCHEMA_SECONDS):
        create(target, authorizer, tables)
    authorizer.rule = copies_rows
    with limited(target, ROWS_SECONDS):
        for table in tables:
            copy_rows(target, table.name)
        if "sqlite_sequence" in names:
            target.execute("DELETE FROM main.sqlite_sequence")
            target.execute("INSERT INTO main.sqlite_sequence SELECT * FROM live.sqlite_sequence")
        create(target, authorizer, [entry for entry in ours if entry.kind == "index"])
    with limited(target, SCHEMA_SECONDS):
        create(target, authorizer, [entry for entry in ours if entry.kind == "view"])
        create(target, authorizer, [entry for entry in ours if entry.kind == "trigger"])
    target.set_authorizer(None)
    target.execute("COMMIT")
    if "sqlite_stat1" in names:
        Authorizer(target).rule = analyzes
        with limited(target, ROWS_SECONDS):
            target.execute("ANALYZE main")
        target.set_authorizer(None)


def create(target: sqlite3.Connection, authorizer: Authorizer, entries: list[Entry]) -> None:
    """Executes the statements of a schema, each alone. Raises Refused for one that does more."""
    for entry in entries:
        authorizer.rule = creates(entry)
        try:
            target.execute(entry.sql)
        except FAILURES as error:
            raise Refused(
                f"the {entry.kind} {printable(entry.name)} cannot be made again from the text in "
                f"sqlite_master: {error}"
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


def schema(connection: sqlite3.Connection, name: str) -> list[Entry]:
    """The rows of sqlite_master of one database of the connection, in their order.

    Raises Refused for a row of an unknown kind.
    """
    rows = connection.execute(
        f"SELECT type, name, rootpage, sql FROM {name}.sqlite_master ORDER BY rowid"
    )
    entries = [Entry(str(kind), str(name), root or 0, sql or "") for kind, name, root, sql in rows]
    for entry in entries:
        if entry.kind not in CREATES:
            raise Refused(f"sqlite_master has a row of the kind {printable(entry.kind)}")
    return entries


def is_internal(name: str) -> bool:
    """Whether a table belongs to SQLite itself."""
    return name.lower().startswith("sqlite_")


def pragma(connection: sqlite3.Connection, name: str) -> object:
    """The value of one of SQLite's settings."""
    schema_name, dot, setting = name.rpartition(".")
    row = connection.execute(f"PRAGMA {schema_name}{dot}{setting}").fetchone()
    return row[0] if row else None


def identifier(name: str) -> str:
    """A name, quoted for a statement."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """The value of a setting as it stands in a statement: a whole number, or quoted text."""
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


# ---------------------------------------------------------------- check


def check(path: Path) -> list[str]:
    """Recovers a captured database from its journals, checks it, and leaves one file.

    Returns warnings for the run manifest. Raises Failed when the database is damaged, and Refused
    when one of its files is no regular file.
    """
    require_regular_files(path)
    warnings = disarm_journal(path)
    # A shared-memory index is never captured. SQLite makes a new one from the log.
    Path(f"{path}-shm").unlink(missing_ok=True)
    try:
        with database(path, "mode=rw") as captured:
            captured.execute(f"PRAGMA cache_size=-{CACHE_KIBIBYTES}")
            captured.execute(f"PRAGMA mmap_size={MAPPED_BYTES}").fetchall()
            Authorizer(captured).rule = queries
            rows = captured.execute("PRAGMA integrity_check").fetchall()
            answer = " ".join(str(row[0]) for row in rows)
            if answer == "ok":
                captured.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except FAILURES as error:
        raise Failed(f"integrity_check failed: {error}") from error
    if answer != "ok":
        raise Failed(f"integrity_check found: {printable(answer, REPORT_CHARACTERS)}")
    log, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    # Some writers keep the journal and wipe its head. Such a journal is not hot.
    hot = journal.exists() and first_bytes(journal, len(JOURNAL_MAGIC)) == JOURNAL_MAGIC
    if hot or (log.exists() and log.stat().st_size > 0):
        raise Failed("the captured database still has a journal after recovery")
    for suffix in JOURNALS:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return warnings


def require_regular_files(path: Path) -> None:
    """Raises Refused when the database or a file beside it is a link, a directory or a device.

    SQLite would follow a link and write to another file.
    """
    for suffix in ("", *JOURNALS):
        try:
            status = Path(f"{path}{suffix}").lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Refused(f"{path}{suffix} is not a regular file of its own")


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
    try:
        end = os.fstat(journal).st_size - len(JOURNAL_MAGIC)
        if end < 0 or os.pread(journal, len(JOURNAL_MAGIC), end) != JOURNAL_MAGIC:
            return []
        os.pwrite(journal, bytes(len(JOURNAL_MAGIC)), end)
    finally:
        os.close(journal)
    warning = (
        "the journal of the captured database names another file; the name is ignored, "
        "because only a transaction across several databases has one"
    )
    return [warning]


def first_bytes(path: Path, size: int) -> bytes:
    """The first bytes of a file; fewer when it is shorter."""
    with path.open("rb") as file:
        return file.read(size)


# ---------------------------------------------------------------- count


def count(path: Path) -> list[str]:
    """One line a table of a checked database: rows, tab, printable name.

    The file must be alone: journals beside it are ignored. Raises Failed when a table cannot be
    counted.
    """
    lines = []
    with database(path, "mode=ro&immutable=1") as counted:
        tables = counted.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        Authorizer(counted).rule = queries
        with limited(counted, ROWS_SECONDS):
            for (table,) in tables:
                if is_internal(table):
                    continue
                query = f"SELECT count(*) FROM {identifier(table)}"
                (rows,) = counted.execute(query).fetchone()
                lines.append(f"{rows}\t{printable(table)}")
    return lines


def printable(text: str, characters: int = NAME_CHARACTERS) -> str:
    """At most so many characters, with a space for each one that cannot be printed."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:characters])


# ---------------------------------------------------------------- main


def run(command: str, paths: list[Path]) -> list[str]:
    """Does what the command line says, and returns the lines for standard output."""
    match command, paths:
        case "copy", [live, target]:
            copy(live, target)
        case "excerpt", [live, target]:
            excerpt(live, target)
        case "check", [path]:
            return check(path)
        case "count", [path]:
            return count(path)
        case "version", []:
            return [sqlite3.sqlite_version]
        case _:
            raise SystemExit(2)
    return []


def main() -> int:
    """Prints the answer, or why there is none; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    command, paths = (sys.argv[1:2] or [""])[0], [Path(name) for name in sys.argv[2:]]
    try:
        lines = run(command, paths)
    except Refused as refused:
        print(printable(str(refused), 4 * REPORT_CHARACTERS), file=sys.stderr)
        return 3
    except (Failed, *FAILURES) as failure:
        print(printable(str(failure), 4 * REPORT_CHARACTERS), file=sys.stderr)
        return 1
    for line in lines:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
