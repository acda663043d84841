"""The roles that capture: started and proven before the window, asked within it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from . import log
from .current import Run
from .deployment import stack_facts
from .docker import (
    RUN_LABEL,
    WORK_SECONDS,
    compose,
    docker,
    read_only_mounts,
    words,
)
from .drivers import driver_of
from .fault_points import fault_point
from .host import IN_SIDECAR, Refused
from .prepare import check_space, engine_root
from .protocol import REASON_CHARACTERS, Answer, printable
from .roles import Role, RoleSettings
from .runs import newest_backup, read_runs
from .signals import Ended, signals
from .tables import compare_tables

PREFLIGHT_SECONDS = float(os.environ.get("TRACKER_BACKUP_PREFLIGHT_SECONDS", "300"))
PAUSE_RETRY_SECONDS = float(os.environ.get("TRACKER_BACKUP_PAUSE_RETRY_SECONDS", "5"))
RUN_SECONDS = float(os.environ.get("TRACKER_BACKUP_RUN_SECONDS", str(WORK_SECONDS)))
MEMBER_SECONDS = 900  # for one database of another service
BYTES_PER_SECOND = 1 << 20  # that a role works through at least, after the first MEMBER_SECONDS
STALL_LIMIT_SECONDS = 5  # drivers of SQLite commonly give up after this time
SIZES = ("database_bytes", "config_disk_bytes")  # that the reader has to answer
DUMP_SPARE_BYTES = 1 << 30  # of a dump beside eight times what the server says of its tables


@contextlib.contextmanager
def capturing(run: Run, project: str = "") -> Iterator[tuple[Role, Role]]:
    """The reader, and the role that captures the database: the reader itself, or a client.

    They are started before the window, because that would double a short one.
    """
    host, driver = run.host, driver_of(run.host)
    run.last = newest_backup(read_runs(host), scope=host.scope)
    run.facts = stack_facts(host)

    def start_container(arguments: list[str], environment: dict[str, str]) -> None:
        try:
            compose(host, *arguments, project=project, environment=environment)
        except Refused as error:
            raise Refused(f"the backup container could not be started: {error}") from error

    settings = RoleSettings(
        run.id,
        host.staging,
        log.log,
        None if IN_SIDECAR else start_container,
        # not the destination: one that hangs would hold up the window
        tuple(path for path in (host.staging, engine_root()) if path.is_dir()),
        () if IN_SIDECAR else read_only_mounts(host),
        time.monotonic() + RUN_SECONDS,
    )
    fault_point("starting-the-container", host)
    with Role(settings, "reader") as reader, contextlib.ExitStack() as stack:
        source = reader
        if driver.SOURCE != "reader":
            source = stack.enter_context(Role(settings, driver.SOURCE))
        try:
            yield reader, source
        except BaseException as error:
            signals.ignore()  # from now on the run cleans up
            if run.window and isinstance(error, Ended):
                # It may have arrived after the capture, before the window's own end began.
                run.window.leave(error)
            raise


def prove_pause(run: Run, role: Role) -> None:
    """Pauses and unpauses a container of ours, before the tracker is touched. An engine that cannot
    pause (its cgroups have no freezer) is a configuration error.
    """
    role.greet()
    fault_point("proving-pause", run.host)
    messages: dict[str, None] = {}
    # Docker fails for some seconds, too, when containerd was killed.
    for attempt in range(3):
        time.sleep(PAUSE_RETRY_SECONDS if attempt else 0)
        failed = False
        for call in ("pause", "unpause"):
            try:
                docker(call, role.container)
            except Refused as error:
                messages[str(error).partition(" failed: ")[2] or str(error)] = None
                # A pause that failed before may have taken effect since.
                failed = call == "unpause" or attempt == 0
                if failed:
                    break
        if not failed:
            return
    message = printable(" ".join("; ".join(messages).split("\n")), REASON_CHARACTERS)
    label = f"label={RUN_LABEL}={run.id}"
    if not docker(*words("ps --quiet --filter"), label).strip():
        raise Refused(f"the backup container did not stay up ({message})")
    raise Refused(
        f"this Docker engine cannot pause containers ({message}): set backup.quiesce to "
        "'stop' in the environment file, generate and install again",
        2,
    )


def preflight(run: Run, reader: Role, source: Role, method: str) -> dict[str, int]:
    """Everything that can be known before the tracker is touched. Returns the reader's numbers."""
    host, driver = run.host, driver_of(run.host)
    fault_point("preflight", host)
    may_stall = host.backup_settings["BACKUP_ALLOW_WRITER_STALL"] == "true"
    stall = 0 if may_stall else STALL_LIMIT_SECONDS
    run.arguments = arguments = driver.arguments(host)
    found = reader.ask(
        "preflight",
        PREFLIGHT_SECONDS,
        method=method,
        stall_limit=stall,
        compose=run.facts.compose_files,
        **(arguments if source is reader else {}),
    )
    sizes = {name: found.numbers.get(name, 0) for name in SIZES}
    if source is not reader:
        answer = source.ask("preflight", PREFLIGHT_SECONDS, **arguments)
        where = f"database {arguments['name']}, as user {arguments['user']} sees it,"
        # The warnings about tables come again with what was captured.
        for warning in compare_tables(run.last.tables if run.last else (), answer.tables, where):
            log.log(f"WARNING: {warning}")
        sizes["database_bytes"] = run.note(answer).numbers.get("database_bytes", 0)
    run.found.numbers = sizes
    for path in found.missing:
        log.log(f"WARNING: {path} is missing or cannot be read: the backup will be incomplete")
    check_space(run, sizes["database_bytes"], sizes["config_disk_bytes"])
    return sizes


def capture(run: Run, source: Role, method: str, sizes: dict[str, int], seconds: float) -> Answer:
    fault_point("capturing-the-database", run.host)
    return source.ask(
        "capture",
        seconds,
        method=method,
        limit_bytes=8 * sizes["database_bytes"] + DUMP_SPARE_BYTES,
        **run.arguments,
    )


def work_seconds(size: int) -> float:
    """The time limit of a role that works through so many bytes. One that somebody took over cannot
    hold a lock, or the run, for longer.
    """
    return min(WORK_SECONDS, MEMBER_SECONDS + size / BYTES_PER_SECOND)
