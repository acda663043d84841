"""The commands of the image, and how the stand-in of Docker becomes one of its programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = Path(os.environ.get("BUNDLE_TEMPLATES", REPOSITORY / "bundle-templates"))
IMAGE_ENTRY = ["/bin/bash", str(TEMPLATES / "backup/backup.sh")]  # and a step, or a command
ROLE_ENTRY = ["/usr/bin/python3", "-I", "-B", str(TEMPLATES / "backup/backup.py")]  # and a role


def become_role(arguments: list[str], work: Path) -> NoReturn:
    """For the hook `exec`: Docker's client becomes the program of the container."""
    entry = ROLE_ENTRY if len(arguments) == 1 else IMAGE_ENTRY
    os.environ["BACKUP_WORK"] = str(work)
    os.execv(entry[0], [*entry, *arguments])
