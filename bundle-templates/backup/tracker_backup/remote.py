"""The copies in the restic repository: `push`, its check, and what `status` says of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from typing import Any

from .docker import bind
from .files import require_space, write_durably
from .host import CONFIG, STATE, Host, Refused, utc_now
from .log import say
from .repository import (
    NO_REPOSITORY,
    Repository,
    RepositoryFailure,
    address_digest,
    repository,
    uses_restic,
)
from .retention import suspended
from .runs import Manifest, check_files, newest_success, read_runs
from .state import LockHeld, lock, read_state, write_state

STATE_FILE = "remote.json"
SCRATCH_BYTES = 256 << 20  # of packs that restic has on disk at one time, at most


def nothing_yet() -> dict[str, Any]:
    return {
        "address": "",  # of the repository that the rest is about, as a digest
        "repository": "",  # its id; empty when there was none yet
        # ids of this host's runs that are or were in it: the policy may have removed them there
        "pushed": [],
        "checked": None,  # {"at", "problem"}
        "error": "",  # why the last push failed
        "tried": "",  # the newest run at the last push
        "sequence": 0,  # the highest of any run in it
    }


def remembered() -> dict[str, Any]:
    return nothing_yet() | read_state(STATE_FILE, {})


def begin_anew(state: dict[str, Any], address: str) -> None:
    """For another repository: what was known of the one before does not count."""
    state.update(
        nothing_yet(),
        address=address,
        **{name: state[name] for name in ("error", "tried", "sequence")},
    )


def open_repository(host: Host, repo: Repository, state: dict[str, Any]) -> None:
    """Makes the repository when there never was one at this address; one that is gone is not made
    anew without a word.
    """
    address = address_digest(host)
    if state["address"] != address:
        begin_anew(state, address)
    try:
        identity = repo.call("identify").strip()
    except RepositoryFailure as failure:
        if failure.reason != NO_REPOSITORY:
            raise
        if state["repository"]:
            raise Refused(
                "the restic repository that had the copies is gone: is its disk mounted, is "
                "it the same server? "
                f"To begin a new one there: rm {STATE / STATE_FILE}"
            ) from failure
        repo.call("init")
        identity = repo.call("identify").strip()
        say(f"changed: made the restic repository {identity[:10]}")
    if state["repository"] not in ("", identity):
        begin_anew(state, address)
    state["repository"] = identity
    write_state(STATE_FILE, state)


def pending(runs: list[Manifest], state: dict[str, Any]) -> list[Manifest]:
    """Successful runs that are not in the repository and never were, newest first."""
    return [
        run
        for run in reversed(runs)
        if run["result"] == "success" and run["id"] not in state["pushed"]
    ]


def push(host: Host, runs: list[Manifest], state: dict[str, Any]) -> None:
    with repository(host, *bind(host.destination, "/backups", "readonly")) as repo:
        open_repository(host, repo, state)
        repo.call("unlock")
        there = repo.snapshots()
        state["pushed"] = [
            run["id"] for run in runs if run["id"] in there or run["id"] in state["pushed"]
        ]
        state["sequence"] = max(
            state["sequence"],
            *(one.sequence for one in there.values()),
            *(run["sequence"] for run in runs),
            0,
        )
        for run in pending(runs, state):
            if problems := check_files(host, run):
                say(
                    f"warning: {run['id']} is not copied to the restic repository: "
                    f"{'; '.join(problems)}"
                )
                continue
            size = sum(int(file["bytes"]) for file in run["files"])
            require_space(host.staging, min(size, SCRATCH_BYTES))
            repo.backup(run)
            state["pushed"].append(run["id"])
            write_state(STATE_FILE, state)
            say(f"copied {run['id']} to the restic repository")
        if suspended(host, runs) or (state["checked"] or {}).get("problem"):
            say(
                "warning: nothing is removed from the restic repository: retention is "
                "suspended, or its last check failed"
            )
        else:
            repo.forget()


def push_or_tell(host: Host) -> None:
    """Copies what is pending; what fails stands in the state, in the newest run manifest and in the
    exception.
    """
    runs, state = read_runs(host), remembered()
    state["tried"] = run["id"] if (run := newest_success(runs)) else ""
    state["error"] = f"a copy that began at {utc_now()} did not end"
    write_state(STATE_FILE, state)
    try:
        push(host, runs, state)
    except Refused as failure:
        waiting = pending(runs, state)
        state["error"] = str(failure)
        write_state(STATE_FILE, state)
        newest = newest_success(runs)
        if newest in waiting:
            newest["warnings"].append(f"not copied to the restic repository: {failure}")
            write_durably(
                host.destination / f"runs/{newest['id']}.json",
                json.dumps(newest, indent=2, ensure_ascii=False) + "\n",
            )
        raise Refused(
            f"copying to the restic repository failed, {len(waiting)} to be made up for by "
            f"the next run: {failure}"
        ) from failure
    write_state(STATE_FILE, state | {"error": ""})


def push_what_is_new(host: Host) -> None:
    """For the sidecar, which has neither restic's secrets nor Docker: its host pushes, once for
    each of its runs.
    """
    run = newest_success(read_runs(host)) if uses_restic(host) else None
    if run and run["id"] != remembered()["tried"]:
        with contextlib.suppress(LockHeld), lock(wait=0):
            push_or_tell(host)


def command_push(_: argparse.Namespace) -> int:
    """By hand: makes up for what a run could not copy."""
    host = Host.read(CONFIG)
    if not uses_restic(host):
        say("there is no restic repository: backup.restic is absent")
        return 0
    before = signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the container goes, too
    try:
        with lock():
            push_or_tell(host)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def check_repository(host: Host) -> str:
    """What is wrong with the repository itself; empty when it is whole, or not to be checked."""
    if host.backup_settings.get("RESTIC_CHECK") != "true":
        return ""
    state, problem = remembered(), ""
    try:
        with repository(host) as repo:
            repo.call("unlock")
            repo.call("check")
    except Refused as failure:
        problem = str(failure)
    write_state(STATE_FILE, state | {"checked": {"at": utc_now(), "problem": problem}})
    return problem


def remote_status(host: Host, runs: list[Manifest]) -> tuple[dict[str, Any] | None, list[str]]:
    """(what `status --json` shows as `remote`, what is wrong)."""
    if not uses_restic(host):
        return None, []
    state = remembered()
    waiting = [run["id"] for run in pending(runs, state)]
    problems = []
    if state["error"]:
        problems.append(
            f"the last copy to the restic repository failed, {len(waiting)} to be made up "
            f"for: {state['error']}"
        )
    if state["checked"] and state["checked"]["problem"]:
        problems.append(
            f"checking the restic repository failed at {state['checked']['at']}: "
            f"{state['checked']['problem']}"
        )
    last = next((run["id"] for run in reversed(runs) if run["id"] in state["pushed"]), None)
    return {
        "last_pushed": last,
        "pending": waiting,
        "error": state["error"],
        "checked": state["checked"],
    }, problems
