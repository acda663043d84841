"""What roles answer is hostile data; and the loop that answers."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from unit.sandbox import TEMPLATES, load

protocol: Any = importlib.import_module(f"{load(TEMPLATES).__name__}.protocol")
ANSWER_BYTES, ITEMS, LARGEST = protocol.ANSWER_BYTES, protocol.ITEMS, protocol.LARGEST
Answer, BadAnswer = protocol.Answer, protocol.BadAnswer


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# ---------------------------------------------------------------- decoding


def test_an_answer_survives_the_way_through_the_protocol() -> None:
    answer = Answer(
        code=2,
        reason="no space",
        warnings=["slow"],
        paths=[".env"],
        missing=["etc"],
        tables={"torrents": LARGEST},
        numbers={"bytes": 0},
        milliseconds={"check": 12},
        tools={"sqlite3": "3.40.1"},
        text="two\nlines\t",
    )
    assert protocol.decode_answer(protocol.encode_answer(answer)) == answer
    assert protocol.decode_answer(b"{}") == Answer()


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1.0",
        "1e3",
        "1e999",
        "true",
        "false",
        "null",
        '"1"',
        "-1",
        "-0.0",
        str(LARGEST + 1),
        "9" * 5000,
        "[1]",
        "{}",
        "01",
        "0x1",
        "1_000",
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        '{"code": %s}',
        '{"numbers": {"bytes": %s}}',
        '{"tables": {"keys": %s}}',
        '{"milliseconds": {"check": %s}}',
    ],
)
def test_a_number_that_is_not_whole_or_out_of_range_is_refused(template: str, number: str) -> None:
    with pytest.raises(BadAnswer) as refused:
        protocol.decode_answer((template % number).encode())
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("number", [0, 1, LARGEST])
def test_a_whole_number_in_range_is_taken(number: int) -> None:
    assert protocol.decode_answer(line(numbers={"bytes": number})).numbers == {"bytes": number}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b'"{}"',
        b"{",
        b"{}{}",
        b"{} x",
        b"'a'",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b'{"code":' * 200_000,
        b'{"code": 0, "code": 1,}',
        b"\0",
        b"{\0}",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(BadAnswer) as refused:
        protocol.decode_answer(text)
    assert str(refused.value).isprintable()


def test_an_answer_of_more_than_a_mebibyte_is_refused_before_it_is_parsed() -> None:
    padded = b'{"code": 0' + b" " * (ANSWER_BYTES - 11) + b"}"
    assert len(padded) == ANSWER_BYTES
    assert protocol.decode_answer(padded).code == 0
    with pytest.raises(BadAnswer, match="more than 1048576 bytes"):
        protocol.decode_answer(b" " + padded)


def test_unknown_fields_are_refused_and_shown_without_escapes() -> None:
    with pytest.raises(BadAnswer, match="unknown fields") as refused:
        protocol.decode_answer(line(code=0, **{"\033[31mroot": 1, "x" * 5000: 2}))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["warnings", "paths", "missing"])
@pytest.mark.parametrize(
    "value", ["text", {"a": 1}, 1, None, [1], [None], [["x"]], ["x"] * (ITEMS + 1)]
)
def test_a_list_is_one_of_texts_and_bounded(name: str, value: Any) -> None:
    with pytest.raises(BadAnswer):
        protocol.decode_answer(line(**{name: value}))


@pytest.mark.parametrize("name", ["tables", "numbers", "milliseconds"])
@pytest.mark.parametrize("value", [[], "text", None, 1])
def test_a_table_is_an_object(name: str, value: Any) -> None:
    with pytest.raises(BadAnswer):
        protocol.decode_answer(line(**{name: value}))


@pytest.mark.parametrize(
    ("name", "most"), [("tables", 1000), ("numbers", ITEMS), ("milliseconds", ITEMS)]
)
def test_so_many_entries_are_taken_and_one_more_is_refused(name: str, most: int) -> None:
    entries = {str(number): number for number in range(most)}
    assert getattr(protocol.decode_answer(line(**{name: entries})), name) == entries
    with pytest.raises(BadAnswer, match=f"at most {most} items"):
        protocol.decode_answer(line(**{name: entries | {"more": 1}}))


def test_more_tools_than_a_list_may_have_are_refused() -> None:
    with pytest.raises(BadAnswer):
        protocol.decode_answer(line(tools=dict.fromkeys(map(str, range(ITEMS + 1)), "1")))


@pytest.mark.parametrize("value", [[], "text", {"a": 1}, {"a": None}, {"a": ["1"]}])
def test_tools_are_texts_by_name(value: Any) -> None:
    with pytest.raises(BadAnswer):
        protocol.decode_answer(line(tools=value))


@pytest.mark.parametrize("surrogate", ["\ud800", "\udc80", "\udfff", "a\ud83d"])
def test_surrogates_are_refused(surrogate: str) -> None:
    for fields in (
        {"reason": surrogate},
        {"text": surrogate},
        {"paths": [surrogate]},
        {"warnings": [surrogate]},
        {"numbers": {surrogate: 1}},
        {"tools": {"restic": surrogate}},
    ):
        with pytest.raises(BadAnswer):
            protocol.decode_answer(line(**fields))


@pytest.mark.parametrize(
    "sign",
    [
        "\033[2J",
        "\r",
        "\n",
        "\a",
        "\0",
        "\x7f",
        "\x9b",
        "\u202e",
        "\u2066",
        "\u200f",
        "\u2028",
        "\ufeff",
        "\U000e0001",
        "\ud800",
    ],
    ids=ascii,
)
def test_signs_that_could_change_a_terminal_or_the_log_are_escaped(sign: str) -> None:
    shown = protocol.printable(f"a{sign}b")
    assert shown.isprintable()
    assert shown[0] + shown[-1] == "ab"
    if sign == "\ud800":
        return
    answer = protocol.decode_answer(
        line(
            reason=sign,
            warnings=[sign],
            paths=[sign],
            missing=[sign],
            tables={f"t{sign}": 1},
            numbers={sign: 1},
            milliseconds={sign: 1},
            tools={sign: sign},
        )
    )
    for value in asdict(answer).values():
        for one in [value] if isinstance(value, str) else list(value) if value else []:
            assert one.isprintable()
    assert all(one.isprintable() for one in answer.tools.values())


def test_a_name_of_a_table_is_the_same_whoever_reports_it() -> None:
    tables = {"good é": 1, "a\tb": 2, "x" * 300: 3}
    assert protocol.decode_answer(line(tables=tables)).tables == {
        "good é": 1,
        "a b": 2,
        "x" * 256: 3,
    }


def test_long_texts_are_cut_off() -> None:
    answer = protocol.decode_answer(line(reason="x" * 90_000, paths=["y" * 90_000]))
    assert answer.reason == "x" * (protocol.REASON_CHARACTERS - 3) + "..."
    assert answer.paths == ["y" * (protocol.PATH_CHARACTERS - 3) + "..."]
    escapes = protocol.decode_answer(line(reason="\033" * 90_000)).reason
    assert len(escapes) == protocol.REASON_CHARACTERS
    assert escapes.isprintable()


def test_of_two_fields_with_one_name_the_last_one_is_checked_and_taken() -> None:
    assert protocol.decode_answer(b'{"code": 0, "code": 1}').code == 1
    with pytest.raises(BadAnswer):
        protocol.decode_answer(b'{"code": 0, "code": -1}')


@pytest.mark.parametrize(
    "hello",
    [
        '{"protocol": 2}',
        '{"protocol": true}',
        '{"protocol": "1"}',
        '{"protocol": null}',
        "{}",
        "[]",
        "",
        '{"protocol": 1.0}',
        '{"protocol": "\\u001b[2J"}',
    ],
)
def test_a_role_that_speaks_another_protocol_is_refused(hello: str) -> None:
    with pytest.raises(BadAnswer) as refused:
        protocol.check_hello(hello.encode())
    assert str(refused.value).isprintable()


def test_a_role_that_speaks_another_protocol_is_told_what_to_do() -> None:
    protocol.check_hello(b'{"protocol": 1}\n')
    with pytest.raises(BadAnswer, match="protocol 2 and the host 1: install the bundle again"):
        protocol.check_hello(b'{"protocol": 2}')


# ---------------------------------------------------------------- answering

SERVICE = """
import os, subprocess, sys
from tracker_backup.worker.service import StepFailed, log, serve, timed

