"""What retention removes, and what suspends it until the operator has looked."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

from .documents import (
    BadDocument,
    NewerFormat,
    RetentionState,
    RunManifest,
    VerificationState,
    run_time,
)
from .fault_points import fault_point
from .host import CONFIG, IN_SIDECAR, Host
from .log import say
from .publish import remove_backup, remove_old_leftovers
from .runs import newest_success, read_runs
from .state import lock

ACKNOWLEDGED = 10_000  # keys of reasons that are remembered
TABLES = 100  # at most so many suspicious tables of a run are reported: a service can make more
ROWS = 100  # a table that lost fewer is not suspicious
DAMAGED = "damaged "  # begins the key of a reason that ends when its document is whole again


def begin_of_period(runs: list[RunManifest], days: int) -> datetime.datetime | None:
    """What is older can go; None when the newest run published nothing."""
    if not runs or not runs[-1].published:
        return None
    return run_time(runs[-1].id) - datetime.timedelta(days=days)


def expired(
    runs: list[RunManifest], days: int, acknowledged: Collection[str] = ()
) -> tuple[list[str], list[str], dict[str, str]]:
    """(file paths, run ids) that retention removes, by the times in their names, and what it keeps
    until its key is acknowledged: the last backup of another driver.

    A kind is touched only when the newest run added to it, and an incomplete run never touches the
    configuration. A run manifest goes with its last file. `runs` are in order of their sequence.
    """
    files: list[str] = []
    ids: list[str] = []
    kept: dict[str, str] = {}
    begin = begin_of_period(runs, days)
    if begin is None:
        return files, ids, kept
    kinds = {file.kind for file in runs[-1].files}
    if runs[-1].result == "incomplete":
        kinds -= {"config"}
    last = {run.driver: run for run in runs if run.paths_of("database")}
    success = newest_success(runs)  # the one that is restored and verified
    for run in runs[:-1]:
        if run is success or run_time(run.id) >= begin:
            continue
        old = run.paths_of(*kinds)
        key = f"driver {run.id}"
        if run is last.get(run.driver) and "database" in kinds and key not in acknowledged:
            old = run.paths_of(*kinds - {"database"})
            kept[key] = f"{run.id} is the last backup of {run.driver}"
        files += old
        if len(old) == len(run.files):
            ids.append(run.id)
    return files, ids, kept


def suspicions(
    runs: list[RunManifest], days: int, longest_interval: int, now: datetime.datetime
) -> dict[str, str]:
    """Reasons not to trust the newest run enough to remove older ones, by a key that an
    acknowledgement names.

    A clock that jumped, a database that lost its rows: both make good old backups look superfluous.
    """
    found = {}
    for run in runs:
        if run_time(run.id) > now + datetime.timedelta(minutes=1):
            found[f"future {run.id}"] = (
                f"the run {run.id} lies in the future: the clock was or is wrong"
            )
    good = [run for run in runs if run.published]
    for before, newest in pairwise(good):  # a run after a suspicious one does not hide it
        pause = (run_time(newest.id) - run_time(before.id)).total_seconds()
        if pause > max(days * 86400, 2 * longest_interval):
            found[f"pause {newest.id}"] = (
                f"{newest.id} came {pause / 86400:.0f} days after the success before it: "
                "the clock jumped, or backups paused"
            )
    return found | lost_rows(good)


def lost_rows(good: list[RunManifest]) -> dict[str, str]:
    """The tables that lost rows, against the largest since they last did: a table that loses a few
    rows in each run loses many in the end. Only runs of the same driver and scope are compared.
    """
    found = {}
    largest: dict[tuple[str, str], dict[str, tuple[int, str]]] = {}  # (rows, run) by table
    for run in (run for run in good if run.driver):
        known, told = largest.setdefault((run.driver, run.scope), {}), 0
        for table, (rows, before) in list(known.items()):
            if reason := table_suspicion(table, rows, before, run):
                del known[table]
                told += 1
                if told <= TABLES:
                    found[f"rows {run.id} {table}"] = reason
        for table, rows in run.tables.items():
            if rows >= known.get(table, (0, ""))[0]:
                known[table] = rows, run.id
    return found


def table_suspicion(table: str, rows: int, before: str, newest: RunManifest) -> str:
    """Why a table that had so many rows in the run `before` is suspicious now; empty if not."""
    if (now := newest.tables.get(table)) is None:
        return f"the table {table} is gone in {newest.id}; it had {rows} rows in {before}"
    if 2 * now < rows and rows - now >= ROWS:
        return f"the table {table} has {now} rows in {newest.id} and had {rows} in {before}"
    return ""


def suspended(host: Host, runs: list[RunManifest]) -> dict[str, str]:
    """Why retention is suspended, by key. A reason stays until `tracker-backup acknowledge`, and
    damage to what is known of reasons stays until it is repaired.
    """
    damage: list[str] = []
    state = RetentionState.peek(damage) or RetentionState([], {})
    verified = VerificationState.peek(damage)
    now = datetime.datetime.now(datetime.timezone.utc)
    reasons = state.pending | suspicions(runs, host.retention_days, host.longest_interval, now)
    if verified and verified.problems:
        reasons[f"verify {verified.at}"] = (
            f"verifying {verified.run} failed: {'; '.join(verified.problems)}"
        )
    return {key: reason for key, reason in reasons.items() if key not in state.acknowledged} | {
        DAMAGED + problem: problem for problem in damage
    }


def lasting(reasons: dict[str, str]) -> dict[str, str]:
    """Those that end with an acknowledgement, and not with a repair."""
    return {key: reason for key, reason in reasons.items() if not key.startswith(DAMAGED)}


def remember_suspension(host: Host, runs: list[RunManifest]) -> dict[str, str]:
    """Why retention is suspended. It is written down, but not by the sidecar, which may not write
    there, and not over a damaged document.
    """
    reasons, damage = suspended(host, runs), list[str]()
    state = RetentionState.peek(damage) or RetentionState([], {})
    if not IN_SIDECAR and not damage:
        replace(state, pending=lasting(reasons)).store()
    return reasons


def command_acknowledge(_: argparse.Namespace) -> int:
    """The operator has looked at what suspended retention: go on."""
    host = Host.read(CONFIG)
    with lock():
        runs = read_runs(host)
        reasons = suspended(host, runs)
        try:
            state = RetentionState.load() or RetentionState([], {})
        except NewerFormat:
            raise
        except BadDocument:
            state = RetentionState([], {})
        reasons |= expired(runs, host.retention_days, state.acknowledged)[2]
        # In the order in which they were acknowledged. The oldest are forgotten first.
        known = [key for key in state.acknowledged if key not in reasons][-ACKNOWLEDGED:]
        RetentionState([*known, *lasting(reasons)], {}).store()
        left = suspended(host, runs)
    for key, reason in reasons.items():
        if key not in left:
            say(f"changed: acknowledged: {reason}")
    for reason in left.values():
        say(f"retention is still suspended: {reason}")
    if not reasons:
        say("retention is not suspended")
    return 0


def prune(host: Host) -> None:
    """Removes what is older than the retention, unless it is suspended."""
    fault_point("removing-old-backups", host)
    runs, days = read_runs(host), host.retention_days
    reasons = remember_suspension(host, runs)
    if reasons:
        more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        first = next(iter(reasons.values()))
        say(
            f"warning: retention is suspended, nothing is removed: {first}{more}; "
            "`tracker-backup status` shows why"
        )
        return
    state = RetentionState.load()
    files, ids, kept = expired(runs, days, state.acknowledged if state else ())
    for reason in kept.values():
        say(f"warning: {reason} and is kept until `tracker-backup acknowledge`")
    for name in [*files, *(f"runs/{run_id}.json" for run_id in ids)]:
        remove_backup(host.destination / name, say)
        say(f"retention: removed {name}, older than {days} days")
    if begin := begin_of_period(runs, days):
        remove_old_leftovers(host, begin, say)
