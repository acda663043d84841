"""`doctor`: whether everything is there that backup, recovery, verify and restore need.

Beside the quick checks, these start containers of our own or ask somebody else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from .checks import QUICK, Advice, Case, Check, examine, refusal, show_findings
from .current import Run
from .docker import WORK_SECONDS, check_docker, docker, has_image, stack_containers, words
from .drivers import driver_of
from .files import remove_tree
from .host import CONFIG, ROOT, Host
from .log import say
from .remote import remembered
from .repository import NO_REPOSITORY, RepositoryFailure, repository, uses_restic
from .run import back_up
from .runs import newest_success
from .sidecar import find_core
from .signals import Ended, signals
from .space import require_reserve
from .stack import releases
from .state import acquire, refuse_while_unfinished

SMALL_BYTES = 1 << 30  # of memory, for a second MySQL
BUSY = "a run, verification or restore is under way: what starts a container was not tried"


def compose(case: Case) -> Iterator[str]:
    host = case.host
    check_docker(host, host.deploy_dir / "docker-compose.backup.yml")
    root = Path(docker(*words("info --format {{.DockerRootDir}}")).strip())
    yield from refusal(require_reserve, [root])


def time(_: Case) -> Iterator[str]:
    command = words("timedatectl show --property NTPSynchronized --value")
    with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if done.stdout.strip() == "no":
            yield Advice("nothing keeps the clock right: timedatectl set-ntp true")


def backup(case: Case) -> Iterator[str]:
    """A dry run does all that a run does before it touches the tracker."""
    host = case.host
    if host.strategy == "sidecar":
        if found := find_core(host):
            dry_run = ["exec", found["Id"], "backup.sh", "now", "--dry-run"]
            docker(*dry_run, seconds=WORK_SECONDS)
        return
    refuse_while_unfinished()
    run = Run(dry_run=True, force=True)
    run.host, run.quiesce = host, host.quiesce
    with free_lock() as free:
        if not free:
            yield Advice(BUSY)
            return
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # what the run logs
                back_up(run)
        finally:
            if run.id:
                remove_tree(host.staging / run.id)
    yield from map(Advice, run.warnings)


def database(case: Case) -> Iterator[str]:
    """What a restore needs beside what a dry run proves."""
    with free_lock() as free:
        if not free:
            yield Advice(BUSY)
            return
        driver_of(case.host).prove_login(case.host)
    facts = (ROOT / "proc/meminfo").read_text(encoding="ascii").split()
    available = int(facts[facts.index("MemAvailable:") + 1]) << 10
    if driver_of(case.host).SERVICE and available < SMALL_BYTES:
        yield Advice(
            f"verify imports the dump into a second server, and only {available >> 20} MiB of "
            "memory are free"
        )


def images(case: Case) -> Iterator[str]:
    """Those that verify, and a restore onto an empty machine, start."""
    last, service = newest_success(case.runs), driver_of(case.host).SERVICE
    if last and (wanted := last.images.get(service)) and not has_image(wanted):
        yield f"verify needs the image {wanted}, which is gone: `tracker-backup run`, then verify"
    for service, release in releases(stack_containers(case.host)).items():
        if not release.digest:
            yield Advice(
                f"no registry is known for {release.name}, the image of {service}: keep a copy of "
                "it (docker save), which a restore onto an empty machine needs"
            )


def remote(case: Case) -> Iterator[str]:
    if not uses_restic(case.host):
        return
    with free_lock() as free:
        if not free:
            yield Advice(BUSY)
            return
        try:
            with repository(case.host) as repo:
                repo.call("identify")
        except RepositoryFailure as failure:
            if failure.reason != NO_REPOSITORY or remembered().repository:
                raise


def free_lock() -> AbstractContextManager[object]:
    """Holds the lock that a run holds. Gives None if somebody else does."""
    return acquire(0) or contextlib.nullcontext()


SLOW: tuple[Check, ...] = (compose, time, backup, database, images, remote)


def command_doctor(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    signals.catch()  # so that containers are removed
    try:
        case = examine(host, SLOW)
    except Ended as ended:
        return ended.code
    problems, checks = case.texts(), len(QUICK) + len(SLOW)
    if arguments.json:
        findings = [asdict(one) for one in case.findings]
        told = {"ok": not problems, "checks": checks, "findings": findings}
        print(json.dumps(told, indent=2))
    else:
        show_findings(case)
        say(f"{checks} checks, {len(problems)} problems")
    return 1 if problems else 0
