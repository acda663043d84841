"""Run manifests: reading, choosing, and comparing them with the files that they name."""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import IO

from .documents import RUN_ID, BadDocument, RunManifest, run_time
from .host import Host, Refused
from .log import complain, say

FUTURE_SECONDS = 60  # a clock that was set back by less is not reported


def scan_runs(host: Host) -> tuple[list[RunManifest], list[str]]:
    """(this environment's run manifests in order of their sequence, what is wrong with others)."""
    runs, problems = [], []
    for path in sorted((host.destination / "runs").glob("*.json")):
        if not RUN_ID.fullmatch(path.stem):
            complain(f"warning: {path} is not a run manifest of ours and is left alone")
            continue
        try:
            run = RunManifest.read(path)
            if run.id != path.stem:
                raise BadDocument(f"{path} is damaged: its id is {run.id}; {run.REMEDY}")
            if run.environment == host.environment:
                runs.append(run)
        except FileNotFoundError:  # retention removed it meanwhile
            continue
        except BadDocument as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: run.sequence), problems


def read_runs(host: Host) -> list[RunManifest]:
    """The same; a damaged run manifest is a warning. No command fails because of it."""
    runs, problems = scan_runs(host)
    for problem in problems:
        complain(f"warning: {problem}")
    return runs


def newest_success(runs: list[RunManifest]) -> RunManifest | None:
    return next((run for run in reversed(runs) if run.result == "success"), None)


def newest_backup(runs: list[RunManifest], **facts: str) -> RunManifest | None:
    """The newest run that published something, with these values of attributes such as `scope`. The
    database of an incomplete run is whole.
    """
    for run in reversed(runs):
        if run.published and all(getattr(run, name) == value for name, value in facts.items()):
            return run
    return None


def too_old(host: Host, runs: list[RunManifest]) -> tuple[float | None, str]:
    """(age of the newest success in seconds, what is wrong with it); no age when there is none."""
    success = newest_success(runs)
    if success is None:
        return None, "there is no successful backup yet"
    now = datetime.datetime.now(datetime.timezone.utc)
    age, limit, problem = (now - run_time(success.id)).total_seconds(), host.age_limit, ""
    if age < -FUTURE_SECONDS:
        problem = (
            f"the last success, {success.id}, lies {-age / 3600:.1f} hours in the future: "
            "the host's clock was wrong then, or is now"
        )
    elif age > limit:
        problem = f"the last success is {age / 3600:.1f} hours old; the limit is {limit / 3600:.1f}"
    return age, problem


def choose_run(runs: list[RunManifest], wanted: str) -> RunManifest:
    """`latest` is the newest success; an id may also name an incomplete run, with a warning."""
    if wanted == "latest":
        if (run := newest_success(runs)) is None:
            raise Refused("there is no successful backup yet")
        return run
    for run in runs:
        if run.id == wanted and run.published:
            warn_of_missing(run)
            return run
    raise Refused(
        f"there is no successful run {wanted!r}; `tracker-backup list` shows those that are there"
    )


def warn_of_missing(run: RunManifest) -> None:
    if run.result == "incomplete":
        say(f"warning: {run.id} is incomplete, it lacks {', '.join(run.missing)}")


def check_files(host: Host, run: RunManifest, directory: Path | None = None) -> list[str]:
    """What is wrong with the run's files, by size and hash: those of the destination, or of a
    directory like it.
    """
    problems = []
    for file in run.files:
        digest = hashlib.sha256()
        try:
            with open_plain((directory or host.destination) / file.path) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            problems.append(f"{file.path}: {error.strerror}")
            continue
        if digest.hexdigest() != file.sha256:
            problems.append(f"{file.path} is not what was published: its SHA-256 differs")
    return problems


def open_plain(path: Path) -> IO[bytes]:
    """A regular file of its own, in a directory that is no link. Raises OSError for another one."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path.name, flags, dir_fd=directory)
    finally:
        os.close(directory)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file of its own")
    return open(descriptor, "rb")
