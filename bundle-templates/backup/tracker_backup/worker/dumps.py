"""Dumps of MySQL, as mariadb-dump writes them: written so that MySQL imports them, and counted.

mariadb-dump writes each row on its own line and no raw line end inside a value. If it names the
columns, the first row follows them on the same line. The text of triggers, routines and events is
between two lines that set the delimiter. A dump comes from a
server that nobody trusts, so lines of any length and tables of any name are expected.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from typing import IO

from ..protocol import MOST_TABLES, table_name
from .service import StepFailed

BLOCK_BYTES = 1 << 20
HEADER_BYTES = 1 << 19  # of a statement's first line
ROW_BYTES = 64 << 20  # of a row with generated columns
LAST_LINE = b"-- Dump completed"


# ---------------------------------------------------------------- writing

NAME = rb"`(?:[^`]|``){1,600}`"
COLUMNS = rb"\(" + NAME + rb"(?:, " + NAME + rb"){0,5000}\)"
INSERT = re.compile(rb"INSERT INTO (" + NAME + rb") (?:" + COLUMNS + rb" )?VALUES[ \n]")
BODY, BODY_ENDS = b"DELIMITER ;;\n", b"DELIMITER ;\n"
# What matters in a row: an escaped byte, the begin or end of a text, the end of a value.
TOKEN = re.compile(rb"\\.|[',]", re.DOTALL)


def write_dump(
    stream: IO[bytes], output: IO[bytes], header: bytes, generated: Mapping[bytes, Collection[int]]
) -> None:
    """Copies a dump. Adds `header`, a statement, after its first line. MySQL refuses a value for a
    generated column, so such a value becomes DEFAULT. `generated` has the positions of these
    columns, from 0, by table. Then the dump must name all columns in its INSERTs.
    """
    output.write(stream.readline(HEADER_BYTES) + header)
    if not generated:
        return shutil.copyfileobj(stream, output, BLOCK_BYTES)
    columns: Collection[int] = ()  # of the table whose rows come now
    in_body, begins = False, True  # whether we are in a routine's text, and at a line's begin
    while line := stream.readline(ROW_BYTES):
        if begins:
            in_body = line == BODY or (in_body and line != BODY_ENDS)
            head = 0
            if not line.startswith(b"("):
                found = None if in_body else INSERT.match(line)
                name = found[1][1:-1].replace(b"``", b"`") if found else b""
                columns, head = generated.get(name, ()), found.end() if found else 0
            if columns and line.startswith(b"(", head):
                line = line[:head] + with_defaults(line[head:], columns)
        begins = line.endswith(b"\n")
        output.write(line)
    return None


def with_defaults(line: bytes, columns: Collection[int]) -> bytes:
    """A row, `(1,'a',2),` and a line end, with DEFAULT for the values of these columns."""
    if line[-3:] not in (b"),\n", b");\n"):
        raise StepFailed(f"a row of a table with generated columns has over {len(line) - 1} bytes")
    values, start, quoted = [], 1, False
    for token in TOKEN.finditer(line, 1, len(line) - 3):
        quoted ^= token[0] == b"'"
        if token[0] == b"," and not quoted:
            values.append(line[start : token.start()])
            start = token.end()
    values.append(line[start:-3])
    for column in columns:
        if column >= len(values):
            raise StepFailed("a row of the dump has fewer values than its table has columns")
        values[column] = b"DEFAULT"
    return b"(" + b",".join(values) + line[-3:]


# ---------------------------------------------------------------- counting

STATEMENT = re.compile(
    rb"\n(?:(?:CREATE TABLE|INSERT INTO) (" + NAME + rb")(?: \((?=\n)|"
    rb"(?: " + COLUMNS + rb")? (VALUES)(?: (?=(\())|(?=\n)))|DELIMITER ;;(?=\n))"
)
ROWS_END = b");\n"


def digest(stream: IO[bytes]) -> dict[str, int]:
    """The rows by table of a dump. Raises StepFailed if the dump is cut off."""
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
                end = ROWS_END if table else b"" if match[1] else b"\n" + BODY_ENDS
                if match[1]:
                    rows[match[1]] = rows.get(match[1], 0) + bool(match[3])
            else:
                done = max(done, len(text) - HEADER_BYTES)
                break
        if len(rows) > MOST_TABLES:
            raise StepFailed(f"the dump has more than {MOST_TABLES} tables")
    last = text.removesuffix(b"\n").rpartition(b"\n")[2]
    if end or not last.startswith(LAST_LINE):
        raise StepFailed("the dump is cut off: it does not end with '-- Dump completed'")
    by_name: dict[str, int] = {}
    for quoted, count in rows.items():
        name = table_name(quoted[1:-1].decode(errors="replace").replace("``", "`"))
        by_name[name] = by_name.get(name, 0) + count
    return by_name
