"""The client: asks a database server and takes its dumps, in a container with the database's
network and with no mount but its own directory.
"""

from __future__ import annotations

import sys
from typing import Any

from ..protocol import Answer
from . import mysql
from .examiner import DRIVERS
from .service import WORK, StepFailed


def preflight(arguments: dict[str, Any], answer: Answer) -> None:
    """The tables and the size of the database, and warnings of what its user may not see.

    Arguments: driver, host, port, user, password, name (of the database), tls ("verified" or
    "unverified") and ca_file.
    """
    DRIVERS[arguments["driver"]].preflight(WORK, arguments, answer)


def capture(arguments: dict[str, Any], answer: Answer) -> None:
    """Takes the dumps. More arguments: scope, and limit_bytes, which no file may exceed."""
    DRIVERS[arguments["driver"]].capture(WORK, arguments, answer)


def dump() -> int:
    """Prints a dump of the database that standard input names, by the options that the unpacker's
    job `connect` made. So an external server's database is saved before a restore.
    """
    try:
        options = f"--defaults-file={mysql.CLIENT}/client.cnf"
        mysql.dump(options, sys.stdin.read(), sys.stdout.buffer, b"", *mysql.WHOLE)
        sys.stdout.flush()
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


JOBS = {"preflight": preflight, "capture": capture}
