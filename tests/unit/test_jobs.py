"""Programs in containers can be hostile: what the host reads of them has limits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from unit import worker

ENDLESS = "while :; do printf '%01000d' 0; done"
HELLO = json.dumps({"protocol": 1})


@pytest.fixture
def jobs(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a Docker whose `exec` runs the command here; a role is the script in $ROLE."""
    docker = """#!/usr/bin/env bash
[[ "$1 $2 $4" != 'exec --interactive backup.sh' ]] || exec bash -c "$ROLE"
exec "${@:4}"
"""
    worker.program(tmp_path / "bin/docker", docker)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found: ModuleType = tool.jobs
    return found


def test_a_program_gets_its_input_and_its_end_is_seen(jobs: ModuleType, tmp_path: Path) -> None:
    done = jobs.execute("c", "bash", "-c", "cat; echo $'odd\\x1b[2J' >&2; exit 3", given=b"text")
    assert (done.code, done.output, done.said) == (3, b"text", "odd\\x1b[2J")
    (tmp_path / "dump").write_bytes(b"x" * 3000000)
    with open(tmp_path / "dump", "rb") as source, open(tmp_path / "copy", "wb") as target:
        jobs.execute("c", "cat", given=source, into=target, limit=3000000)
    assert (tmp_path / "copy").read_bytes() == b"x" * 3000000


def test_endless_output_is_refused_and_the_client_ended(jobs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(jobs.Refused, match="printed too much"):
        jobs.execute("c", "bash", "-c", f"echo $$ >{tmp_path}/pid; {ENDLESS}", seconds=30)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_of_endless_messages_the_end_is_kept(jobs: ModuleType) -> None:
    done = jobs.execute("c", "bash", "-c", "head -c 9000000 /dev/zero >&2; echo end >&2; exit 1")
    assert done.said.endswith("...") or done.said.endswith("end")
    assert len(done.said) < 70000


@pytest.mark.parametrize("script", ["sleep 60", "exec >&- 2>&-; sleep 60", f"({ENDLESS}) >&2"])
def test_a_program_that_does_not_end_is_refused(jobs: ModuleType, script: str) -> None:
    with pytest.raises(jobs.Refused, match="was not over"):
        jobs.execute("c", "bash", "-c", script, seconds=1)


@pytest.mark.parametrize(
    "role",
    [
        "",
        "exit 1",
        f"echo '{HELLO}'",
        "echo '{\"protocol\": 2}'; echo '{}'",
        f"echo '{HELLO}'; echo '{{}}'; echo '{{}}'",
        f"echo '{HELLO}'; echo '{{\"code\": NaN}}'",
        f"echo '{HELLO}'; {ENDLESS}",
    ],
)
def test_what_is_no_answer_is_refused(
    jobs: ModuleType, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setenv("ROLE", role)
    with pytest.raises(jobs.Refused, match=r"gave no answer to the job look|printed too much"):
        jobs.ask("c", "role", "look", 30)


def test_an_answer_is_returned_whatever_its_code(
    jobs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = "import json, sys; print(json.dumps({'code': 7, 'text': sys.stdin.read()}))"
    monkeypatch.setenv("ROLE", f"echo '{HELLO}'; python3 -c \"{echo}\"")
    answer = jobs.ask("c", "role", "look", 30, files=["a b"])
    assert answer.code == 7
    assert json.loads(answer.text) == {"protocol": 1, "job": "look", "files": ["a b"]}


def test_a_program_is_ended_when_a_watched_file_system_is_nearly_full(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the disk of a throw-away server, while a hostile dump grows in it."""
    looks: list[list[Path]] = []

    def require_reserve(places: list[Path]) -> None:
        looks.append([*places])
        if len(looks) > 1:
            raise jobs.Refused("only 5 bytes are left")

    monkeypatch.setattr(jobs, "require_reserve", require_reserve)
    with jobs.watching(tmp_path), pytest.raises(jobs.Refused, match="only 5 bytes"):
        jobs.execute("c", "sleep", "60", seconds=30)
    assert looks == [[tmp_path], [tmp_path]]
    assert jobs.watched == []
