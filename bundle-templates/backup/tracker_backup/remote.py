"""The copies in the restic repository: `push`, its check, and what `status` says of them."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from dataclasses import asdict, replace
from typing import Any

from .docker import bind
from .documents import SEQUENCES, RemoteState, RepositoryCheck, RunManifest
from .files import write_durably
from .host import CONFIG, STATE, Host, Refused, utc_now
from .log import complain, say
from .priority import lower_priority
from .repository import (
    NO_REPOSITORY,
    Repository,
    RepositoryFailure,
    address_digest,
    repository,
    uses_restic,
)
from .retention import suspended
from .runs import check_files, newest_backup, read_runs
from .space import require_space
from .state import LockHeld, lock, lock_is_held

NOTHING = RemoteState(address="", repository="", pushed=[])
BEGUN = "a copy that began at"
SCRATCH_BYTES = 256 << 20  # of packs that restic has on disk at one time, at most


def remembered() -> RemoteState:
    return RemoteState.load() or NOTHING


def next_sequence(runs: list[RunManifest]) -> int:
    """One more than that of any run here or in the repository. A damaged state stops no run."""
    problems: list[str] = []
    state = RemoteState.peek(problems) or NOTHING
    for problem in problems:
        complain(f"warning: {problem}")
    # What the repository says must not keep a run from being recorded. Equal ones go by their id.
    return min(max([state.sequence, *(run.sequence for run in runs)]) + 1, SEQUENCES)


def open_repository(host: Host, repo: Repository, state: RemoteState) -> RemoteState:
    """Makes the repository when there never was one at this address; one that is gone is not made
    anew without a word. What was known of another repository does not count.
    """
    address = address_digest(host)
    if state.address != address:
        state = replace(state, address=address, repository="", pushed=[], checked=None)
    try:
        identity = repo.call("identify").strip()
    except RepositoryFailure as failure:
        if failure.reason != NO_REPOSITORY:
            raise
        if state.repository:
            raise Refused(
                "the restic repository that had the copies is gone: is its disk mounted, is "
                "it the same server? "
                f"To begin a new one there: rm {STATE / RemoteState.FILE}"
            ) from failure
        repo.call("init")
        identity = repo.call("identify").strip()
        say(f"changed: made the restic repository {identity[:10]}")
    if state.repository not in ("", identity):
        state = replace(state, pushed=[], checked=None)
    state = replace(state, repository=identity)
    state.store()
    return state


def pending(runs: list[RunManifest], state: RemoteState) -> list[RunManifest]:
    """Published runs that are not in the repository and never were, newest first."""
    return [run for run in reversed(runs) if run.published and run.id not in state.pushed]


def push(host: Host, runs: list[RunManifest], state: RemoteState) -> None:
    """Copies what is pending. The state on disk grows with each copy."""
    with repository(host, *bind(host.destination, "/backups", "readonly")) as repo:
        state = open_repository(host, repo, state)
        repo.call("unlock")
        there = repo.snapshots()
        sequences = [*(one.sequence for one in there.values()), *(run.sequence for run in runs)]
        state = replace(
            state,
            pushed=[run.id for run in runs if run.id in there or run.id in state.pushed],
            sequence=max([state.sequence, *sequences]),
        )
        for run in pending(runs, state):
            if problems := check_files(host, run):
                say(
                    f"warning: {run.id} is not copied to the restic repository: "
                    f"{'; '.join(problems)}"
                )
                continue
            require_space(host.staging, min(run.bytes, SCRATCH_BYTES))
            repo.backup(run)
            state = replace(state, pushed=[*state.pushed, run.id])
            state.store()
            say(f"copied {run.id} to the restic repository")
        state.store()
        newest = newest_backup(runs)
        if suspended(host, runs) or (state.checked and state.checked.problem):
            say(
                "warning: nothing is removed from the restic repository: retention is "
                "suspended, or its last check failed"
            )
        elif newest and newest.result == "incomplete":
            say("warning: nothing is removed from the restic repository: a backup is incomplete")
        else:
            repo.forget()


def push_or_tell(host: Host) -> None:
    """Copies what is pending; what fails stands in the state, in the newest run manifest and in the
    exception.
    """
    runs, state = read_runs(host), remembered()
    newest = newest_backup(runs)
    state = replace(
        state,
        tried=newest.id if newest else "",
        error=f"{BEGUN} {utc_now()} did not end",
    )
    state.store()
    try:
        push(host, runs, state)
    except Refused as failure:
        state = replace(remembered(), error=str(failure))
        state.store()
        waiting = pending(runs, state)
        if newest in waiting:
            warning = f"not copied to the restic repository: {failure}"
            newest = replace(newest, warnings=[*newest.warnings, warning])
            write_durably(host.destination / f"runs/{newest.id}.json", newest.encode())
        raise Refused(
            f"copying to the restic repository failed, {len(waiting)} to be made up for by "
            f"the next run: {failure}"
        ) from failure
    replace(remembered(), error="", succeeded=utc_now()).store()


def push_what_is_new(host: Host) -> None:
    """For the sidecar, which has neither restic's secrets nor Docker: its host pushes, once for
    each of its runs.
    """
    newest = newest_backup(read_runs(host)) if uses_restic(host) else None
    if newest and newest.id != remembered().tried:
        with contextlib.suppress(LockHeld), lock(wait=0):
            push_or_tell(host)


def command_push(_: argparse.Namespace) -> int:
    """By hand: makes up for what a run could not copy."""
    host = Host.read(CONFIG)
    if not uses_restic(host):
        say("there is no restic repository: backup.restic is absent")
        return 0
    lower_priority()
    # SIGTERM ends this process by an exception, so that the container is removed.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
    problem = ""
    try:
        with repository(host) as repo:
            repo.call("unlock")
            repo.call("check")
    except Refused as failure:
        problem = str(failure)
    replace(remembered(), checked=RepositoryCheck(utc_now(), problem)).store()
    return problem


def remote_status(host: Host, runs: list[RunManifest]) -> tuple[dict[str, Any] | None, list[str]]:
    """(what `status --json` shows as `remote`, what is wrong)."""
    problems: list[str] = []
    if not uses_restic(host):
        return None, problems
    state = RemoteState.peek(problems) or NOTHING
    waiting = [run.id for run in pending(runs, state)]
    if state.error and not (state.error.startswith(BEGUN) and lock_is_held()):
        problems.append(
            f"the last copy to the restic repository failed, {len(waiting)} to be made up "
            f"for: {state.error}"
        )
    if state.checked and state.checked.problem:
        problems.append(
            f"checking the restic repository failed at {state.checked.at}: {state.checked.problem}"
        )
    return {
        "last_pushed": next((run.id for run in reversed(runs) if run.id in state.pushed), None),
        "pending": waiting,
        "error": state.error,
        "checked": asdict(state.checked) if state.checked else None,
    }, problems
