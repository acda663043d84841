"""docs/faults.md: its words are written by hand, its tables by the tests, each from what it saw."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pytest

from e2e.bundle import REPOSITORY

PAGE = REPOSITORY / "docs/faults.md"
HEAD = (
    "| fault | exit code | what the log says | tracker | next run |\n"
    "| --- | --- | --- | --- | --- |\n"
)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    code: int
    log: str
    tracker: str
    next_run: str

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.code} | {plain(self.log)} | {self.tracker} | {self.next_run} |"
        )


def plain(log: str) -> str:
    """A line of the log as a cell of a table, without what differs from run to run."""
    text = re.sub(r"^\S+ (maintenance-backup\[\d+\]|backup): ", "", log.strip())
    for pattern, word in (
        (r"\d{8}_\d{6}", "ID"),
        (r"\b[0-9a-f]{12,64}\b", "..."),
        (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
        (r"\d+ bytes", "N bytes"),
        (r"\d+\.\d+ s", "N s"),
    ):
        text = re.sub(pattern, word, text)
    text = text[:200].replace("|", "\\|").replace("`", "'")
    return f"`{text}`"


def rows(section: str) -> dict[str, str]:
    """The rows of the table in a section of the page, by their first cell."""
    lines = _split(section)[1].splitlines()[2:]
    return {
        line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")
    }


def seconds(section: str) -> list[float]:
    """The seconds that the sentence below the table names."""
    return [float(found) for found in re.findall(r" (\d+) s\.$", _split(section)[1], re.MULTILINE)]


def show(section: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints a section that was seen; with UPDATE_FAULTS=1 it replaces the one on the page."""
    with capsys.disabled():
        print(f"\n{text}")
    if os.environ.get("UPDATE_FAULTS"):
        before, _, after = _split(section)
        PAGE.write_text(f"{before}{text}{after}", encoding="utf-8")


def _split(section: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
    before, begun, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    text, ended, after = rest.partition(end)
    assert begun and ended, f"{PAGE} has no section {section!r}"
    return before + begun, text, ended + after
