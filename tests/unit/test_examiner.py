"""The examiner on captured SQLite databases. A taken-over service wrote some of them."""

from __future__ import annotations

import gzip
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unit.examining import ROWS, Worker, ask, make_database

# 5,001 committed torrents more; then it stops in a transaction that has reached the files.
WRITER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(f"PRAGMA journal_mode={sys.argv[2]}")
database.execute("PRAGMA cache_size=2")
database.execute("INSERT INTO torrents (info_hash, completed) VALUES ('dd', 2)")
rows = [(f"x{i}",) for i in range(5000)]
database.execute("BEGIN")
database.executemany("INSERT INTO torrents (info_hash, completed) VALUES (?, 0)", rows)
database.execute("COMMIT")
database.execute("BEGIN")
database.execute("UPDATE torrents SET completed = 99")
print("in a transaction", flush=True)
time.sleep(60)
"""
COMMITTED = ROWS | {"torrents": 5004}


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path / "work")


def kill_writer(path: Path, journal_mode: str) -> None:
    """Leaves a database as a writer does that was killed in a transaction."""
    make_database(path)
    command = [sys.executable, "-c", WRITER, str(path), journal_mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"in a transaction\n"
        writer.kill()


def sql(path: Path, script: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(script)
    database.close()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def alone(worker: Worker) -> bool:
    return [path.name for path in worker.work.iterdir()] == ["database.db"]


# ---------------------------------------------------------------- recovering and checking


def test_a_sound_database_is_counted_and_left_as_one_file(worker: Worker) -> None:
    make_database(worker.database)
    before = worker.database.read_bytes()
    answer = worker.examine()
    assert (answer.code, answer.tables, answer.warnings) == (0, ROWS, [])
    assert answer.tools == {"sqlite3": sqlite3.sqlite_version}
    assert set(answer.milliseconds) == {"check"}
    assert alone(worker)
    assert worker.database.read_bytes() == before


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_checked_database_is_compressed_beside_itself(worker: Worker, compression: str) -> None:
    make_database(worker.database)
    answer = worker.compress(compression, "database.db")
    assert (answer.code, set(answer.milliseconds)) == (0, {"compress"})
    packed = beside(worker.database, ".gz" if compression == "gzip" else ".zst")
    unpack = ["zstd", "-dcq"] if compression == "zstd" else ["gzip", "-dc"]
    unpacked = subprocess.run([*unpack, packed], capture_output=True, check=True).stdout
    assert unpacked == worker.database.read_bytes()


def test_a_hot_journal_is_rolled_back(worker: Worker) -> None:
    kill_writer(worker.database, "DELETE")
    assert beside(worker.database, "-journal").stat().st_size > 0
    answer = worker.examine()
    assert (answer.code, answer.tables, answer.warnings) == (0, COMMITTED, [])
    assert ask(worker.database, "SELECT count(*), max(completed) FROM torrents") == (5004, 7)
    assert alone(worker)


@pytest.mark.parametrize("shared_memory", ["with -shm", "without -shm", "with a hostile -shm"])
def test_a_log_is_recovered_with_every_commit_and_no_more(
    worker: Worker, shared_memory: str
) -> None:
    kill_writer(worker.database, "WAL")
    assert beside(worker.database, "-wal").stat().st_size > 0
    if shared_memory == "without -shm":
        beside(worker.database, "-shm").unlink()
    elif shared_memory == "with a hostile -shm":
        beside(worker.database, "-shm").write_bytes(os.urandom(32768))
    answer = worker.examine()
    assert (answer.code, answer.tables) == (0, COMMITTED)
    assert ask(worker.database, "SELECT count(*), max(completed) FROM torrents") == (5004, 7)
    assert alone(worker)


def test_a_log_database_that_was_closed_cleanly_stays_one(worker: Worker) -> None:
    make_database(worker.database, "PRAGMA journal_mode=WAL;")
    assert not beside(worker.database, "-wal").exists()
    assert worker.examine().tables == ROWS
    assert worker.database.read_bytes()[18:20] == b"\2\2"
    assert alone(worker)


@pytest.mark.parametrize("mode", ["PERSIST", "TRUNCATE"])
def test_a_journal_that_its_writer_keeps_is_no_obstacle(worker: Worker, mode: str) -> None:
    make_database(
        worker.database,
        f"PRAGMA journal_mode={mode}; INSERT INTO torrents VALUES (4, 'dd', 2);",
    )
    assert beside(worker.database, "-journal").exists()
    answer = worker.examine()
    assert (answer.code, answer.tables) == (0, ROWS | {"torrents": 4})
    assert alone(worker)


def test_an_empty_journal_is_no_obstacle(worker: Worker) -> None:
    make_database(worker.database)
    beside(worker.database, "-journal").touch()
    assert worker.examine().tables == ROWS
    assert alone(worker)


def damage(path: Path) -> None:
    """Overwrites ten pages of a larger database."""
    rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
    make_database(
        path,
        f"{rows} INSERT INTO torrents (info_hash, completed) SELECT hex(randomblob(20)), i FROM n;",
    )
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(os.urandom(10 * 4096))


@pytest.mark.parametrize("scope", ["full", "exclude-statistics"])
def test_a_corrupt_database_fails(worker: Worker, scope: str) -> None:
    damage(worker.database)
    answer = worker.examine(scope)
    assert (answer.code, answer.tables) == (1, {})
    assert "integrity_check" in answer.reason


def test_a_database_that_reads_well_and_is_wrong_all_the_same_fails(worker: Worker) -> None:
    text = "replace(sql, 'completed INTEGER', 'completed INTEGER CHECK (completed < 5)')"
    make_database(
        worker.database, f"PRAGMA writable_schema=ON; UPDATE sqlite_master SET sql = {text};"
    )
    assert "integrity_check found: CHECK constraint failed" in worker.examine().reason


def test_a_database_that_was_cut_short_fails(worker: Worker) -> None:
    os.truncate(make_database(worker.database), 8192)
    assert worker.examine().code == 1


def test_a_file_that_is_no_database_fails(worker: Worker) -> None:
    worker.database.write_bytes(b"x" * 8192)
    assert worker.examine().reason.startswith("integrity_check failed: file is not a database")


def test_nothing_to_examine_fails(worker: Worker) -> None:
    assert worker.examine().reason.startswith("integrity_check failed: unable to open")


# ---------------------------------------------------------------- hostile files


def name_super_journal(journal: Path, name: Path) -> None:
    """Ends the journal as if the transaction spanned several databases."""
    text = str(name).encode()
    with journal.open("r+b") as file:
        magic = file.read(8)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack(">I", (1 << 30) // 4096 + 1) + text)
        file.write(struct.pack(">II", len(text), sum(text)) + magic)


@pytest.mark.parametrize("scope", ["full", "exclude-statistics"])
def test_a_journal_that_names_another_file_is_rolled_back_and_that_file_stays(
    worker: Worker, tmp_path: Path, scope: str
) -> None:
    victim, unprotected = tmp_path / "older.db.gz", tmp_path / "unprotected.db"
    victim.write_text("precious")
    kill_writer(worker.database, "DELETE")
    name_super_journal(beside(worker.database, "-journal"), victim)
    # SQLite by itself deletes the file.
    for suffix in ("", "-journal"):
        beside(unprotected, suffix).write_bytes(beside(worker.database, suffix).read_bytes())
    sql(unprotected, "SELECT * FROM torrents;")
    assert not victim.exists()
    victim.write_text("precious")
    answer = worker.examine(scope)
    assert victim.read_text() == "precious"
    assert answer.tables["torrents"] == (5004 if scope == "full" else 3)
    assert len(answer.warnings) == 1
    assert "captured database names another file; the name is ignored" in answer.warnings[0]


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "a symlink": lambda path, victim: path.symlink_to(victim),
    "a second name": lambda path, victim: path.hardlink_to(victim),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a directory": lambda path, _: path.mkdir(),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
def test_a_captured_file_of_another_kind_is_refused_and_left_alone(
    worker: Worker, tmp_path: Path, suffix: str, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    odd = beside(worker.database, suffix)
    if suffix:
        make_database(worker.database)
    MAKERS[kind](odd, victim)
    answer = worker.examine()
    assert answer.reason == f"{odd.name} is not a regular file of its own"
    assert victim.read_text() == "precious"


def test_a_journal_cannot_make_the_database_larger_than_the_limit(worker: Worker) -> None:
    kill_writer(worker.database, "DELETE")
    with beside(worker.database, "-journal").open("r+b") as journal:
        journal.seek(16)
        journal.write(struct.pack(">I", 1 << 28))  # the pages before the transaction: 1 TB
    answer = worker.examine(limit_bytes=10_000_000)
    assert answer.code == 1
    assert answer.reason.startswith("integrity_check failed: ")
    assert worker.database.stat().st_size < 10_000_000


def test_a_log_cannot_make_the_database_larger_than_the_limit(worker: Worker) -> None:
    kill_writer(worker.database, "WAL")
    limit = beside(worker.database, "-wal").stat().st_size // 8
    assert worker.database.stat().st_size < limit
    answer = worker.examine(limit_bytes=limit)
    assert answer.code == 1
    assert worker.database.stat().st_size <= limit


def test_a_value_that_is_too_long_is_refused_before_it_takes_memory(worker: Worker) -> None:
    check = "CHECK (instr(zeroblob(900000000), zeroblob(400000000) || x''01'') = 0)"
    make_database(
        worker.database,
        "PRAGMA writable_schema=ON; UPDATE sqlite_master "
        f"SET sql = replace(sql, 'valid_until INTEGER', 'valid_until INTEGER {check}') "
        "WHERE name = 'keys'; PRAGMA writable_schema=OFF;",
    )
    sql(worker.database, "PRAGMA ignore_check_constraints=ON; INSERT INTO keys VALUES (1, 'k', 1);")
    started = time.monotonic()
    answer = worker.examine()
    assert "string or blob too big" in answer.reason
    assert time.monotonic() - started < 10


def test_a_check_has_a_time_limit(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    make_database(
        worker.database,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)"
        " INSERT INTO torrents (info_hash, completed) SELECT hex(randomblob(20)), i FROM n;",
    )
    monkeypatch.setattr(worker.module("sqlite"), "LIMIT_SECONDS", -1)
    assert worker.examine().reason == "integrity_check failed: it took more than -1 s"


# ---------------------------------------------------------------- counting

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
NAMES = {
    "it's": "it's",
    'two"quotes': 'two"quotes',
    "); DROP TABLE keys; --": "); DROP TABLE keys; --",
    ".shell touch pwned": ".shell touch pwned",
    "-- comment": "-- comment",
    " spaces ": " spaces ",
    "$(touch pwned)": "$(touch pwned)",
    "%s\\n": "%s\\n",
    "sqliteX": "sqliteX",
    "ключ": "ключ",
    "line\n.shell touch pwned\nend": "line .shell touch pwned end",
    "x" * 3000: "x" * 256,
    "a\r\v\f\033[31m\x85\u2028b": "a    [31m  b",
}


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def test_rows_are_counted_whatever_a_table_is_called(worker: Worker) -> None:
    tables = "".join(
        f"CREATE TABLE {quoted(name)} (a); INSERT INTO {quoted(name)} VALUES (1), (2);"
        for name in NAMES
    )
    auto = "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT);"
    make_database(worker.database, tables + auto)
    answer = worker.examine()
    assert answer.tables == {**ROWS, "auto": 0, **dict.fromkeys(NAMES.values(), 2)}


def test_tables_that_look_alike_are_counted_together(worker: Worker) -> None:
    make_database(
        worker.database, 'CREATE TABLE "a\nb" AS SELECT 1; CREATE TABLE "a b" AS SELECT 2;'
    )
    assert worker.examine().tables["a b"] == 2


def test_a_query_of_a_view_that_never_ends_is_not_counted_as_a_table(worker: Worker) -> None:
    make_database(
        worker.database,
        "PRAGMA writable_schema=ON; CREATE TABLE endless (i); UPDATE sqlite_master SET "
        f"type = 'table', sql = 'CREATE VIEW endless AS {ENDLESS}' WHERE name = 'endless';",
    )
    with (
        worker.database.open("rb") as file,
        pytest.raises(worker.module("service").StepFailed, match="cannot be counted"),
    ):
        worker.module("sqlite").digest(file)


def many_tables(path: Path, number: int) -> None:
    create = "".join(f"CREATE TABLE a_table_with_a_long_name_{n} (a);" for n in range(number))
    make_database(path, f"BEGIN; {create} COMMIT;")


def test_the_tables_of_a_database_with_very_many_are_all_found(worker: Worker) -> None:
    many_tables(worker.database, 997)
    assert len(worker.examine().tables) == 1000


def test_more_tables_than_an_answer_may_have_are_refused(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.module("sqlite"), "MOST_TABLES", 20)
    many_tables(worker.database, 17)
    assert worker.examine().code == 0
    many_tables(worker.database, 18)
    assert worker.examine().reason == "the database has more than 20 tables"


@pytest.mark.parametrize("name", ["NULL", "x'ff00'", "CAST(x'ff' AS TEXT)", "7"])
def test_a_table_whose_name_is_no_text_is_no_traceback(worker: Worker, name: str) -> None:
    make_database(
        worker.database,
        f"PRAGMA writable_schema=ON; UPDATE sqlite_master SET name = {name} WHERE name = 'keys';",
    )
    assert worker.examine().code == 1


# ---------------------------------------------------------------- without statistics

# Settings, then tables, rows, the rest.
ODD_TABLE = quoted('it\'s "a"\n.shell touch pwned; $(touch pwned)')
ELABORATE = f'''
    PRAGMA page_size=8192; PRAGMA encoding='UTF-16le'; PRAGMA auto_vacuum=INCREMENTAL;
    PRAGMA user_version=-7; PRAGMA application_id=1234;
    CREATE TABLE dropped (id INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE dropped;
    CREATE TABLE torrents (id INTEGER PRIMARY KEY AUTOINCREMENT,
        info_hash VARCHAR(40) NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL);
    CREATE INDEX "by ""completed""" ON torrents (completed) WHERE completed > 0;
    CREATE TABLE whitelist (id INTEGER PRIMARY KEY AUTOINCREMENT,
        info_hash VARCHAR(40) NOT NULL UNIQUE);
    CREATE TABLE keys (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
        valid_until INTEGER) STRICT;
    CREATE TABLE {ODD_TABLE} ("a ""b""'; --" TEXT, completed INTEGER);
    CREATE TABLE "%Q;%s" (a, b AS (a * 2), c AS (a * 3) STORED, d BLOB);
    CREATE TABLE flat (a TEXT, b, PRIMARY KEY (b, a)) WITHOUT ROWID; -- with a comment
    CREATE INDEX by_expression ON flat (lower(a));
    INSERT INTO torrents (info_hash, completed)
        VALUES ('aa', 1), ('bb', 0), ('cc', 7), ('dd', 0), ('ee', 0);
    DELETE FROM torrents WHERE info_hash = 'ee';
    INSERT INTO whitelist (info_hash) VALUES ('aa'), ('bb');
    INSERT INTO keys (id, key, valid_until) VALUES (41, 'k', NULL);
    DELETE FROM keys WHERE id = 41;
    INSERT INTO keys (key) VALUES ('l');
    INSERT INTO {ODD_TABLE} VALUES ('line\n.shell touch pwned', 0), (NULL, 1);
    INSERT INTO "%Q;%s" (a, d) VALUES (1, x'00ff0a'), ('ключ', 1e300), (NULL, -0.5);
    INSERT INTO flat VALUES ('x', 2), ('', 0), ('X', 1);
    ANALYZE;
    CREATE VIEW completed AS SELECT * FROM torrents WHERE completed > 0;
    CREATE TRIGGER no_more BEFORE INSERT ON torrents
        BEGIN SELECT RAISE(ABORT, 'a trigger fired'); END;
    CREATE TRIGGER through_the_view INSTEAD OF DELETE ON completed
        BEGIN DELETE FROM torrents WHERE id = OLD.id; END;
