"""The examiner: everything that is done with a captured database, in a container without network
and with no mount but its own directory.
"""

from __future__ import annotations

import stat
from types import ModuleType
from typing import Any

from ..protocol import Answer
from . import mysql, sqlite
from .compress import SUFFIX, compress_file
from .service import WORK, StepFailed, fault_point, file_size_limit, timed

# Each driver has `examine(work, arguments, answer)`, which returns the files to publish, and
# `digest(stream)`, the rows by table. A driver for servers also has `preflight` and `dump`.
DRIVERS: dict[str, ModuleType] = {"sqlite": sqlite, "mysql": mysql}


def examine(arguments: dict[str, Any], answer: Answer) -> None:
    """Checks and counts what was captured, and compresses it beside itself.

    Arguments: driver, scope, compression (with "none", the checked file stays as it is) and
    limit_bytes, which no file may exceed.
    """
    refuse_odd_files()
    fault_point("checking-the-database")
    with file_size_limit(arguments["limit_bytes"]):
        with timed(answer, "check"):
            files = DRIVERS[arguments["driver"]].examine(WORK, arguments, answer)
        if arguments["compression"] == "none":
            return
        fault_point("compressing-the-database")
        compression = arguments["compression"]
        with timed(answer, "compress"):
            for file in files:
                compress_file(file, file.with_name(file.name + SUFFIX[compression]), compression)


def refuse_odd_files() -> None:
    """Raises StepFailed if a captured file is a link, a directory or a device, because SQLite would
    follow a link and write to another file.
    """
    for path in (*WORK.glob("*.db*"), *WORK.glob("*.sql")):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise StepFailed(f"{path.name} is not a regular file of its own")


JOBS = {"examine": examine}
