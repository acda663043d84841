#!/usr/bin/env python3
"""The next five runs of every `run` line of table.tsv, as croniter computes them.

    expected.py            writes expected.tsv
    expected.py --check    exit 1 and a diff when expected.tsv is not what croniter says

Needs `pip install croniter` (7.0 was used); `implement_cron_bug=True` is Debian's rule that a day
field beginning with `*`, `*/2` too, must match together with the other. Times are wall-clock times.
"""

from __future__ import annotations

import difflib
import sys
from datetime import datetime
from pathlib import Path

from croniter import croniter

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.tsv"
HEADER = "# Made by expected.py from table.tsv: expression, a time, the next five runs after it.\n"

# Ends of years, of a leap day and of a century's February that is or is not a leap year's.
STARTS = [
    datetime(1999, 12, 31, 23, 59),
    datetime(2000, 2, 28, 23, 59, 59),
    datetime(2023, 12, 31, 23, 58, 30),
    datetime(2024, 2, 29, 0, 0),
    datetime(2025, 2, 28, 12, 0),
    datetime(2026, 7, 31, 3, 0),
]

# Where croniter 7.0 is not Debian's cron, and what it reads as entry.c reads the first:
# - get_range loops from the one number to the other, so a range of one value is that value;
#   croniter takes it for the whole field.
# - load_entry sets DOM_STAR and DOW_STAR when a field's first character is `*`, so with `1,*` it
#   sets neither and either day is enough, which is every day; croniter asks for both.
INSTEAD = {
    "0 3 * * 7-7": "0 3 * * 7",
    "0 3 * * SUN-SUN": "0 3 * * 0",
    "10-10 10-10/1 * * *": "10 10 * * *",
    "0 3 1,* * 1": "0 3 * * *",
    "0 3 1 * 1,*": "0 3 * * *",
}


def runs(expression: str, start: datetime) -> list[datetime]:
    after = croniter(expression, start, ret_type=datetime, implement_cron_bug=True)
    return [after.get_next() for _ in range(5)]


def expressions() -> list[str]:
    lines = (HERE / "table.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1] for line in lines if line.startswith("run\t")]


def expected() -> str:
    text = HEADER
    for expression in expressions():
        for start in STARTS:
            five = runs(INSTEAD.get(expression, expression), start)
            if expression in INSTEAD and five == runs(expression, start):
                sys.exit(f"expected.py: croniter reads `{expression}` as Debian does now: drop it")
            times = [start, *five]
            text += "\t".join([expression, *(time.isoformat() for time in times)]) + "\n"
    return text


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    new = expected()
    if not sys.argv[1:]:
        EXPECTED.write_text(new, encoding="utf-8")
        return 0
    old = EXPECTED.read_text(encoding="utf-8")
    texts = (old.splitlines(), new.splitlines())
    diff = difflib.unified_diff(*texts, "expected.tsv", "croniter", n=0, lineterm="")
    count = f"expected.py: {len(new.splitlines()) - 1} lines of five runs are what croniter says"
    print("\n".join(diff) or count)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
