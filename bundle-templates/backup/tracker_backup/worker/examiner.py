"""The examiner: everything that is done with a captured database, in a container without network
and with no mount but its own directory.
"""

from __future__ import annotations

import stat
from types import ModuleType
from typing import Any

from ..protocol import SUFFIX, Answer
from . import mysql, sqlite
from .compress import compress_file
from .service import WORK, StepFailed, file_size_limit, timed

# Each driver has `examine(work, arguments, answer)`, and `digest(stream)`, the rows by table. A
# driver for servers also has `preflight` and `capture`.
DRIVERS: dict[str, ModuleType] = {"sqlite": sqlite, "mysql": mysql}


def examine(arguments: dict[str, Any], answer: Answer) -> None:
    """Checks and counts what was captured, and leaves the files to compress.

    Arguments: driver, scope and limit_bytes, which no file may exceed.
    """
    refuse_odd_files()
    with file_size_limit(arguments["limit_bytes"]), timed(answer, "check"):
        DRIVERS[arguments["driver"]].examine(WORK, arguments, answer)


def compress(arguments: dict[str, Any], answer: Answer) -> None:
    """Compresses each of `files` beside itself. No compressed file may exceed limit_bytes."""
    compression = arguments["compression"]
    with file_size_limit(arguments["limit_bytes"]), timed(answer, "compress"):
        for name in arguments["files"]:
            compress_file(WORK / name, WORK / (name + SUFFIX[compression]), compression)


def refuse_odd_files() -> None:
    """Raises StepFailed if a captured file is a link, a directory or a device, because SQLite would
    follow a link and write to another file.
    """
    for path in (*WORK.glob("*.db*"), *WORK.glob("*.sql")):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise StepFailed(f"{path.name} is not a regular file of its own")


JOBS = {"examine": examine, "compress": compress}