'''
SETTINGS = (
    "page_size",
    "encoding",
    "auto_vacuum",
    "user_version",
    "application_id",
    "journal_mode",
)


def elaborate_database(path: Path) -> None:
    """The tracker's tables, and all else that a database can have."""
    path.unlink(missing_ok=True)
    sql(path, ELABORATE)
    sql(path, "CREATE VIEW commented AS SELECT 1 -- to its end")


def content(path: Path) -> list[str]:
    """The settings, the schema and every row."""
    database = sqlite3.connect(path)
    try:
        settings = [repr(database.execute(f"PRAGMA {name}").fetchone()) for name in SETTINGS]
        schema = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        tables = [name for kind, name, _, _ in schema if kind == "table"]
        rows = [
            f"{name}: {row}"
            for name in tables
            for row in database.execute(f"SELECT * FROM {quoted(name)}")
        ]
        return settings + sorted(map(repr, schema)) + sorted(rows)
    finally:
        database.close()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_an_excerpt_has_every_row_but_for_torrents_that_were_never_completed(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    elaborate_database(worker.database)
    sql(worker.database, f"PRAGMA journal_mode={mode};")
    expected = tmp_path / "expected.db"
    expected.write_bytes(worker.database.read_bytes())
    answer = worker.examine("exclude-statistics")
    assert (answer.code, answer.reason, answer.warnings) == (0, "", [])
    assert (answer.tables["torrents"], answer.tables["whitelist"]) == (2, 2)
    assert "excerpt" in answer.milliseconds
    assert alone(worker)
    assert ask(worker.database, "PRAGMA integrity_check") == "ok"
    assert ask(worker.database, "SELECT group_concat(info_hash) FROM torrents") == "aa,cc"
    for table, sequence in {"torrents": 5, "keys": 42}.items():
        query = f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'"
        assert ask(worker.database, query) == sequence
    sql(expected, "DELETE FROM torrents WHERE completed = 0; ANALYZE;")
    assert content(worker.database) == content(expected)
    assert not list(tmp_path.rglob("*pwned*"))


def test_an_excerpt_has_the_journals_part_of_a_captured_database(worker: Worker) -> None:
    kill_writer(worker.database, "DELETE")
    answer = worker.examine("exclude-statistics")
    assert answer.tables == ROWS | {"torrents": 3}
    query = "SELECT group_concat(info_hash || completed) FROM torrents"
    assert ask(worker.database, query) == "aa1,cc7,dd2"


def test_a_database_with_a_virtual_table_is_refused_for_an_excerpt_only(worker: Worker) -> None:
    make_database(worker.database, "CREATE VIRTUAL TABLE words USING fts5(word);")
    before = worker.database.read_bytes()
    reason = worker.examine("exclude-statistics").reason
    assert "virtual tables (words)" in reason
    assert "set backup.database_scope to full" in reason
    (worker.work / "whole.db").unlink()
    worker.database.write_bytes(before)
    answer = worker.examine("full")
    assert (answer.code, answer.tables["torrents"], answer.tables["words"]) == (0, 3, 0)


def test_torrents_without_a_column_completed_fail_an_excerpt_and_the_reason_is_said(
    worker: Worker,
) -> None:
    make_database(worker.database, "ALTER TABLE torrents RENAME COLUMN completed TO finished;")
    reason = worker.examine("exclude-statistics").reason
    assert reason.startswith("the statistics could not be left out: ")
    assert "completed" in reason


def write_schema(path: Path, expression: str) -> Path:
    """A database in which the text of the table `keys` is an SQL expression's value."""
    script = f"UPDATE sqlite_master SET sql = {expression} WHERE name = 'keys';"
    return make_database(path, f"PRAGMA writable_schema=ON; {script}")


def excerpt(worker: Worker, hostile: Path) -> str:
    """Why an excerpt of this database is refused."""
    sqlite = worker.module("sqlite")
    target = worker.work / "excerpt.db"
    target.unlink(missing_ok=True)
    with pytest.raises(worker.module("service").StepFailed) as failure:
        sqlite.excerpt(hostile, target)
    return str(failure.value)


@pytest.mark.parametrize(
    "text",
    ["; CREATE TABLE pwned (a)", ";\n.shell touch {}", ";\n.output {}", ";\n.trace {}"],
)
def test_a_schema_whose_text_holds_more_than_its_statement_is_not_obeyed(
    worker: Worker, tmp_path: Path, text: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    hostile = write_schema(tmp_path / "hostile.db", f"sql || '{text.format(victim)}'")
    assert "the table keys cannot be made again from the text in sqlite_master" in excerpt(
        worker, hostile
    )
    hostile.rename(worker.database)
    assert worker.examine("exclude-statistics").code == 1
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "text",
    [
        "ATTACH '{}' AS other",
        "PRAGMA main.user_version=7",
        "VACUUM INTO '{}'",
        "CREATE TABLE other (a)",
        "CREATE TABLE live.keys (a)",
        "CREATE TEMP TABLE keys (a)",
        "CREATE VIEW keys AS SELECT 1",
        "DROP TABLE torrents",
        f"CREATE TABLE keys AS {ENDLESS}",
        "CREATE TABLE keys AS SELECT * FROM torrents",
        "INSERT INTO torrents VALUES (9, 9, 9)",
        "SELECT load_extension('x')",
        "CREATE TABLE keys (a CHECK (load_extension(a)))",
        "COMMIT",
        "CREATE TABLE keys (a DEFAULT (fts3_tokenizer('x')))",
    ],
)
def test_the_text_of_a_schema_can_do_no_more_than_make_its_own_object(
    worker: Worker, tmp_path: Path, text: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    literal = text.format(victim).replace("'", "''")
    assert excerpt(worker, write_schema(tmp_path / "hostile.db", f"'{literal}'"))
    assert victim.read_text() == "precious"


def test_a_schema_whose_text_is_no_text_is_no_traceback(worker: Worker, tmp_path: Path) -> None:
    hostile = write_schema(tmp_path / "hostile.db", "CAST(sql AS BLOB)")
    assert "the table keys cannot be made again from the text in sqlite_master" in excerpt(
        worker, hostile
    )


@pytest.mark.parametrize("case", ["sequence", "twin", "stored"])
def test_rows_of_a_view_are_not_read_and_an_excerpt_cannot_fill_the_disk(
    worker: Worker, tmp_path: Path, case: str
) -> None:
    hostile = make_database(tmp_path / "hostile.db")
    database = sqlite3.connect(hostile, isolation_level=None)
    database.execute("PRAGMA writable_schema=ON")

    def row(*values: object) -> None:
        database.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", values)

    values = f"(VALUES (1){', (1)' * 399})"
    select = f"SELECT hex(zeroblob(500)) AS name, 1 AS seq FROM {', '.join([values] * 6)}"
    if case == "sequence":
        row("view", *["sqlite_sequence"] * 2, 0, f"CREATE VIEW sqlite_sequence AS {select}")
    elif case == "twin":
        row("view", "v", "v", 0, f"CREATE VIEW v AS {select}")
        row("table", "v", "v", 2, "CREATE TABLE IF NOT EXISTS v (name, seq)")
    else:
        database.execute("CREATE TABLE g (a)")
        database.executemany("INSERT INTO g VALUES (?)", [(number,) for number in range(100)])
        stored = "CREATE TABLE g (a, b AS (zeroblob(20000000)) STORED)"
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'g'", (stored,))
    database.close()
    started = time.monotonic()
    assert excerpt(worker, hostile)
    assert time.monotonic() - started < 20
    target = worker.work / "excerpt.db"
    assert not target.exists() or target.stat().st_size < 100_000_000


def use_compressor(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program in the place of pigz."""
    (path / "pigz").write_text(f"#!/bin/sh\n{script}\n")
    (path / "pigz").chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")


def test_a_compressor_that_fails_fails_the_job(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_database(worker.database)
    use_compressor(tmp_path, monkeypatch, "exit 1")
    reason = worker.compress("gzip", "database.db").reason
    assert reason == "compressing into database.db.gz failed; the message is in the log"


def test_a_compressed_file_that_does_not_read_back_fails_the_job(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_database(worker.database)
    script = "case $* in *--test*) exec gzip --test ;; *) gzip | head -c 100 ;; esac"
    use_compressor(tmp_path, monkeypatch, script)
    reason = worker.compress("gzip", "database.db").reason
    assert reason == "compressing into database.db.gz failed; the message is in the log"


def test_what_is_compressed_cannot_exceed_the_limit(worker: Worker) -> None:
    make_database(worker.database, "CREATE TABLE b AS SELECT randomblob(1000000);")
    answer = worker.compress("gzip", "database.db", limit_bytes=500_000)
    assert answer.code == 1
    packed = beside(worker.database, ".gz")
    assert packed.stat().st_size <= 500_000
    with pytest.raises(EOFError):
        gzip.decompress(packed.read_bytes())
