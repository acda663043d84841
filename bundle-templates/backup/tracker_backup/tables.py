"""Which tables the database of a run has to have, compared with the last good run."""

from __future__ import annotations

from collections.abc import Collection

from .host import Refused
from .protocol import table_name

REQUIRED = ("torrents", "whitelist", "keys")
SHOWN = 10  # names in a message


def compare_tables(expected: Collection[str], found: Collection[str], where: str) -> list[str]:
    """A warning for each table of the last good run of the scope that is missing.

    A table may have been dropped on purpose, so that is no failure, and retention is suspended.
    Raises Refused if none of these tables is left, unless the tracker's own are there. Raises it,
    too, if a first run (then `expected` is empty) lacks some of the tracker's own. `where` begins
    the messages: "the captured database".
    """
    names = {table_name(name) for name in found}
    wanted = [table_name(name) for name in expected or REQUIRED]
    missing = [name for name in wanted if name not in names]
    if not expected and missing:
        raise Refused(f"{where} lacks the tables: {' '.join(missing)}")
    if len(missing) == len(wanted) and not names.issuperset(REQUIRED):
        shown = " ".join(missing[:SHOWN])
        raise Refused(f"{where} has none of the tables of the last good run: {shown}")
    return [
        f"{where} lacks the table {name}, which the last good run has. It was dropped, or the user "
        "may not see it any more. If that is right, run 'tracker-backup acknowledge'."
        for name in missing
    ]
