"""What a container left in staging, decoded: it is data of somebody who may be hostile.

A container writes its own directory in staging. So nothing there is followed, executed or used as
a path, every number and text has a bound, and an answer that is not as expected is refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .host import Refused

ANSWER_BYTES = 1 << 20
MEMBERS_BYTES = 1 << 30
TEXT_CHARACTERS = 256
REASON_CHARACTERS = 2000  # of a reason or a warning
PATH_BYTES = 4096
TABLES = 10000
LINES = {"file": 10, "path": 10000, "table": TABLES, "duration": 100, "tool": 100, "warning": 1000}
NUMBER = re.compile("[0-9]{1,19}")
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
SHA256 = re.compile("[0-9a-f]{64}")
BACKUP_FILE = re.compile(
    r"(sqlite|mysql|config)/(sqlite|mysql|config)_([0-9]{8}_[0-9]{6})"
    r"\.(db|sql|torrents\.sql|tar)\.(gz|zst)"
)
KINDS = {"sqlite": "database", "mysql": "database", "config": "config"}


class BadAnswer(Refused):
    """The container's answer cannot be used."""


@dataclass
class Result:
    """The file `result`: what one run's or one restore's steps found."""

    files: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def open_answer(work: Path, name: str, limit: int) -> int | None:
    """A descriptor of a regular file of at most `limit` bytes; None if it does not exist."""
    # A run names its directory by its own open descriptor below /proc, which is a link to follow.
    follow = 0 if work.is_relative_to("/proc") else os.O_NOFOLLOW
    try:
        directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY | follow)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadAnswer(f"{work} is not a directory") from error
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadAnswer(f"the container's file {name} cannot be read: {error.strerror}") from error
    finally:
        os.close(directory)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_size > limit:
        os.close(descriptor)
        raise BadAnswer(f"the container's file {name} is no regular file of at most {limit} bytes")
    return descriptor


def read_answer(work: Path, name: str, limit: int = ANSWER_BYTES) -> str | None:
    """The text of a file in the container's directory; None if it does not exist."""
    if (descriptor := open_answer(work, name, limit)) is None:
        return None
    with open(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BadAnswer(f"the container's file {name} grew beyond {limit} bytes")
    return content.decode(errors="replace")


def printable(text: str, limit: int = TEXT_CHARACTERS) -> str:
    """The text without control characters, of at most `limit` characters."""
    text = text[: limit + 1]
    shown = "".join(one if one.isprintable() else escaped(one) for one in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def table_name(text: str) -> str:
    """A table's name as run manifests have it, whoever reports it: at most 256 characters, and a
    space for each one that is not printable.
    """
    return "".join(one if one.isprintable() else " " for one in text[:TEXT_CHARACTERS])


def escaped(one: str) -> str:
    return ascii(one)[1:-1]


def number(text: str, what: str) -> int:
    """An integer from 0 to 2^63-1."""
    if not NUMBER.fullmatch(text) or (value := int(text)) > 2**63 - 1:
        raise BadAnswer(f"the container's answer is malformed: {what} is {printable(text)!r}")
    return value


def seconds(text: str) -> float:
    if not SECONDS.fullmatch(text):
        raise BadAnswer(f"the container's answer is malformed: a duration of {printable(text)!r}")
    return float(text)


def read_result(work: Path, run_id: str) -> Result:
    """The file `result` of a run; an empty one if it does not exist. `run_id` names its files."""
    result = Result()
    counts = dict.fromkeys(LINES, 0)
    text = read_answer(work, "result") or ""
    for line in text.removesuffix("\n").split("\n") if text else ():
        kind, *fields = line.split("\t")
        if len(fields) != {"file": 4, "path": 1, "warning": 1}.get(kind, 2) or kind not in counts:
            raise BadAnswer(f"the container's answer is malformed: the line {printable(line)!r}")
        counts[kind] += 1
        if counts[kind] > LINES[kind]:
            raise BadAnswer(f"the container's answer has more than {LINES[kind]} lines {kind!r}")
        add_line(result, kind, fields, run_id)
    return result


def add_line(result: Result, kind: str, fields: list[str], run_id: str) -> None:
    if kind == "file":
        result.files.append(decode_file(fields, run_id))
    elif kind == "path":
        result.paths.append(printable(fields[0], PATH_BYTES))
    elif kind == "table":
        result.tables[table_name(fields[1])] = number(fields[0], "a number of rows")
    elif kind == "duration":
        result.durations[printable(fields[0])] = seconds(fields[1])
    elif kind == "tool":
        result.tools[printable(fields[0])] = printable(fields[1])
    else:
        result.warnings.append(printable(fields[0], REASON_CHARACTERS))


def decode_file(fields: list[str], run_id: str) -> dict[str, Any]:
    """A file with the name that this run gives it, and no other."""
    kind, path, size, sha256 = fields
    match = BACKUP_FILE.fullmatch(path)
    if not match or match[1] != match[2] or match[3] != run_id or KINDS[match[1]] != kind:
        raise BadAnswer(
            f"the container's answer names the file {printable(path)!r}, which is not one of "
            f"{run_id}"
        )
    if not SHA256.fullmatch(sha256):
        raise BadAnswer(f"the container's answer is malformed: the SHA-256 {printable(sha256)!r}")
    return {"kind": kind, "path": path, "bytes": number(size, "a size"), "sha256": sha256}


def read_sizes(work: Path) -> list[tuple[int, str]]:
    """(bytes unpacked, path below the destination) of each measured file."""
    sizes = []
    for line in (read_answer(work, "sizes") or "").splitlines():
        size, _, path = line.partition("\t")
        sizes.append((number(size, "a size"), printable(path)))
    return sizes


def read_reason(work: Path) -> str:
    """Why a step failed; empty if the container does not say."""
    return printable((read_answer(work, "reason", 1 << 16) or "").strip(), REASON_CHARACTERS)


def read_members(work: Path) -> Iterator[str]:
    """The paths in the configuration archive, as `tar --list` printed them."""
    if (descriptor := open_answer(work, "members", MEMBERS_BYTES)) is None:
        return
    with open(descriptor, "rb") as file:
        for line in file:
            yield line.decode(errors="replace").rstrip("\n").removeprefix("./").rstrip("/")
