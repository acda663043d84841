"""A run: `back_up` is one from its lock to its copy elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import os
import traceback
from collections.abc import Callable
from typing import IO

from . import log
from .capture import PREFLIGHT_SECONDS, capture, capturing, preflight, prove_pause, work_seconds
from .current import Run, record
from .documents import SUBDIRECTORIES
from .fault_points import fault_point
from .files import remove_tree
from .finish import finish, record_success
from .host import CONFIG, STATE, Host, Refused
from .notify import tell_end
from .prepare import (
    begin,
    find_tracker,
    project_of,
    remove_leftover_containers,
    remove_leftover_files,
    require_deployment,
    require_docker,
    require_image,
    require_settings,
)
from .reach import unchanged_reach
from .remote import push_or_tell
from .repository import uses_restic
from .restore import command_rollback
from .runs import read_runs, too_old
from .signals import Ended, signals
from .state import LockHeld, acquire, refuse_while_unfinished
from .tracker import Stack, Tracker
from .window import MARKER, Window, is_overdue, recover

HOLD, RESTORE = STATE / "hold", STATE / "restore.json"
LOCK_SECONDS = float(os.environ.get("TRACKER_BACKUP_LOCK_SECONDS", "10"))
RESULTS = {0: "success", 3: "skipped"}  # by exit code


def back_up(run: Run) -> None:
    """The strategy maintenance-window."""
    host = run.host
    begin(run)
    with Stack(host, restarts=not run.dry_run) as stack:
        remove_leftover_containers(run)
        remove_leftover_files(run)
        require_docker(host)
        tracker, looked_at = find_tracker(run)
        require_deployment(run)
        if not require_image(run):
            return
        with capturing(run, project_of(tracker)) as (reader, source):
            if run.quiesce == "pause":
                prove_pause(run, reader)
            # If the tracker does not run, whoever stopped it, the capture copies its files.
            method = "online" if run.quiesce == "none" else "copy"
            sizes = preflight(run, reader, source, method)
            if run.dry_run:
                log.log(
                    f"dry run: everything is ready; would now {run.quiesce} the tracker, capture, "
                    f"and publish to {host.destination}"
                )
                return
            if source is reader and run.quiesce in ("stop", "pause"):
                reader.ask("preallocate", PREFLIGHT_SECONDS, **run.arguments)
            if not run.quiesce.startswith("left-"):  # making the image can take half an hour
                tracker, looked_at = find_tracker(run)
            run.window = Window(host, run.id, run.quiesce, tracker, looked_at, stack)
            with same_reach(run, tracker), run.window as window:
                limit = window.remaining(work_seconds(sizes["database_bytes"]))
                fault_point("beginning-the-capture", host)
                captured = capture(run, source, method, sizes, limit)
            window.require_unchanged()
            note_stop(run, window)
            finish(run, reader, source, sizes, captured)
        record_success(run)
        push(host)
    require_complete(run)


def back_up_in_sidecar(run: Run) -> None:
    """The strategy sidecar, inside it: no Docker, no window, and the tracker is never touched."""
    begin(run)
    remove_leftover_files(run)
    require_deployment(run)
    with capturing(run) as (reader, source):
        sizes = preflight(run, reader, source, "online")
        if run.dry_run:
            log.log(
                "dry run: everything is ready; would now capture online, and publish to "
                f"{run.host.destination}"
            )
            return
        seconds = work_seconds(sizes["database_bytes"])
        captured = capture(run, source, "online", sizes, seconds)
        finish(run, reader, source, sizes, captured)
    record_success(run)
    require_complete(run)


def same_reach(run: Run, tracker: Tracker | None) -> contextlib.AbstractContextManager[None]:
    """Docker writes the firewall's rules anew when it starts a container again."""
    if run.quiesce == "stop" and tracker:
        return unchanged_reach(tracker.id, run.warn)
    return contextlib.nullcontext()


def note_stop(run: Run, window: Window) -> None:
    """How long the tracker took to stop, and whether Docker had to kill it."""
    if run.quiesce == "stop" and window.outage and window.outage.found:
        run.killed = window.outage.found.exit_code == "137"
        run.found.milliseconds["stop"] = round(window.stopping * 1000)


def require_complete(run: Run) -> None:
    if run.incomplete:
        raise Refused(run.incomplete)


def push(host: Host) -> None:
    """Makes the remote copy. If it fails, the backup is published all the same, and the next run
    copies it.
    """
    if uses_restic(host):
        try:
            push_or_tell(host)
        except Refused as error:
            raise Refused(f"the backup was published, but {error}") from error


# ---------------------------------------------------------------- the commands


