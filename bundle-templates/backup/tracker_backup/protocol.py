"""What the host and the roles in containers say to each other: one JSON document a line.

A role first prints `{"protocol": 1}`. Then it reads one job a line from standard input and prints
one answer a line, until its input ends. A job is the host's, and the role believes it. An answer
comes from a process that reads what services wrote, so the host decodes it as hostile data: known
fields only, whole numbers only, bounded lengths, printable text. Any error means "no answer".
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

PROTOCOL = 1
SOCKET, JOB = "socket", "job"  # in the directory of a service of the sidecar
ANSWER_BYTES = 1 << 20
TEXT_CHARACTERS = 256  # of a name
REASON_CHARACTERS = 2000  # of a reason or a warning
PATH_CHARACTERS = 4096
SUFFIX = {"gzip": ".gz", "zstd": ".zst"}  # of a compressed file
ITEMS, MOST_TABLES = 10_000, 1000  # of one list, of one database
LARGEST = 2**63 - 1
FULL = 20  # the code of an answer: there is not enough space


class BadAnswer(Exception):
    """An answer that cannot be used; the message says why, in printable text."""


@dataclass
class Answer:
    """What one job found. Each field has a bound that `decode_answer` checks."""

    code: int = 0  # 0 done, 1 failed, 2 configuration error; 10 to 19 are the courier's own
    reason: str = ""  # why it failed, one line
    warnings: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # archived, relative to the deploy directory
    missing: list[str] = field(default_factory=list)  # required, and could not be archived
    tables: dict[str, int] = field(default_factory=dict)  # rows by table
    numbers: dict[str, int] = field(default_factory=dict)  # sizes in bytes, flags as 0 and 1
    milliseconds: dict[str, int] = field(default_factory=dict)  # how long a step took
    tools: dict[str, str] = field(default_factory=dict)  # versions by program
    text: str = ""  # for the courier: what restic printed


def encode_job(name: str, arguments: dict[str, Any]) -> bytes:
    return json.dumps({"protocol": PROTOCOL, "job": name, **arguments}).encode() + b"\n"


def encode_answer(answer: Answer) -> bytes:
    """One line. A document that would be too long becomes an answer that says so."""
    line = json.dumps(asdict(answer), allow_nan=False).encode() + b"\n"
    if len(line) <= ANSWER_BYTES:
        return line
    return encode_answer(Answer(code=1, reason=f"the answer has {len(line)} bytes"))


def check_hello(line: bytes) -> None:
    """Raises BadAnswer unless the role speaks our protocol."""
    document = decode_object(line)
    if document.get("protocol") != PROTOCOL or isinstance(document["protocol"], bool):
        raise BadAnswer(
            f"the image speaks protocol {show(document.get('protocol'))} and the host {PROTOCOL}: "
            "install the bundle again, so that both are of one version"
        )


def decode_answer(line: bytes) -> Answer:
    """The answer in one line. Raises BadAnswer for everything that is not exactly as expected."""
    document = decode_object(line)
    answer = Answer()
    if unknown := set(document) - set(asdict(answer)):
        raise BadAnswer(f"unknown fields: {show(sorted(unknown))}")
    answer.code = whole_number(document.get("code", 0), "code")
    answer.reason = text(document.get("reason", ""), "reason", REASON_CHARACTERS)
    answer.text = raw_text(document.get("text", ""), "text")
    answer.warnings = texts(document.get("warnings", []), "warnings", REASON_CHARACTERS)
    answer.paths = texts(document.get("paths", []), "paths", PATH_CHARACTERS)
    answer.missing = texts(document.get("missing", []), "missing", PATH_CHARACTERS)
    answer.tables = {
        table_name(name): rows
        for name, rows in items(document.get("tables", {}), "tables", MOST_TABLES)
    }
    for field_name in ("numbers", "milliseconds"):
        found = items(document.get(field_name, {}), field_name)
        setattr(answer, field_name, {printable(name): number for name, number in found})
    tools = document.get("tools", {})
    if not isinstance(tools, dict) or len(tools) > ITEMS:
        raise BadAnswer("tools is no object")
    answer.tools = {printable(name): text(value, "a tool") for name, value in tools.items()}
    return answer


def decode_object(line: bytes) -> dict[str, Any]:
    if len(line) > ANSWER_BYTES:
        raise BadAnswer(f"more than {ANSWER_BYTES} bytes")
    try:
        document = json.loads(line.decode(), parse_constant=refuse, parse_float=refuse)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"no JSON document: {show(str(error))}") from error
    if not isinstance(document, dict):
        raise BadAnswer("no JSON object")
    return document


def refuse(number: str) -> Any:
    raise ValueError(f"{number} is no whole number")


def whole_number(value: Any, what: str) -> int:
    """An integer from 0 to 2^63-1."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise BadAnswer(f"{what} is {show(value)}")
    return value


def raw_text(value: Any, what: str) -> str:
    """Text as it is, for a decoder of its own. Surrogates are refused."""
    if not isinstance(value, str):
        raise BadAnswer(f"{what} is {show(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadAnswer(f"{what} is no Unicode text") from error
    return value


def text(value: Any, what: str, limit: int = TEXT_CHARACTERS) -> str:
    return printable(raw_text(value, what), limit)


def texts(value: Any, what: str, limit: int) -> list[str]:
    if not isinstance(value, list) or len(value) > ITEMS:
        raise BadAnswer(f"{what} is no list of at most {ITEMS} items")
    return [text(one, what, limit) for one in value]


def items(value: Any, what: str, most: int = ITEMS) -> list[tuple[str, int]]:
    if not isinstance(value, dict) or len(value) > most:
        raise BadAnswer(f"{what} is no object of at most {most} items")
    return [(raw_text(name, what), whole_number(number, what)) for name, number in value.items()]


def show(value: Any) -> str:
    return printable(repr(value)[:TEXT_CHARACTERS])


def printable(text: str, limit: int = TEXT_CHARACTERS) -> str:
    """The text with escapes for what is not printable, of at most `limit` characters."""
    shown = escaped(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def escaped(text: str) -> str:
    """The text with escapes for what is not printable, line ends included."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def shown(path: str) -> str:
    """A path of any bytes as printable text, cut in its middle."""
    text = printable(os.fsencode(path).decode(errors="backslashreplace"), 1 << 20)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-145:]}"


def table_name(text: str) -> str:
    """A table's name as run manifests have it, whoever reports it: at most 256 characters, and a
    space for each one that is not printable.
    """
    return "".join(one if one.isprintable() else " " for one in text[:TEXT_CHARACTERS])
