"""The checks of `doctor` that need no container and no network: `status` makes them, too.

A check yields what is wrong and how to fix it. It changes nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .cron import cron_problem, next_run
from .deployment import check_deployment
from .destination import require_destination
from .docker import has_image
from .documents import RunManifest, run_time
from .drivers import driver_of
from .host import CONFIG, ROOT, STATE, Host, Refused
from .log import LOG, say
from .repository import uses_restic
from .runs import newest_success, scan_runs
from .secrets import named_secrets
from .sidecar import sidecar_state
from .space import require_reserve
from .window import capture_seconds

HOLD = STATE / "hold"
COPY_BYTES = 85_000_000  # a second, of a database on an ordinary disk


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


Check = Callable[[Case], Iterator[str]]


def examine(host: Host, further: Iterable[Check] = ()) -> Case:
    """The quick checks, and further ones."""
    case = Case(host)
    for check in (*QUICK, *further):
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


def refusal(check: Callable[..., object], *arguments: Any) -> Iterator[str]:
    """What a check refuses, as a finding, so that those after it are made, too."""
    try:
        check(*arguments)
    except Refused as error:
        yield str(error)


def show_findings(case: Case) -> None:
    """Problems first. Also for the end of an installation."""
    for one in sorted(case.findings, key=lambda one: one.advice):
        say(f"{'advice' if one.advice else 'PROBLEM'}: {one.check}: {one.text}")


# ---------------------------------------------------------------- the checks


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
        if path.is_file() and path.stat().st_mode & 0o077:
            yield f"the secret {path} can be read by others: chmod 0600 {path}"


def space(case: Case) -> Iterator[str]:
    directories, last = [case.host.staging, STATE, LOG.parent], newest_success(case.runs)
    if case.free is not None:  # a destination that does not answer is not asked again
        directories.append(case.host.destination)
        if last and case.free < last.bytes:
            yield f"the destination has {case.free} bytes free; the last backup has {last.bytes}"
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):
            yield from refusal(require_reserve, [directory])


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


QUICK: tuple[Check, ...] = (
    *(destination, settings, cron, programs, secrets, space, deployment),
    *(sidecar, image, clock, window),
)
