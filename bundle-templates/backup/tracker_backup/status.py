"""How the backups are: `list` and `status`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import time
from collections.abc import Mapping
from typing import Any

from .checks import examine
from .cron import SCHEDULE, next_run, seconds_since_change
from .documents import (
    RUN_ID,
    Document,
    RestoreJournal,
    RetentionState,
    RunManifest,
    VerificationState,
)
from .host import CONFIG, STATE, Host, Refused, parse_time
from .log import say
from .notify import unsent_problems
from .remote import remote_status
from .retention import expired, lasting, suspended
from .runs import newest_success, read_runs, too_old
from .sidecar import sidecar_state
from .state import lock_is_held
from .window import Marker

COPY_SECONDS = 600  # until a run that has ended has to be in the restic repository
SHOWN = 10  # reasons of one kind


def command_list(arguments: argparse.Namespace) -> int:
    runs = read_runs(Host.read(CONFIG))
    if arguments.json:
        print(json.dumps([run.as_object() for run in runs], indent=2))
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


def command_status(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    status = look(host)
    if arguments.json:
        print(json.dumps(status, indent=2))
    else:
        show_status(host, status)
    return 0 if status["ok"] else 1


def look(host: Host) -> dict[str, Any]:
    """How the backups are; docs/operations.md describes the JSON object."""
    case = examine(host)
    runs, problems = case.runs, case.texts()
    last, success = (runs[-1] if runs else None), newest_success(runs)
    age, problem = too_old(host, runs)
    problems += [problem] if problem else []
    problems += last_run_problems(last) + unfinished_problems(host)
    verified = VerificationState.peek(problems)
    problems += verification_problems(host, verified)
    retention = RetentionState.peek(problems) or RetentionState([], {})
    reasons, kept = dict[str, str](), dict[str, str]()
    remote: dict[str, Any] | None = None
    with contextlib.suppress(Refused):  # damaged settings are a problem already
        remote, failures = remote_status(host, runs)
        problems += failures or copy_problems(remote, runs)
        reasons = suspended(host, runs)
        kept = expired(runs, host.retention_days, retention.acknowledged)[2]
    if lasting(reasons):
        problems.append("retention is suspended until `tracker-backup acknowledge`")
    problems += unsent_problems(problems)
    return {
        "environment": host.environment,
        "ok": not problems,
        "problems": problems,
        "advice": case.texts(advice=True),
        "schedule": host.schedule,
        "next_run": moment(host),
        "last_run": pick(last, "id", "result", "exit_code", "reason", "warnings", "missing"),
        "last_success": pick(success, "id", "files", "tables", "window_seconds"),
        "last_verify": pick(verified, "run", "at", "problems", "impossible"),
        "verify_limit_seconds": 2 * host.verify_interval or None,
        "remote": remote,
        "age_seconds": age,
        "age_limit_seconds": host.age_limit,
        "runs": len(runs),
        "bytes": sum(run.bytes for run in runs),
        "free_bytes": case.free,
        "sidecar": sidecar_state(host) or None,
        "cron": not case.texts(check="cron"),
        "hold": (STATE / "hold").exists(),
        "unfinished": [name for name in ("window", "restore.json") if (STATE / name).exists()],
        "retention_suspended": list(reasons.values()),
        "retention_keeps": list(kept.values()),
        "drift": case.texts(advice=True, check="deployment"),
    }


# ---------------------------------------------------------------- what is wrong


def last_run_problems(last: RunManifest | None) -> list[str]:
    if last and last.result == "failed":
        back = ", and the tracker was not brought back" if last.exit_code == 4 else ""
        return [
            f"the last run, {last.id}, failed with exit code {last.exit_code}{back}: {last.reason}"
        ]
    if last and last.result == "incomplete":
        return [f"the last run is incomplete, it lacks {', '.join(last.missing)}"]
    return []


def unfinished_problems(host: Host) -> list[str]:
    """What a run or a restore has left, or not finished yet."""
    problems: list[str] = []
    working = lock_is_held()
    marker, journal = Marker.peek(problems), RestoreJournal.peek(problems)
    if marker and (not working or time.time() > marker.deadline):
        problems.append(
            f"the tracker was not brought back: run {marker.run} did not close its window "
            f"({marker.action}), and cron tries again each minute; see the log, and "
            f"`docker inspect {marker.tracker[:12]}`"
        )
    if journal:
        how = "is under way" if working else "died: `tracker-backup rollback` undoes it"
        problems.append(f"a restore of {journal.run} {how}")
    if not working and not marker and not journal:
        dead = sorted(one.name for one in host.staging.glob("*") if RUN_ID.fullmatch(one.name))
        problems += [
            f"the run {name} died; its files are in {host.staging / name}" for name in dead
        ]
    return problems


def verification_problems(host: Host, verified: VerificationState | None) -> list[str]:
    """Without a schedule, only a verification that failed is a problem."""
    if verified and verified.problems:
        return [f"verifying {verified.run} failed: {'; '.join(verified.problems)}"]
    if not host.verify_interval:
        return []
    if verified and verified.impossible:
        return [f"{verified.run} could not be verified: {verified.impossible}"]
    # Before the first one, the time counts from when the schedule was installed.
    age = seconds_since(verified.at) if verified else seconds_since_change(SCHEDULE)
    if 2 * host.verify_interval < age < float("inf"):
        last = f"last verified {age / 86400:.0f} days ago" if verified else "never verified"
        return [f"the backups were {last}: `tracker-backup verify`; cron calls it by its schedule"]
    return []


def copy_problems(remote: Mapping[str, Any] | None, runs: list[RunManifest]) -> list[str]:
    """Runs that are still to be copied, but for one that has just ended."""
    waiting = [
        run.id
        for run in runs
        if remote
        and run.id in remote["pending"]
        and not (run.finished and seconds_since(run.finished) < COPY_SECONDS)
    ]
    problem = (
        f"not copied to the restic repository yet: {shortened(waiting)}; `tracker-backup push` "
        "copies them, and says why it cannot"
    )
    return [problem] if waiting else []


def seconds_since(text: str) -> float:
    """Infinite for what is no time."""
    try:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (now - parse_time(text)).total_seconds()
    except ValueError:
        return float("inf")


# ---------------------------------------------------------------- what is shown


def moment(host: Host) -> str | None:
    """When cron makes the next run; a calendar that is none is a problem already."""
    try:
        upcoming = next_run(host.calendar, datetime.datetime.now())
    except ValueError:
        return None
    return upcoming.isoformat(timespec="minutes") if upcoming else None


def pick(document: Document | None, *names: str) -> dict[str, Any] | None:
    """Some members of a document as JSON has them."""
    members = document.as_object() if document else {}
    return {name: members[name] for name in names} if members else None


def shortened(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def show_status(host: Host, status: Mapping[str, Any]) -> None:
    def show(label: str, *texts: str) -> None:
        for text in texts[:SHOWN]:
            say(f"{label:<14}{text}")
        if len(texts) > SHOWN:
            say(f"{label:<14}and {len(texts) - SHOWN} more, see `tracker-backup status --json`")

    last, success, verified = status["last_run"], status["last_success"], status["last_verify"]
    hold = ", ON HOLD" if status["hold"] else ""
    show("environment", f"{host.environment}, destination {host.destination}")
    show("schedule", f"{host.schedule}, next {status['next_run'] or 'never'}{hold}")
    if status["sidecar"]:
        show("sidecar", status["sidecar"])
    if last:
        show("last run", f"{last['id']} {last['result']}{last['reason'] and ': '}{last['reason']}")
        show("  warning", *last["warnings"])
    if success:
        hours, window = status["age_seconds"] / 3600, success["window_seconds"]
        show("last success", f"{success['id']}, {hours:.1f} hours ago, window {window:.1f} s")
    if verified:
        found = "; ".join(verified["problems"]) or verified["impossible"] or "can be restored"
        show("last verify", f"{verified['at']}, run {verified['run']}: {found}")
    else:
        show("last verify", "never verified")
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
    show("  suspended", *status["retention_suspended"])
    show(
        "  kept",
        *(f"{text}, until `tracker-backup acknowledge`" for text in status["retention_keeps"]),
    )
    show("  drift", *status["drift"])
    show("  advice", *(text for text in status["advice"] if text not in status["drift"]))
    show(
        "  unfinished",
        *(f"{STATE / name}: under way, or for cron to recover" for name in status["unfinished"]),
    )
    say("OK" if status["ok"] else "PROBLEM: " + "; ".join(status["problems"]))