def command_window(arguments: argparse.Namespace) -> int:
    """For maintenance-backup.sh: its comment has the options and the exit codes."""

    def work(run: Run) -> None:
        require_no_hold()
        if not run.dry_run:
            roll_back_dead_restore(arguments)
        if arguments.recover and not MARKER.exists():
            return
        run.lock = take_lock(arguments.recover)
        if not run.lock and not is_overdue():
            return
        if run.dry_run:
            refuse_while_unfinished()
        if RESTORE.exists():
            raise Refused(f"a restore died and is still to be rolled back: {RESTORE}", 4)
        recover()
        if arguments.recover:
            return
        run.host = host = Host.read(CONFIG)
        require_settings(host, "maintenance-window", ("stop", "pause", "none"))
        run.quiesce = host.quiesce
        back_up(run)

    return supervise("maintenance-backup", Run(arguments.dry_run, arguments.force), work)


def command_in_sidecar(arguments: argparse.Namespace) -> int:
    """For `backup.sh now`."""

    def work(run: Run) -> None:
        require_no_hold()
        run.lock = take_lock(recover=False)
        if RESTORE.exists():
            raise Refused(f"a restore died and left {RESTORE}; the host rolls it back in a minute")
        run.host = host = Host.read(CONFIG)
        require_settings(host, "sidecar", ("none",))
        run.quiesce = host.quiesce
        back_up_in_sidecar(run)

    return supervise("sidecar-backup", Run(arguments.dry_run), work)


def command_check(_: argparse.Namespace) -> int:
    """For the sidecar's health: whether the last success is recent."""
    host = Host.read(CONFIG)
    if problem := too_old(host, read_runs(host))[1]:
        raise Refused(problem)
    return 0


def require_no_hold() -> None:
    if HOLD.exists():
        raise Refused(f"held: nothing is done while {HOLD} is there", 3)


def roll_back_dead_restore(arguments: argparse.Namespace) -> None:
    if RESTORE.exists():
        try:
            command_rollback(arguments)
        except (Refused, OSError) as error:
            raise Refused(f"a restore that died could not be rolled back: {error}", 4) from error


def take_lock(recover: bool) -> IO[str] | None:
    """The open file that holds the lock; None for a recovery, if a run holds it."""
    if not recover:
        fault_point("taking-the-lock")
    file = acquire(0 if recover else LOCK_SECONDS)
    if not file and not recover:
        raise LockHeld(f"another run holds {STATE / 'lock'}; nothing was done", 75)
    return file


# ---------------------------------------------------------------- the end


def supervise(name: str, run: Run, work: Callable[[Run], None]) -> int:
    """Does the work, cleans up after it, and logs the reason of a failure once."""
    log.name = name
    signals.catch()
    with contextlib.nullcontext() if run.dry_run else log.LogFile():
        code, reason = 0, ""
        try:
            try:
                work(run)
            finally:
                signals.ignore()  # a signal in between is still caught here
        except (Refused, Ended) as failure:
            code, reason = failure.code, str(failure)
        except OSError as failure:
            code, reason = 1, str(failure)
        except Exception as failure:
            code, reason = 1, f"unexpected {failure!r}; where is in the lines above"
            for line in traceback.format_exc().splitlines():
                log.log(line)
        end_run(run, code, " ".join(reason.split("\n")))
    return code


def end_run(run: Run, code: int, reason: str) -> None:
    """A failed run publishes nothing. One that was skipped leaves no run manifest either."""
    if run.unrecorded and code != 3:
        destination = run.host.destination
        try:
            # Delete the run manifest before the backup files. Otherwise a manifest could report
            # success for files that no longer exist.
            (destination / f"runs/{run.id}.json").unlink(missing_ok=True)
            for kind in SUBDIRECTORIES:
                for path in (destination / kind).glob(f"*_{run.id}.*"):
                    path.unlink()
            record(run, "failed", code, reason)
        except (Refused, OSError) as error:
            log.log(f"WARNING: the failed run could not be recorded: {error}")
    if run.id:
        remove_tree(run.host.staging / run.id)
    if code == 3:
        log.log(f"WARNING: {reason}")
    elif code:
        how = "failed"
        if run.files and not run.unrecorded:
            how = "is incomplete" if run.incomplete else "was published, and then failed"
        log.log(f"ERROR: {f'run {run.id} {how}, ' if run.id else ''}exit code {code}: {reason}")
    elif run.id and not run.dry_run:
        log.log(f"run {run.id} succeeded")
    if not run.dry_run and (run.id or code):
        incomplete = bool(run.incomplete) and not run.unrecorded
        result = "incomplete" if incomplete else RESULTS.get(code, "failed")
        tell_end(run.id, result, code, reason)
