"""A service of the sidecar, without Docker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from unit.sandbox import TEMPLATES

# As Docker does it: the service starts again when it ends, and no process of its life outlives it.
LIVES = 'while :; do unshare --pid --fork --kill-child -- "$@"; done'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a service gives up the rights of root")


@contextmanager
def restarted_service(
    role: str, directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`directory` is what its container sees as /work. `backup.sh` in PATH is the role. Without the
    process that this gives, no life follows.
    """
    directory.mkdir(mode=0o711)
    for parent in directory.parents:  # the role is not root
        if parent.owner() == "root" and "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    service = [sys.executable, "-I", "-B", str(TEMPLATES / "backup/backup.py"), "service", role]
    with subprocess.Popen(
        ["sh", "-c", LIVES, "sh", *service],
        env={**os.environ, **(environment or {}), "BACKUP_WORK": str(directory)},
        start_new_session=True,
    ) as lives:
        try:
            yield lives
        finally:
            os.killpg(lives.pid, signal.SIGKILL)
