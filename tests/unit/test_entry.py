"""The entry point of the image."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from unit.sandbox import TEMPLATES

ENTRY = [sys.executable, "-I", "-B", str(TEMPLATES / "backup/backup.py")]


@pytest.mark.parametrize("words", [[], ["restore"], ["reader", "20260102_030405"], ["../reader"]])
def test_a_role_that_does_not_exist_ends_with_2(words: list[str]) -> None:
    done = subprocess.run([*ENTRY, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: backup.sh idle | ")


def test_idle_ends_at_once_on_term() -> None:
    with subprocess.Popen([*ENTRY, "idle"]) as idle:
        handled, bit = "0", 1 << (signal.SIGTERM - 1)
        while not int(handled, 16) & bit:
            time.sleep(0.01)
            with open(f"/proc/{idle.pid}/status", encoding="ascii") as status:
                handled = next(line.split()[1] for line in status if line.startswith("SigCgt"))
        idle.terminate()
        assert idle.wait(5) == 0
