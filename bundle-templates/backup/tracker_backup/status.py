"""How the backups are: `list` and `status`."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
from collections.abc import Mapping
from typing import Any

from .cron import MISSING, REMEDY, cron_runs
from .deployment import check_deployment
from .destination import check_destination
from .host import CONFIG, STATE, Host, Refused
from .log import say
from .remote import remote_status
from .retention import suspended
from .runs import newest_success, read_runs, too_old
from .sidecar import sidecar_state
from .state import read_state


def command_list(arguments: argparse.Namespace) -> int:
    runs = read_runs(Host.read(CONFIG))
    if arguments.json:
        say(json.dumps(runs, indent=2, ensure_ascii=False))
        return 0
    for run in runs:
        size = sum(file["bytes"] for file in run["files"])
        what = (
            f"{size:>14,} bytes  window {run['window_seconds']:.1f} s  {run['scope']}"
            if run["files"]
            else run["reason"]
        )
        say(f"{run['sequence']:>5}  {run['id']}  {run['result']:<7}  {what}")
    if not runs:
        say("no run yet")
    return 0


def next_run(calendar: str, after: datetime.datetime) -> datetime.datetime | None:
    """The first minute later than `after`, host's wall-clock time, that the calendar names; None
    when there is none in 40 years.
    """
    *fields, days_taken = calendar.split()
    minutes, hours, days, months, weekdays = (
        [int(number) for number in field.split(",")] for field in fields
    )
    for offset in range(40 * 366):
        day = after.date() + datetime.timedelta(days=offset)
        in_days, in_weekdays = day.day in days, day.isoweekday() % 7 in weekdays
        if day.month in months and (
            in_days and in_weekdays if days_taken == "both" else in_days or in_weekdays
        ):
            for hour in hours:
                for minute in minutes:
                    time_of_day = datetime.datetime.combine(day, datetime.time(hour, minute))
                    if time_of_day > after:
                        return time_of_day
    return None


def command_status(arguments: argparse.Namespace) -> int:
    """How the backups are; docs/operations.md describes the JSON object."""
    host = Host.read(CONFIG)
    problems, drift, runs = [], [], []
    free = None
    try:
        check_destination(host)
        runs = read_runs(host)
        free = shutil.disk_usage(host.destination).free
    except (Refused, OSError) as error:
        problems.append(str(error))
    try:
        drift = check_deployment(host)
    except Refused as error:
        problems.append(str(error))
    last, success = (runs[-1] if runs else None), newest_success(runs)
    age, problem = too_old(host, runs)
    problems += [problem] if problem else []
    cron = cron_runs()
    problems += [] if cron else [f"{MISSING}: {REMEDY}"]
    sidecar = sidecar_state(host)
    if sidecar and not sidecar.startswith("running"):
        problems.append(
            f"the sidecar is {sidecar}: no backup is made; `tracker-backup sidecar` brings it back"
        )
    elif sidecar.endswith("unhealthy"):
        problems.append(
            "the sidecar is unhealthy; `docker logs` of its container tells what its runs said"
        )
    suspension = list(suspended(host, runs).values())
    if suspension:
        problems.append("retention is suspended until `tracker-backup acknowledge`")
    remote, failures = remote_status(host, runs)
    problems += failures
    unfinished = [name for name in ("window", "restore.json") if (STATE / name).exists()]
    upcoming = next_run(host.calendar, datetime.datetime.now())
    status = {
        "environment": host.environment,
        "ok": not problems,
        "problems": problems,
        "schedule": host.schedule,
        "next_run": upcoming.isoformat(timespec="minutes") if upcoming else None,
        "last_run": {key: last[key] for key in ("id", "result", "exit_code", "reason", "warnings")}
        if last
        else None,
        "last_success": {key: success[key] for key in ("id", "files", "tables", "window_seconds")}
        if success
        else None,
        "last_verify": read_state("verified.json", {}) or None,
        "remote": remote,
        "age_seconds": age,
        "age_limit_seconds": host.age_limit,
        "runs": len(runs),
        "bytes": sum(file["bytes"] for run in runs for file in run["files"]),
        "free_bytes": free,
        "sidecar": sidecar or None,
        "cron": cron,
        "hold": (STATE / "hold").exists(),
        "unfinished": unfinished,
        "retention_suspended": suspension,
        "drift": drift,
    }
    if arguments.json:
        say(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        show_status(host, status)
    return 1 if problems else 0


def show_status(host: Host, status: Mapping[str, Any]) -> None:
    last, success, verified = status["last_run"], status["last_success"], status["last_verify"]
    say(f"environment   {host.environment}, destination {host.destination}")
    say(
        f"schedule      {host.schedule}, next "
        f"{status['next_run'] or 'never'}{', ON HOLD' if status['hold'] else ''}"
    )
    if status["sidecar"]:
        say(f"sidecar       {status['sidecar']}")
    if last:
        say(
            f"last run      {last['id']} {last['result']}"
            + (f": {last['reason']}" if last["reason"] else "")
        )
        for warning in last["warnings"]:
            say(f"  warning     {warning}")
    if success:
        say(
            f"last success  {success['id']}, {status['age_seconds'] / 3600:.1f} hours ago, "
            f"window {success['window_seconds']:.1f} s"
        )
    if verified:
        say(
            f"last verify   {verified['at']}, run {verified['run']}: "
            f"{'; '.join(verified['problems']) or 'can be restored'}"
        )
    if remote := status["remote"]:
        say(
            f"restic        last copied {remote['last_pushed'] or 'nothing yet'}, "
            f"{len(remote['pending'])} to be copied"
        )
    if remote and remote["checked"]:
        say(f"  checked     {remote['checked']['at']}: {remote['checked']['problem'] or 'whole'}")
    say(
        f"backups       {status['runs']} runs, {status['bytes']:,} bytes; "
        f"{status['free_bytes'] or 0:,} bytes free"
    )
    for reason in status["retention_suspended"]:
        say(f"  suspended   {reason}")
    for text in status["drift"]:
        say(f"  drift       {text}")
    for name in status["unfinished"]:
        say(f"  unfinished  {STATE / name}: under way, or for maintenance-backup.sh --recover")
    say("OK" if status["ok"] else "PROBLEM: " + "; ".join(status["problems"]))
