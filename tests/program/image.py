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
    owner = work.stat()
    # The test's directories are root's own. What a role leaves belongs to the role.
    words = f"setpriv --reuid {owner.st_uid} --regid {owner.st_gid} --clear-groups"
    caps = "+dac_override,+dac_read_search"
    command = [*words.split(), f"--inh-caps={caps}", f"--ambient-caps={caps}", *IMAGE_ENTRY]
    os.execvp(command[0], [*command, *arguments])
