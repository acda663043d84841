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
from .documents import Document, RestoreJournal, RetentionState, RunManifest, VerificationState
from .host import CONFIG, STATE, Host, Refused
from .log import say
from .notify import unsent_problems
from .remote import remote_status
from .retention import expired, lasting, suspended
from .runs import newest_success, read_runs, scan_runs, too_old
from .sidecar import sidecar_state


def command_list(arguments: argparse.Namespace) -> int:
    runs = read_runs(Host.read(CONFIG))
    if arguments.json:
        say(json.dumps([run.as_object() for run in runs], indent=2, ensure_ascii=False))
        return 0
    for run in runs:
        what = f"{run.bytes:>14,} bytes  window {run.window_seconds:.1f} s  {run.scope}"
        say(
            f"{run.sequence:>5}  {run.id}  {run.result:<7}  {what if run.files else run.reason}"
            + (f", without {', '.join(run.missing)}" if run.missing else "")
        )
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
    combine = all if days_taken == "both" else any
    dates = (after.date() + datetime.timedelta(days=offset) for offset in range(40 * 366))
    moments = (
        datetime.datetime.combine(date, datetime.time(hour, minute))
        for date in dates
        if date.month in months and combine((date.day in days, date.isoweekday() % 7 in weekdays))
        for hour in hours
        for minute in minutes
    )
    return next((moment for moment in moments if moment > after), None)


def command_status(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    status = look(host)
    if arguments.json:
        say(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        show_status(host, status)
    return 0 if status["ok"] else 1


def look(host: Host) -> dict[str, Any]:
    """How the backups are; docs/operations.md describes the JSON object."""
    problems, damaged, drift = list[str](), list[str](), list[str]()
    runs, free = list[RunManifest](), None
    try:
        check_destination(host)
        runs, damaged = scan_runs(host)
        free = shutil.disk_usage(host.destination).free
    except (Refused, OSError) as error:
        problems.append(str(error))
    try:
        drift = check_deployment(host)
    except (Refused, OSError) as error:
        problems.append(str(error))
    problems += damaged
    last, success = (runs[-1] if runs else None), newest_success(runs)
    if last and last.result == "incomplete":
        problems.append(f"the last run is incomplete, it lacks {', '.join(last.missing)}")
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
    retention = RetentionState.peek(problems) or RetentionState([], {})
    verified = VerificationState.peek(problems)
    RestoreJournal.peek(problems)
    reasons = suspended(host, runs)
    if lasting(reasons):
        problems.append("retention is suspended until `tracker-backup acknowledge`")
    remote, failures = remote_status(host, runs)
    upcoming = next_run(host.calendar, datetime.datetime.now())
    problems += failures + unsent_problems(problems)
    return {
        "environment": host.environment,
        "ok": not problems,
        "problems": problems,
        "schedule": host.schedule,
        "next_run": upcoming.isoformat(timespec="minutes") if upcoming else None,
        "last_run": pick(last, "id", "result", "exit_code", "reason", "warnings", "missing"),
        "last_success": pick(success, "id", "files", "tables", "window_seconds"),
        "last_verify": pick(verified, "run", "at", "problems"),
        "remote": remote,
        "age_seconds": age,
        "age_limit_seconds": host.age_limit,
        "runs": len(runs),
        "bytes": sum(run.bytes for run in runs),
        "free_bytes": free,
        "sidecar": sidecar or None,
        "cron": cron,
        "hold": (STATE / "hold").exists(),
        "unfinished": [name for name in ("window", "restore.json") if (STATE / name).exists()],
        "retention_suspended": list(reasons.values()),
        "retention_keeps": list(
            expired(runs, host.retention_days, retention.acknowledged)[2].values()
        ),
        "drift": drift,
    }


def pick(document: Document | None, *names: str) -> dict[str, Any] | None:
    """Some members of a document as JSON has them."""
    members = document.as_object() if document else {}
    return {name: members[name] for name in names} if members else None


def show_status(host: Host, status: Mapping[str, Any]) -> None:
    def show(label: str, text: str) -> None:
        say(f"{label:<14}{text}")

    last, success, verified = status["last_run"], status["last_success"], status["last_verify"]
    hold = ", ON HOLD" if status["hold"] else ""
    show("environment", f"{host.environment}, destination {host.destination}")
    show("schedule", f"{host.schedule}, next {status['next_run'] or 'never'}{hold}")
    if status["sidecar"]:
        show("sidecar", status["sidecar"])
    if last:
        show("last run", f"{last['id']} {last['result']}{last['reason'] and ': '}{last['reason']}")
        for warning in last["warnings"]:
            show("  warning", warning)
    if success:
        hours, window = status["age_seconds"] / 3600, success["window_seconds"]
        show("last success", f"{success['id']}, {hours:.1f} hours ago, window {window:.1f} s")
    if verified:
        problems = "; ".join(verified["problems"]) or "can be restored"
        show("last verify", f"{verified['at']}, run {verified['run']}: {problems}")
    if remote := status["remote"]:
        pending = len(remote["pending"])
        show(
            "restic",
            f"last copied {remote['last_pushed'] or 'nothing yet'}, {pending} to be copied",
        )
        if checked := remote["checked"]:
            show("  checked", f"{checked['at']}: {checked['problem'] or 'whole'}")
    free = status["free_bytes"] or 0
    show("backups", f"{status['runs']} runs, {status['bytes']:,} bytes; {free:,} bytes free")
    for reason in status["retention_suspended"]:
        show("  suspended", reason)
    for text in status["retention_keeps"]:
        show("  kept", f"{text}, until `tracker-backup acknowledge`")
    for text in status["drift"]:
        show("  drift", text)
    for name in status["unfinished"]:
        show("  unfinished", f"{STATE / name}: under way, or for maintenance-backup.sh --recover")
    say("OK" if status["ok"] else "PROBLEM: " + "; ".join(status["problems"]))
