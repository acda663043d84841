"""`verify`: proves that a run can be restored, without touching the deployment."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .destination import check_destination
from .docker import remove_dead_containers
from .documents import RunManifest, VerificationState
from .drivers import driver_of, driver_of_run
from .files import remove_tree
from .host import CONFIG, Host, Refused, utc_now
from .jobs import ready_image
from .log import say
from .priority import lower_priority
from .remote import check_repository
from .retention import remember_suspension
from .runs import choose_run, read_runs
from .state import lock
from .swap import check, targets
from .workshop import Unrestorable, dumps, place_database, unpack_run, workshop

EVERYTHING = {"database", "config"}


def ready_to_swap(host: Host, run: RunManifest, kinds: set[str], work: Path) -> list[str]:
    """A restore as far as nothing is touched: what it replaces lies checked below work/new.
    Returns the paths. Raises Unrestorable with what is wrong.
    """
    unpack_run(host, run, kinds, work)
    driver = driver_of_run(run) if "database" in kinds else None
    database = driver.target(host) if driver and driver == driver_of(host) else ""
    if database:
        place_database(host, work, database)
    paths = targets(host, run, kinds, database)
    check(host, work, paths)
    return paths


def verify(host: Host, run: RunManifest, image: str) -> list[str]:
    """What restore does up to the swap; for a server up to the import, into one that is thrown
    away. Returns the problems found.
    """
    with workshop(host, "verify") as work:
        try:
            ready_to_swap(host, run, EVERYTHING, work)
            driver = driver_of_run(run)
            return driver.verify(host, run, dumps(work), image) if driver else []
        except Unrestorable as error:
            return [str(error)]
        finally:
            remove_tree(work)


def command_verify(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    lower_priority()
    with lock():
        remove_dead_containers()
        check_destination(host)
        run = choose_run(read_runs(host), arguments.run)
        before, began = VerificationState.peek([]), time.monotonic()
        earlier = before.succeeded if before else ""
        try:
            ready_image(host)
            problems = verify(host, run, arguments.image)
        except Refused as error:
            state = VerificationState(run.id, utc_now(), [], earlier, impossible=str(error))
            state.store()
            raise
        at, took = utc_now(), time.monotonic() - began
        VerificationState(run.id, at, problems, earlier if problems else at, took).store()
        remember_suspension(host, read_runs(host))
        remote = check_repository(host) if arguments.run == "latest" else ""
    for problem in problems:
        say(f"PROBLEM: {run.id}: {problem}")
    if not problems:
        say(
            f"verified {run.id}: "
            f"{', '.join(f'{name} {rows} rows' for name, rows in run.tables.items())}"
        )
    if remote:
        say(f"PROBLEM: checking the restic repository failed: {remote}")
    return 1 if problems or remote else 0
