"""The client: asks a database server and takes its dumps, in a container with the database's
network and with no mount but its own directory.
"""

from __future__ import annotations

import sys
from typing import Any

from ..protocol import Answer
from . import mysql
from .examiner import DRIVERS
from .mysql import CLIENT, client_options
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


def connect(arguments: dict[str, Any], _: Answer) -> None:
    """For a restore: writes the options of the client program, and `ca`, a certificate or empty.

    The password goes into a 0600 file in memory, never into an argument.
    """
    CLIENT.mkdir(mode=0o700, exist_ok=True)
    authority = CLIENT / "ca.pem"
    authority.write_text(arguments["ca"])
    ca_file = str(authority) if arguments["ca"] else ""
    (CLIENT / "client.cnf").write_text(client_options({**arguments, "ca_file": ca_file}))


def dump() -> int:
    """Prints a dump of the database that standard input names, by the options that `connect` wrote.
    So an external server's database is saved before a restore.
    """
    try:
        options = f"--defaults-file={CLIENT}/client.cnf"
        mysql.dump(options, sys.stdin.read(), sys.stdout.buffer, b"", *mysql.WHOLE)
        sys.stdout.flush()
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


JOBS = {"preflight": preflight, "capture": capture, "connect": connect}
