"""A service of the sidecar, without Docker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from unit.sandbox import TEMPLATES

PLACE = Path("/mnt")  # where the service sees its directory
# As Docker does it: the service starts again when it ends, and no process of its life outlives it.
# It is not root, so it could not reach a directory of the tests.
LIFE = 'mount --bind "$1" /mnt && mount --bind "$2" /srv && shift 2 && exec "$@"'
LIVES = f"while :; do unshare --pid --mount --fork --kill-child -- sh -c '{LIFE}' sh \"$@\"; done"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a service gives up the rights of root")


@contextmanager
def restarted_service(
    role: str, directory: Path, programs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`backup.sh` in the directory `programs` is the role. Without the process that this gives, no
    life follows.
    """
    directory.mkdir(mode=0o711)
    entry = str(TEMPLATES / "backup/backup.py")
    words = [str(directory), str(programs), sys.executable, "-I", "-B", entry, "service", role]
    environment = {"BACKUP_WORK": str(PLACE), "PATH": f"/srv:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["sh", "-c", LIVES, "sh", *words], env=os.environ | environment, start_new_session=True
    ) as lives:
        try:
            yield lives
        finally:
            os.killpg(lives.pid, signal.SIGKILL)
