"""The commands of the image, and how the stand-in of Docker becomes one of its programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = Path(os.environ.get("BUNDLE_TEMPLATES", REPOSITORY / "bundle-templates"))
# And a role, or a command.
IMAGE_ENTRY = ["/usr/bin/python3", "-I", "-B", str(TEMPLATES / "backup/backup.py")]


def become_role(arguments: list[str], work: Path) -> NoReturn:
    """For the hook `exec`: Docker's client becomes the program of the container."""
    os.environ["BACKUP_WORK"] = str(work)
    os.execv(IMAGE_ENTRY[0], [*IMAGE_ENTRY, *arguments])
