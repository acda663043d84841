"""detach.py: the work goes on when the process that shows it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unit.sandbox import TEMPLATES

PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tracker_backup.detach import detached
def work():
    print("begun", flush=True)
    time.sleep(float(sys.argv[3]))
    print("complaint", file=sys.stderr)
    open(sys.argv[2], "w").write("done")
    print("odd \\udcff")
    return 7
sys.exit(detached(work))
"""


def start(target: Path, seconds: float) -> subprocess.Popen[str]:
    places = (str(TEMPLATES / "backup"), str(target))
    words = [sys.executable, "-B", "-c", PROGRAM, *places, str(seconds)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "TRACKER_BACKUP_LOG": f"{target}.log"},
    )


def test_what_it_says_and_its_exit_code_are_those_of_the_work(tmp_path: Path) -> None:
    process = start(tmp_path / "done", 0)
    assert process.communicate(timeout=30) == ("begun\nodd \\udcff\n", "complaint\n")
    assert process.returncode == 7
    assert (tmp_path / "done.log").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_no_signal_to_the_terminals_group_ends_the_work(tmp_path: Path, number: int) -> None:
    target = tmp_path / "done"
    process = start(target, 1)
    assert process.stdout and process.stdout.readline() == "begun\n"
    os.killpg(process.pid, number)
    output, complaints = process.communicate(timeout=30)
    assert not target.exists(), "it was not left alone in its work"
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert complaints.startswith("it goes on as process ")
    end = time.monotonic() + 10
    while not target.exists():
        assert time.monotonic() < end, output
        time.sleep(0.05)


def test_a_signal_to_the_work_itself_ends_it(tmp_path: Path) -> None:
    process = start(tmp_path / "done", 30)
    assert process.stdout and process.stdout.readline() == "begun\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