def good(job, answer):
    with timed(answer, "work"):
        answer.numbers["given"] = job["number"]

def refused(job, answer):
    answer.warnings.append("so far")
    raise StepFailed("no such\\nrepository \\udcff", 10)

def broken(job, answer):
    open("/nonexistent/file")

def nameless(job, answer):
    raise OSError("the device is gone")

def long(job, answer):
    answer.warnings = ["x" * 1000] * 2000

def great(job, answer):
    answer.text = "x" * 1_000_000

def noisy(job, answer):
    print("a word")
    os.write(1, b"bytes\\n")
    subprocess.run(["echo", "a program"], check=True)
    log("a line")

sys.exit(serve({name: globals()[name] for name in
                ("good", "refused", "broken", "nameless", "great", "long", "noisy")}))
"""


def serve(*jobs: tuple[str, dict[str, Any]]) -> tuple[list[Any], str, int]:
    """Its answers, its standard error and its exit code."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", SERVICE],
        env=os.environ | {"PYTHONPATH": str(TEMPLATES / "backup")},
        input=b"".join(protocol.encode_job(name, arguments) for name, arguments in jobs),
        capture_output=True,
        timeout=30,
        check=False,
    )
    hello, *answers = done.stdout.splitlines(keepends=True)
    protocol.check_hello(hello)
    return [protocol.decode_answer(one) for one in answers], done.stderr.decode(), done.returncode


