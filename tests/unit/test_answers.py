"""What a container left in staging is data: bounded, decoded, never followed, never a path."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from unit.sandbox import Sandbox

RUN = "20260101_030000"
GOOD = f"file\tdatabase\tsqlite/sqlite_{RUN}.db.gz\t7\t{'5a' * 32}\n"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "file",
        "unknown\tx",
        "table\t-1\ttorrents",
        "table\t1e3\ttorrents",
        "table\t٣\ttorrents",
        "table\t9223372036854775808\ttorrents",
        "table\t3",
        "table\t3\ta\tb",
        "duration\tcheck\tnan",
        "duration\tcheck\t1_0",
        GOOD.replace("sqlite/sqlite", "../sqlite/sqlite").strip(),
        GOOD.replace("sqlite/sqlite_2026", "sqlite/sqlite_2025").strip(),
        GOOD.replace("sqlite/sqlite", "mysql/sqlite").strip(),
        GOOD.replace("database", "config").strip(),
        GOOD.replace("5a", "5A").strip(),
        GOOD.replace("5a", "").strip(),
        GOOD.replace("\t7\t", "\tPATH[$(id)0]\t").strip(),
    ],
)
def test_a_malformed_line_is_refused(tool: ModuleType, tmp_path: Path, line: str) -> None:
    (tmp_path / "result").write_text(GOOD + line + "\n")
    with pytest.raises(tool.answers.BadAnswer):
        tool.answers.read_result(tmp_path, RUN)


def test_a_good_answer_is_read(tool: ModuleType, tmp_path: Path) -> None:
    lines = "table\t3\tkeys\npath\t.env\nduration\tcheck\t0.25\ntool\tsqlite3\t3.46\n"
    (tmp_path / "result").write_text(GOOD + lines + "warning\t\x1b[2Jodd\n")
    result = tool.answers.read_result(tmp_path, RUN)
    assert (result.tables, result.paths) == ({"keys": 3}, [".env"])
    assert (result.durations, result.tools) == ({"check": 0.25}, {"sqlite3": "3.46"})
    assert result.warnings == ["\\x1b[2Jodd"]
    assert result.files[0]["bytes"] == 7


def test_numbers_of_lines_and_lengths_are_bounded(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "result").write_text("".join(f"table\t1\tt{n}\n" for n in range(10001)))
    with pytest.raises(tool.answers.BadAnswer, match="more than 10000"):
        tool.answers.read_result(tmp_path, RUN)
    (tmp_path / "result").write_text("warning\t" + "x" * 3000 + "\n")
    (warning,) = tool.answers.read_result(tmp_path, RUN).warnings
    assert len(warning) == 2000
    (tmp_path / "result").write_bytes(b"x" * (1 << 20) + b"x")
    with pytest.raises(tool.answers.BadAnswer, match="1048576"):
        tool.answers.read_result(tmp_path, RUN)


@pytest.mark.parametrize("planted", ["link", "pipe", "directory", "link above"])
def test_nothing_is_followed_and_nothing_waits(
    tool: ModuleType, tmp_path: Path, planted: str
) -> None:
    work, real = tmp_path / "work", tmp_path / "real"
    real.mkdir()
    (real / "secret").write_text("warning\tsecret\n")
    (real / "result").write_text("warning\tsecret\n")
    if planted == "link above":
        work.symlink_to(real)
    else:
        work.mkdir()
    if planted == "link":
        (work / "result").symlink_to(real / "secret")
    elif planted == "pipe":
        os.mkfifo(work / "result")
    elif planted == "directory":
        (work / "result").mkdir()
    with pytest.raises(tool.answers.BadAnswer):
        tool.answers.read_result(work, RUN)


def test_a_malformed_answer_fails_the_run_with_a_message(host: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "result").write_text("table\tmany\ttorrents\n")
    facts = (
        f"id={RUN}\nstarted=x\nresult={{}}\nexit_code=1\nreason=\x1b[2J\nquiesce=none\n"
        "window_seconds=0\n"
    )
    outcome = host.call("record", str(tmp_path), stdin=facts.format("success"))
    assert outcome.code == 1
    assert "the container's answer is malformed: a number of rows is 'many'" in outcome.err
    assert not (host.destination / f"runs/{RUN}.json").exists()
    assert host.call("record", str(tmp_path), stdin=facts.format("failed")).code == 0
    written = (host.destination / f"runs/{RUN}.json").read_text()
    assert "malformed" in written
    assert "\\u001b" not in written


def test_a_table_has_one_name_whoever_reports_it(tool: ModuleType) -> None:
    """As sqlite_database.py and `table_names` in backup.sh print it."""
    assert tool.answers.table_name("a\tb\u00a0c\x1b[0m") == "a b c [0m"
    raw, recorded = "a\u00a0b", "a b"
    assert tool.workshop.compare_rows({raw: 1}, {recorded: 1}) == []
    assert len(tool.answers.table_name("x" * 300)) == 256
