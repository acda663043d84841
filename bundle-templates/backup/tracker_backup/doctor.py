"""`doctor`: whether everything is there that backup, recovery, verify and restore need.

CHECKS is the whole of it. A check yields what is wrong and how to fix it. It changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cron import cron_problem, next_run
from .deployment import check_deployment
from .docker import WORK_SECONDS, check_docker, docker, has_image, stack_containers, words
from .documents import RunManifest, run_time
from .drivers import driver_of
from .files import remove_tree
from .host import CONFIG, ROOT, STATE, Host, Refused
from .log import LOG, say
from .remote import remembered
from .repository import NO_REPOSITORY, RepositoryFailure, repository, uses_restic
from .run import HOLD, Run, back_up, require_destination, take_lock
from .runs import newest_success, scan_runs
from .secrets import named_secrets
from .sidecar import find_sidecar, sidecar_state
from .signals import Ended, signals
from .space import require_reserve
from .state import refuse_while_unfinished
from .window import capture_seconds

COPY_BYTES = 85_000_000  # a second, of a database on an ordinary disk
SMALL_BYTES = 1 << 30  # of memory, for a second MySQL
BUSY = "a run, verification or restore is under way: what starts a container was not tried"


class Advice(str):
    """A finding that is no problem."""

    __slots__ = ()


@dataclass(frozen=True)
class Finding:
    check: str
    text: str
    advice: bool


@dataclass
class Case:
    """The host that is examined, what its destination holds, and what was found."""

    host: Host
    runs: list[RunManifest] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    free: int | None = None  # bytes in the destination

    def texts(self, advice: bool = False, check: str = "") -> list[str]:
        found = [one for one in self.findings if one.advice == advice]
        return [one.text for one in found if check in ("", one.check)]


def examine(host: Host, quick: bool) -> Case:
    """The checks of CHECKS. The quick ones need no container and no network."""
    case = Case(host)
    for check, is_quick in CHECKS.items():
        if is_quick or not quick:
            case.findings += findings_of(check, case)
    return case


def findings_of(check: Check, case: Case) -> Iterator[Finding]:
    known = {one.text for one in case.findings}
    try:
        for text in check(case):
            if text not in known:
                yield Finding(check.__name__, str(text), isinstance(text, Advice))
    except (Refused, OSError, ValueError) as error:
        if str(error) not in known:
            yield Finding(check.__name__, str(error), advice=False)


# ---------------------------------------------------------------- without a container


def destination(case: Case) -> Iterator[str]:
    """It is there and ours. Only then the others know of its runs."""
    host = case.host
    require_destination(host)
    case.runs, damaged = scan_runs(host)
    yield from damaged
    case.free = shutil.disk_usage(host.destination).free
    if not os.access(host.destination, os.W_OK):
        yield f"{host.destination} cannot be written: is it mounted read-only?"
    if host.destination.stat().st_dev == host.deploy_dir.stat().st_dev and not uses_restic(host):
        yield Advice(
            "the backups are on the disk of what they are copies of: set backup.destination to "
            "another one, or backup.restic"
        )


def settings(case: Case) -> Iterator[str]:
    host = case.host
    driver_of(host)
    _ = host.retention_days, host.backup_settings["BACKUP_COMPRESSION"]
    (host.configuration / "backup-paths.txt").read_text(encoding="utf-8")
    try:
        never = next_run(host.calendar, datetime.datetime.now()) is None
    except ValueError:
        never = True
    if never:
        yield f"{CONFIG}: CALENDAR={host.calendar!r} names no moment; install the bundle again"


def cron(_: Case) -> Iterator[str]:
    if problem := cron_problem():
        yield problem
    if HOLD.exists():
        yield Advice(f"held: no run and no recovery while {HOLD} is there; remove it")


def programs(case: Case) -> Iterator[str]:
    names = ["tracker-backup"]
    names += ["maintenance-backup.sh"] if case.host.strategy != "sidecar" else []
    for name in names:
        if not os.access(path := ROOT / "usr/local/bin" / name, os.X_OK):
            yield f"{path} cannot be executed: it is missing, or its file system is mounted noexec"
    if not os.access(STATE, os.W_OK):
        yield f"{STATE} cannot be written: no run can begin and no window can be marked"


def secrets(case: Case) -> Iterator[str]:
    for name in named_secrets(case.host.configuration / "backup.conf"):
        path = case.host.deploy_dir / "backup/secrets" / name
        if not path.is_file() or not (content := path.read_bytes()):
            yield f"the secret {path} is missing or empty: install the bundle again, with secrets"
        elif content[-1:] in (b"\n", b"\r") and len(content.split(b"\n")) <= 2:
            yield Advice(f"the secret {path} ends with a line end, which is not part of a password")
        elif path.stat().st_mode & 0o077:
            yield f"the secret {path} can be read by others: chmod 0600 {path}"


def space(case: Case) -> Iterator[str]:
    host = case.host
    for directory in (host.destination, host.staging, STATE, LOG.parent):
        with contextlib.suppress(FileNotFoundError):
            yield from refusal(require_reserve, [directory])
    last, free = newest_success(case.runs), case.free
    if last and free is not None and free < last.bytes:
        yield f"{host.destination} has {free} bytes free, and the last backup has {last.bytes}"


def deployment(case: Case) -> Iterator[str]:
    yield from map(Advice, check_deployment(case.host))


def sidecar(case: Case) -> Iterator[str]:
    state = sidecar_state(case.host)
    if state and not state.startswith("running"):
        yield f"the sidecar is {state}: no backup is made; `tracker-backup sidecar` brings it back"
    elif state.endswith("unhealthy"):
        yield ("the sidecar is unhealthy; `docker logs` of its container tells what its runs said")


def image(case: Case) -> Iterator[str]:
    if not has_image(case.host.image):
        yield (
            f"the image {case.host.image} is missing, which restore and verify need: "
            "`tracker-backup run` makes it"
        )


def clock(case: Case) -> Iterator[str]:
    now = datetime.datetime.now(datetime.timezone.utc)
    newest = max((run_time(run.id) for run in case.runs), default=now)
    if newest > now + datetime.timedelta(minutes=1):
        yield f"the newest run began at {newest:%F %T} UTC, and it is {now:%F %T}: set the clock"
    zone = ROOT / "etc/localtime"
    if zone.is_symlink() and not zone.exists():
        yield f"{zone} points to nothing, so cron goes by UTC: timedatectl set-timezone ZONE"


def window(case: Case) -> Iterator[str]:
    """The time for capturing, against the last window, or against the size of a file."""
    host, last = case.host, newest_success(case.runs)
    if host.quiesce not in ("stop", "pause"):
        return
    limit = capture_seconds(host)
    fix = f"only {limit} s: raise backup.window_timeout_seconds, or set backup.quiesce to 'none'"
    if last and last.quiesce == host.quiesce:
        if last.window_seconds > limit / 2:
            yield Advice(
                f"the last window took {last.window_seconds:.0f} s, and a capture may {fix}"
            )
    elif file := driver_of(host).target(host):
        seconds = (host.deploy_dir / file).lstat().st_size / COPY_BYTES
        if seconds > limit:
            yield Advice(f"to copy the database may take {seconds:.0f} s, and a capture may {fix}")


# ---------------------------------------------------------------- with containers, or slow


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
        if found := find_sidecar(host):
            dry_run = ["exec", found["Id"], "backup.sh", "now", "--dry-run"]
            docker(*dry_run, seconds=WORK_SECONDS)
        return
    refuse_while_unfinished()
    run = Run(dry_run=True, force=True)
    run.host, run.quiesce = host, host.quiesce
    with lock_or_busy() as free:
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
    with lock_or_busy() as free:
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
    for found in stack_containers(case.host):
        digests, template = "", "{{json .RepoDigests}}"
        with contextlib.suppress(Refused):
            digests = docker("image", "inspect", "--format", template, found["Image"]).strip()
        if digests in ("", "[]", "null"):
            yield Advice(
                f"no registry is known for the image {found['Config']['Image']}: keep a copy of "
                "it (docker save), which a restore onto an empty machine needs"
            )


def remote(case: Case) -> Iterator[str]:
    if not uses_restic(case.host):
        return
    with lock_or_busy() as free:
        if not free:
            yield Advice(BUSY)
            return
        try:
            with repository(case.host) as repo:
                repo.call("identify")
        except RepositoryFailure as failure:
            if failure.reason != NO_REPOSITORY or remembered().repository:
                raise


@contextlib.contextmanager
def lock_or_busy() -> Iterator[bool]:
    """Holds the lock that a run holds. False if somebody else does."""
    file = take_lock(recover=True)
    try:
        yield file is not None
    finally:
        if file:
            file.close()


def refusal(check: Callable[..., object], *arguments: Any) -> Iterator[str]:
    """What a check refuses, as a finding, so that those after it are made, too."""
    try:
        check(*arguments)
    except Refused as error:
        yield str(error)


Check = Callable[[Case], Iterator[str]]

CHECKS: dict[Check, bool] = {  # and whether it is quick
    destination: True,
    settings: True,
    cron: True,
    programs: True,
    secrets: True,
    space: True,
    deployment: True,
    sidecar: True,
    image: True,
    clock: True,
    window: True,
    compose: False,
    time: False,
    backup: False,
    database: False,
    images: False,
    remote: False,
}


def command_doctor(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    signals.catch()  # so that containers are removed
    try:
        case = examine(host, quick=False)
    except Ended as ended:
        return ended.code
    problems = case.texts()
    if arguments.json:
        findings = [asdict(one) for one in case.findings]
        told = {"ok": not problems, "checks": len(CHECKS), "findings": findings}
        print(json.dumps(told, indent=2))
    else:
        show_findings(case)
        say(f"{len(CHECKS)} checks, {len(problems)} problems")
    return 1 if problems else 0


def show_findings(case: Case) -> None:
    """Also for the end of an installation."""
    for one in sorted(case.findings, key=lambda one: one.advice):
        say(f"{'advice' if one.advice else 'PROBLEM'}: {one.check}: {one.text}")
