"""A run out of the restic repository, for restoring: onto an empty machine, too."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from .docker import bind, make_image
from .files import require_space, sync_directory, write_durably
from .host import STATE, Host, Refused
from .log import say
from .remote import STATE_FILE, remembered
from .repository import Repository, Snapshot, repository, restic_secrets, uses_restic
from .runs import Manifest, check_files, checked_run, run_files
from .secrets import require_secrets
from .state import lock, write_state


@contextlib.contextmanager
def secret_files(host: Host, given: Mapping[str, str]) -> Iterator[Path]:
    """restic's secrets, as given or as the host has them, for as long as the block lasts."""
    names = restic_secrets(host)
    require_secrets(host, names, given)
    directory = STATE / "restic-secrets"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        for name in names:
            content = (
                given[name].encode()
                if name in given
                else (host.deploy_dir / "backup/secrets" / name).read_bytes()
            )
            with open(
                os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(content)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def find_snapshot(repo: Repository, wanted: str) -> Snapshot:
    """Of the run with this id; `latest` is the one with the highest sequence."""
    found = repo.snapshots()
    if not found:
        raise Refused(
            f"the restic repository holds no backup of the environment {repo.environment!r}"
        )
    if wanted == "latest":
        return max(found.values(), key=lambda one: (one.sequence, one.run))
    if wanted not in found:
        raise Refused(
            f"there is no run {wanted!r} in the restic repository; the newest there: "
            f"{' '.join(sorted(found)[-10:])}"
        )
    return found[wanted]


def find_run(
    host: Host, wanted: str, given: Mapping[str, str], *, may_make_image: bool
) -> tuple[Snapshot, Manifest]:
    """The run's snapshot and its run manifest; nothing of the host is touched but for the image
    that restic comes in.
    """
    if not uses_restic(host):
        raise Refused("there is no restic repository to restore from: backup.restic is absent", 2)
    with lock(), secret_files(host, given) as secrets:
        if may_make_image:
            make_image(host, host.configuration, rebuild=False)
        with repository(host, secrets=secrets) as repo:
            snapshot = find_snapshot(repo, wanted)
            text = repo.call("show", snapshot=snapshot.id, file=f"/runs/{snapshot.run}.json")
        state = remembered()
        write_state(STATE_FILE, state | {"sequence": max(state["sequence"], snapshot.sequence)})
    try:
        run = checked_run(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"the run manifest of {snapshot.run} in the restic repository cannot be read: {error!r}"
        ) from error
    if (run["id"], run["environment"]) != (snapshot.run, host.environment) or len(
        run_files(run)
    ) != len(run["files"]):
        raise Refused(
            f"the run manifest of {snapshot.run} in the restic repository is not of this run "
            f"of {host.environment!r}"
        )
    return snapshot, run


def fetch(host: Host, snapshot: Snapshot, run: Manifest) -> None:
    """The run's files and its run manifest into the destination, compared with their SHA-256 first;
    under the lock.
    """
    own = host.destination / f"runs/{run['id']}.json"
    if own.exists() and not check_files(host, run):
        say(f"{run['id']} is in {host.destination} already, and whole")
        return
    require_space(host.destination, sum(file["bytes"] for file in run["files"]))
    target = (
        host.destination / ".fetch"
    )  # on the destination's own file system, so that a rename publishes
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    try:
        with repository(host, *bind(target, "/target")) as repo:
            files = [path for _, path in run_files(run)]
            repo.call("fetch", snapshot=snapshot.id, files=files)
        if problems := check_files(host, run, target):
            raise Refused(f"{run['id']} was not fetched whole: {'; '.join(problems)}")
        for _, path in run_files(run):
            with (target / path).open("rb") as file:
                os.fsync(file.fileno())
            (target / path).chmod(0o600)
            (target / path).rename(host.destination / path)
            sync_directory((host.destination / path).parent)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    write_durably(own, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
    say(f"changed: fetched {run['id']} from the restic repository into {host.destination}")
