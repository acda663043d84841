"""An installation that is killed at any point is completed by the next one.

The program runs as a process of its own. It is killed with SIGKILL before one of the calls by which
it changes the host, as Python's audit events tell them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from unit.sandbox import Sandbox, mode

POINTS = 10  # spread over all calls of an installation
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.chmod", "os.chown", "subprocess.Popen")
HOOK = f"""
import atexit, os, sys
if any(word.endswith("host/tracker-backup") for word in sys.orig_argv):
    os.fsync = lambda descriptor: None  # nobody cuts the power here
    calls = [0]
    def hook(event, arguments):
        if event in {CHANGES!r}:
            calls[0] += 1
            if calls[0] == int(os.environ["KILL_BEFORE"]):
                os.kill(os.getpid(), 9)
    def tell():
        with open(os.environ["CALLS"], "w") as file:
            file.write(str(calls[0]))
    atexit.register(tell)
    sys.addaudithook(hook)
"""


def install(host: Sandbox, kill_before: int = 0) -> int:
    """Installs, and returns how many calls that took; 0 if it was killed before one of them."""
    hooks, calls = host.path / "hooks", host.path / "hooks/calls"
    hooks.mkdir(exist_ok=True)
    calls.unlink(missing_ok=True)
    (hooks / "sitecustomize.py").write_text(HOOK)
    own = {"PYTHONPATH": str(hooks), "KILL_BEFORE": str(kill_before), "CALLS": str(calls)}
    done = subprocess.run(
        [sys.executable, host.bundle / "host/tracker-backup", "install"],
        input=b'{"db_password": "new", "db_root_password": "root"}',
        env=os.environ | own,
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return int(calls.read_text()) if done.returncode == 0 else 0


def tree(host: Sandbox) -> dict[str, tuple[str, bytes]]:
    """Mode and content of everything that an installation can change."""
    paths = [path for top in (host.root, host.deploy) for path in top.rglob("*")]
    return {
        str(path.relative_to(host.path)): (mode(path), path.read_bytes() if path.is_file() else b"")
        for path in paths
        if path.name != "lock" and not path.is_relative_to(host.root / "proc")
    }


def keep(host: Sandbox) -> None:
    for top in (host.root, host.deploy):
        shutil.copytree(top, host.path / "kept" / top.name, symlinks=True)
    shutil.copyfile(host.stub / "images", host.path / "kept/images")


def restore(host: Sandbox) -> None:
    for top in (host.root, host.deploy):
        shutil.rmtree(top)
        shutil.copytree(host.path / "kept" / top.name, top, symlinks=True)
    shutil.copyfile(host.path / "kept/images", host.stub / "images")


@pytest.mark.parametrize("over_another", [False, True])
def test_an_installation_that_was_killed_is_completed_by_the_next(
    sandbox: Sandbox, over_another: bool
) -> None:
    if over_another:
        sandbox.make_bundle(DB_HOST="elsewhere")
        assert sandbox.install().code == 0
        (sandbox.root / "usr/local/lib/tracker-backup/run.sh").write_text("# of an older bundle\n")
        sandbox.make_bundle()
    (sandbox.stub / "images").write_text("gen-backup-bundle/backup:ffffffffffff\n")
    keep(sandbox)
    last = install(sandbox)
    whole = tree(sandbox)
    assert last > POINTS
    for number in range(POINTS):
        restore(sandbox)
        at = 1 + number * (last - 1) // (POINTS - 1)
        assert install(sandbox, at) == 0
        assert install(sandbox) > 0
        assert tree(sandbox) == whole, f"killed before call {at} of {last}"


def test_the_schedule_is_there_only_if_everything_else_is(sandbox: Sandbox) -> None:
    keep(sandbox)
    last = install(sandbox)
    whole = tree(sandbox)
    seen = set()
    for at in range(last - 44, last + 1, 4):
        restore(sandbox)
        assert install(sandbox, at) == 0
        seen.add(sandbox.cron.exists())
        if sandbox.cron.exists():
            assert whole.keys() - tree(sandbox).keys() <= {"root/var/log/tracker-backup.log"}
    assert seen == {True, False}
