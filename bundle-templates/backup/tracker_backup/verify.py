"""`verify`: proves that a run can be restored, without touching the deployment."""

from __future__ import annotations

import argparse
import time

from .destination import check_destination
from .docker import remove_dead_containers
from .documents import RunManifest, VerificationState
from .drivers import driver_of_run
from .files import remove_tree
from .host import CONFIG, Host, utc_now
from .log import say
from .remote import check_repository
from .retention import remember_suspension
from .runs import check_files, choose_run, read_runs
from .state import lock
from .workshop import workshop


def verify(host: Host, run: RunManifest, image: str) -> list[str]:
    """Everything that can be proved of one run without touching the deployment; returns the
    problems found.
    """
    if problems := check_files(host, run):
        return problems
    with workshop(host, "verify", run=run) as shop:
        try:
            shop.require_space(run, {"database", "config"})
            problems = shop.unpack(run, {"database", "config"})
            if not problems and (driver := driver_of_run(run)):
                problems = driver.verify(host, run, shop.dumps, image)
        finally:
            remove_tree(shop.work)
    return problems


def command_verify(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    with lock():
        remove_dead_containers()
        check_destination(host)
        run = choose_run(read_runs(host), arguments.run)
        before, began = VerificationState.peek([]), time.monotonic()
        problems = verify(host, run, arguments.image)
        at, took = utc_now(), time.monotonic() - began
        succeeded = (before.succeeded if before else "") if problems else at
        VerificationState(run.id, at, problems, succeeded, took).store()
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