def test_each_job_gets_its_own_answer_until_the_input_ends() -> None:
    answers, _, code = serve(("good", {"number": 1}), ("good", {"number": 2}))
    assert [answer.numbers["given"] for answer in answers] == [1, 2]
    assert all(answer.code == 0 and "work" in answer.milliseconds for answer in answers)
    assert code == 0


def test_a_job_that_fails_answers_with_its_reason_on_one_line_and_the_next_job_is_done() -> None:
    (refused, broken, nameless, good), _, code = serve(
        ("refused", {}), ("broken", {}), ("nameless", {}), ("good", {"number": 3})
    )
    assert (refused.code, refused.reason) == (10, "no such repository ?")
    assert refused.warnings == ["so far"]
    assert (broken.code, broken.reason) == (1, "No such file or directory: /nonexistent/file")
    assert (nameless.code, nameless.reason) == (1, "the device is gone")
    assert good.numbers == {"given": 3}
    assert code == 0


def test_a_great_answer_comes_whole_and_one_that_is_too_long_says_so() -> None:
    (great, answer), _, _ = serve(("great", {}), ("long", {}))
    assert great.text == "x" * 1_000_000
    assert answer.code == 1
    assert answer.reason.startswith("the answer has 20")


def test_what_a_job_prints_does_not_get_between_the_answers() -> None:
    (first, second), errors, _ = serve(("noisy", {}), ("good", {"number": 4}))
    assert first == Answer()
    assert second.numbers == {"given": 4}
    for said in ("a word", "bytes", "a program", "a line"):
        assert said in errors


def test_a_job_that_nobody_knows_ends_the_role_without_an_answer() -> None:
    """The host then has no answer, which fails the step."""
    answers, errors, code = serve(("unknown", {}), ("good", {"number": 5}))
    assert answers == []
    assert "unknown" in errors
    assert code != 0
