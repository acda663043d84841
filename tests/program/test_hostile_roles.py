"""What a role answers and leaves in its directory, when the service that it read took it over.

The host reads it as data: nothing is executed, followed or printed raw. The run fails with 1, the
tracker runs, nothing is published. The file `ended` is how a step of backup.sh answers.
"""

from __future__ import annotations

import json
import time

import pytest

from program.host import Host

CODES = [
    "BASH_VERSINFO[$(touch {pwned})0]*0",
    "RANDOM*0",
    "0 ",
    "-1",
    "1e3",
    "0x0",
    "0000",
    "008",
    "0\n0",
    "a[0]",
]

LINES = [
    "",
    "null",
    "[]",
    '{"code": 0',
    '{"code": -1}',
    '{"code": 0.0}',
    '{"code": true}',
    '{"code": 1e999}',
    '{"code": NaN}',
    '{"code": 9223372036854775808}',
    '{"code": 0, "numbers": {"database_bytes": Infinity}}',
    '{"code": 0, "warnings": ["\\ud800"]}',
    '{"code": 0, "unknown": 1}',
    '{"code": 0}, {"code": 0}',
]

ENDLESS = {
    "brackets": '"[" * 200000',
    "spaces": '"{" + " " * (1 << 20) + "}"',
    "warnings": 'json.dumps({"code": 0, "warnings": ["x"] * 10001})',
}


def answers(host: Host, job: str, ended: str, line: str) -> None:
    """The role answers exactly this, and ends. Both are Python expressions."""
    host.on(job, f"(work / 'ended').write_text({ended})\nsay({line})\nleave(0)")


def failed_safely(host: Host) -> None:
    host.failed_safely()
    assert not (host.path / "pwned").exists()
    manifest = host.recorded("failed", exit_code=1)
    assert manifest["reason"].isprintable()


@pytest.mark.parametrize("code", CODES)
def test_an_exit_code_that_is_no_number_is_not_evaluated(host: Host, code: str) -> None:
    code = code.format(pwned=host.path / "pwned")
    answers(host, "capture", repr(code), repr(json.dumps({"code": code})))
    host.run().ends_with(1)
    failed_safely(host)


@pytest.mark.parametrize("line", LINES)
def test_an_answer_that_is_not_exactly_as_expected_fails_the_run(host: Host, line: str) -> None:
    answers(host, "capture", repr(line or "x"), repr(line))
    host.run().ends_with(1)
    failed_safely(host)


@pytest.mark.parametrize("line", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_that_is_too_much_fails_the_run(host: Host, line: str) -> None:
    answers(host, "capture", "'x' * 1000000", line)
    host.run().ends_with(1)
    failed_safely(host)


# ---------------------------------------------------------------- files

PLANT = """
from program import fake_roles

def plant(path):
    path.unlink(missing_ok=True)
    {plant}

def put_and_plant(path, text):
    usual(path, text)
    if STAGING in path.parents:
        plant(path)

usual, fake_roles.put = fake_roles.put, put_and_plant
plant(work / "ended")
"""

PLANTS = {
    "link": "path.symlink_to(STUB / 'zero')",
    "endless": "path.symlink_to('/dev/zero')",
    "pipe": "os.mkfifo(path)",
    "directory": "path.mkdir()",
    "second-name": "os.link(STUB / 'zero', path)",
}


@pytest.mark.parametrize("job", ["capture", "compress", "archive"])
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_what_is_no_regular_file_with_one_name_is_not_read(
    host: Host, job: str, plant: str
) -> None:
    """A role leaves it in place of what it should leave."""
    zero = host.stub / "zero"
    zero.write_text("0")
    host.on(job, PLANT.format(plant=plant))
    began = time.monotonic()
    host.run().ends_with(1)
    assert time.monotonic() - began < 20
    assert zero.read_text() == "0"
    failed_safely(host)


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_a_link_in_place_of_the_reason_is_not_followed(host: Host, plant: str) -> None:
    (host.stub / "zero").write_text("a secret of the host\n")
    host.on("capture", f"path = work / 'reason'\n{plant}\nfail('')")
    host.run().ends_with(1).lacks("a secret of the host")
    failed_safely(host)


def test_a_directory_of_a_run_that_became_a_link_is_not_followed(host: Host) -> None:
    other = host.stub / "other"
    other.mkdir()
    (other / "reason").write_text("a secret of the host\n")
    (other / "ended").write_text("1\n")
    host.on(
        "capture",
        "work.rename(STAGING / 'aside')\nwork.symlink_to(STUB / 'other')\nfail('')",
    )
    host.run().ends_with(1).lacks("a secret of the host")
    assert sorted(path.name for path in other.iterdir()) == ["ended", "reason"]
    assert (other / "ended").read_text() == "1\n"
    host.tracker_is("running")


# ---------------------------------------------------------------- words


def test_a_reason_is_printed_without_escape_sequences(host: Host) -> None:
    host.on("capture", "refuse('red \\033[31m bell \\a bidi \\u202e good é')")
    outcome = host.run().ends_with(1, "[31m bell ", "good é")
    outcome.lacks("\033", "\a", "\u202e")
    failed_safely(host)


def test_the_end_of_a_long_reason_is_cut_off(host: Host) -> None:
    host.on("capture", "refuse('x' * 9000000)")
    outcome = host.run().ends_with(1)
    assert len(outcome.output) < 300_000
    failed_safely(host)
