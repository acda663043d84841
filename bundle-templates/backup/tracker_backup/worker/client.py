"""The client: asks a database server and takes its dumps, in a container with the database's
network and with no mount but its own directory.
"""

from __future__ import annotations

from typing import Any

from ..protocol import Answer
from .examiner import DRIVERS
from .service import WORK


def preflight(arguments: dict[str, Any], answer: Answer) -> None:
    """The tables and the size of the database, and warnings of what its user may not see.

    Arguments: driver, host, port, user, password, name (of the database), tls ("verified" or
    "unverified") and ca_file.
    """
    DRIVERS[arguments["driver"]].preflight(WORK, arguments, answer)


def capture(arguments: dict[str, Any], answer: Answer) -> None:
    """Takes the dumps. More arguments: scope, and limit_bytes, which no file may exceed."""
    DRIVERS[arguments["driver"]].capture(WORK, arguments, answer)


JOBS = {"preflight": preflight, "capture": capture}
