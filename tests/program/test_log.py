"""The log, the terminal, and what Docker's client does not hear of."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter

import pytest

from program.host import SECONDS, Host

# When containerd is dead, the client of `docker exec` does not hear that its program ended. The
# file `ended` is for the steps of backup.sh.
CLIENT_HANGS = """
import atexit
def never_ends():
    (work / "ended").write_text("{code}")
    hang()
atexit.register(never_ends)
"""


def repeated(text: str) -> list[str]:
    return [line for line, times in Counter(text.splitlines()).items() if times > 1]


def test_by_hand_every_line_is_on_the_terminal_and_in_the_log_once(host: Host) -> None:
    host.on("preflight", "print('a word of the container', file=sys.stderr)")
    outcome = host.run().ends_with(0, "a word of the container")
    assert outcome.output == host.log.read_text()
    assert repeated(outcome.output) == []
    assert outcome.output.count("succeeded") == 1


FORGED = "2026-01-01T00:00:00Z maintenance-backup[1]: run 20260101_000000 succeeded"


@pytest.mark.parametrize(
    "words",
    [
        f"print('x\\n{FORGED}\\r{FORGED}', file=sys.stderr)",
        f"print('\\x1b[2K\\x1b[1G{FORGED}\\x85{FORGED}', file=sys.stderr)",
        f"refuse('broken\\n{FORGED}\\u2028{FORGED}')",
    ],
)
def test_no_line_of_the_log_is_a_roles(host: Host, words: str) -> None:
    """Each begins with the time and our name. After it, what a role said has the role's name."""
    host.on("capture", f"{words}; refuse('broken')")
    outcome = host.run().ends_with(1)
    assert outcome.output == host.log.read_text()
    for line in outcome.output.splitlines():
        head = re.match(r"[0-9T:-]{19}Z maintenance-backup\[([0-9]+)\]: (reader: |ERROR: )?", line)
        assert head and head[1] != "1", line
        assert "succeeded" not in line or head[2], line
        assert line.isprintable()


def test_a_message_of_many_lines_is_one_line_of_the_log(host: Host) -> None:
    """Under cron, too: only our own lines begin at the left."""
    host.on("ps", f"fail('Error\\n{FORGED}')")
    for words in (["verify"], ["sidecar"]):
        text = host.tool(*words).output
        assert FORGED not in text.splitlines()


def test_under_crons_redirection_no_line_is_in_the_log_twice(host: Host) -> None:
    host.on("capture", "print('a word of the container', file=sys.stderr); refuse('broken')")
    with host.log.open("ab") as log:
        done = subprocess.run(
            host.command(),
            env=os.environ | host.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=SECONDS,
            check=False,
        )
    text = host.log.read_text()
    assert done.returncode == 1, text
    assert text.count("a word of the container") == 1
    assert text.count("ERROR: run") == 1
    assert repeated(text) == []


def test_the_reason_of_a_failure_is_logged_once(host: Host) -> None:
    host.on("capture", "refuse('disk quota exceeded')")
    host.run().ends_with(1)
    assert host.log.read_text().count("disk quota exceeded") == 1


def test_a_log_that_is_not_there_is_made_0640(host: Host) -> None:
    host.run().ends_with(0)
    assert host.log.stat().st_mode & 0o7777 == 0o640


def test_a_terminal_that_goes_away_does_not_end_the_run(host: Host) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    status = subprocess.run(
        host.command(),
        env=os.environ | host.environment,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        timeout=SECONDS,
        check=False,
    ).returncode
    os.close(writer)
    assert status == 0, host.log.read_text()
    assert "succeeded" in host.log.read_text()
    host.tracker_is("running")
    host.recorded("success")


@pytest.mark.parametrize("job", ["capture", "examine"])
def test_a_step_whose_end_docker_never_reports_does_not_hold_up_the_run(
    host: Host, job: str
) -> None:
    host.on(job, CLIENT_HANGS.format(code=0))
    began = time.monotonic()
    host.run().ends_with(0)
    assert time.monotonic() - began < 20
    host.tracker_is("running")


def test_a_failed_step_whose_end_docker_never_reports_gives_its_reason(host: Host) -> None:
    host.on("capture", CLIENT_HANGS.format(code=1) + "refuse('the copy is empty')")
    host.run().ends_with(1, "the copy is empty")
    host.failed_safely()
