"""What retention removes, and what suspends it until the operator has looked."""

from __future__ import annotations

import argparse
import datetime

from .fault_points import fault_point
from .host import CONFIG, IN_SIDECAR, Host
from .log import say
from .runs import Manifest, newest_success, read_runs, run_files, run_time
from .state import lock, read_state, write_state


def expired(runs: list[Manifest], retention_days: int) -> tuple[list[str], list[str]]:
    """(file paths, run ids) that retention removes after the newest run, by the times in their
    names.

    A kind is touched only when the newest run itself added to it; the newest successful file of a
    kind stays, and a run manifest goes with its last file. `runs` are in order of their sequence.
    """
    newest = runs[-1] if runs else None
    if newest is None or newest["result"] != "success":
        return [], []
    limit = run_time(newest["id"]) - datetime.timedelta(days=retention_days)
    kinds = {kind for kind, _ in run_files(newest)}
    files, ids = [], []
    for run in runs[:-1]:
        if run_time(run["id"]) >= limit:
            continue
        old = [path for kind, path in run_files(run) if kind in kinds]
        files += old
        if len(old) == len(run_files(run)):
            ids.append(run["id"])
    return files, ids


def suspicions(
    runs: list[Manifest], retention_days: int, longest_interval: int, now: datetime.datetime
) -> dict[str, str]:
    """Reasons not to trust the newest run enough to remove older ones, by a key that an
    acknowledgement names.

    A clock that jumped, a database that lost its rows: both make good old backups look superfluous.
    """
    found = {}
    for run in runs:
        if run_time(run["id"]) > now + datetime.timedelta(minutes=1):
            found[f"future {run['id']}"] = (
                f"the run {run['id']} lies in the future: the clock was or is wrong"
            )
    good = [run for run in runs if run["result"] == "success"]
    for index, newest in enumerate(good[1:], 1):  # a run after a suspicious one does not hide it
        before = good[index - 1]
        pause = (run_time(newest["id"]) - run_time(before["id"])).total_seconds()
        if pause > max(retention_days * 86400, 2 * longest_interval):
            found[f"pause {newest['id']}"] = (
                f"{newest['id']} came {pause / 86400:.0f} days after the success before it: "
                "the clock jumped, or backups paused"
            )
        if same := newest_success(good[:index], newest["scope"]):
            for table, rows in same["tables"].items():
                if reason := table_suspicion(table, rows, same["id"], newest):
                    found[f"rows {newest['id']} {table}"] = reason
    return found


def table_suspicion(table: str, rows: int, before: str, newest: Manifest) -> str:
    """Why a table that had so many rows in the run `before` is suspicious now; empty if not."""
    if table not in newest["tables"]:
        return f"the table {table} is gone in {newest['id']}; it had {rows} rows in {before}"
    if 2 * (now := newest["tables"][table]) < rows:
        return f"the table {table} has {now} rows in {newest['id']} and had {rows} in {before}"
    return ""


def suspended(host: Host, runs: list[Manifest]) -> dict[str, str]:
    """Why retention is suspended, by key; once a reason is there it stays until `tracker-backup
    acknowledge`.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    state = read_state("retention.json", {"acknowledged": [], "pending": {}})
    reasons: dict[str, str] = {
        **state["pending"],
        **suspicions(runs, host.retention_days, host.longest_interval, now),
    }
    verified = read_state("verified.json", {})
    if verified.get("problems"):
        reasons[f"verify {verified['at']}"] = (
            f"verifying {verified['run']} failed: {'; '.join(verified['problems'])}"
        )
    return {key: reason for key, reason in reasons.items() if key not in state["acknowledged"]}


def command_acknowledge(_: argparse.Namespace) -> int:
    """The operator has looked at what suspended retention: go on."""
    host = Host.read(CONFIG)
    with lock():
        reasons = suspended(host, read_runs(host))
        state = read_state("retention.json", {"acknowledged": []})
        write_state(
            "retention.json",
            {"acknowledged": sorted({*state["acknowledged"], *reasons}), "pending": {}},
        )
    for reason in reasons.values():
        say(f"changed: acknowledged: {reason}")
    if not reasons:
        say("retention is not suspended")
    return 0


def remember_suspension(host: Host, runs: list[Manifest]) -> dict[str, str]:
    """Why retention is suspended; kept until somebody has looked, but for the sidecar, which may
    not write there.
    """
    reasons = suspended(host, runs)
    if not IN_SIDECAR:
        write_state(
            "retention.json",
            {**read_state("retention.json", {"acknowledged": []}), "pending": reasons},
        )
    return reasons


def prune(host: Host) -> None:
    """Removes what is older than the retention, unless it is suspended."""
    fault_point("removing-old-backups", host)
    runs = read_runs(host)
    days = host.retention_days
    reasons = remember_suspension(host, runs)
    for reason in reasons.values():
        say(f"warning: retention is suspended, nothing is removed: {reason}")
    if reasons:
        return
    files, ids = expired(runs, days)
    for name in [*files, *(f"runs/{run_id}.json" for run_id in ids)]:
        (host.destination / name).unlink(missing_ok=True)
        say(f"retention: removed {name}, older than {days} days")
