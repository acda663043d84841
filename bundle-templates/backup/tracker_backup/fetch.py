"""A run out of the restic repository, for restoring: onto an empty machine, too."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from .docker import bind, make_image
from .documents import BadDocument, RunManifest
from .files import sync_directory, write_durably
from .host import STATE, Host, Refused
from .log import say
from .remote import remembered
from .repository import Repository, Snapshot, repository, restic_secrets, uses_restic
from .runs import check_files, open_plain, warn_of_missing
from .secrets import require_secrets
from .space import require_space
from .state import lock


@contextlib.contextmanager
def secret_files(host: Host, given: Mapping[str, str]) -> Iterator[Path]:
    """restic's secrets, as given or as the host has them, for as long as the block lasts."""
    names = restic_secrets(host)
    require_secrets(host, names, given)
    own = host.deploy_dir / "backup/secrets"
    directory = (STATE if STATE.exists() else Path("/run")) / "restic-secrets"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        for name in names:
            secret = given[name].encode() if name in given else (own / name).read_bytes()
            (directory / name).touch(0o600)
            (directory / name).write_bytes(secret)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def find_snapshots(repo: Repository, wanted: str) -> list[Snapshot]:
    """That of the run with this id; for `latest` all, newest first by their sequence."""
    found = repo.snapshots()
    if not found:
        raise Refused(
            f"the restic repository holds no backup of the environment {repo.environment!r}"
        )
    if wanted == "latest":
        return sorted(found.values(), key=lambda one: (one.sequence, one.run), reverse=True)
    if wanted not in found:
        raise Refused(
            f"there is no run {wanted!r} in the restic repository; the newest there: "
            f"{' '.join(sorted(found)[-10:])}"
        )
    return [found[wanted]]


def show_run(host: Host, repo: Repository, snapshot: Snapshot) -> RunManifest:
    described = f"the run manifest of {snapshot.run} in the restic repository"
    try:
        run = RunManifest.decode(
            repo.call("show", snapshot=snapshot.id, file=f"/runs/{snapshot.run}.json")
        )
    except BadDocument as error:
        raise Refused(f"{described} {error}") from error
    if (run.id, run.environment) != (snapshot.run, host.environment) or not run.published:
        raise Refused(f"{described} is not of this run of {host.environment!r}")
    return run


def find_run(
    host: Host, wanted: str, given: Mapping[str, str], *, touching: bool
) -> tuple[Snapshot, RunManifest]:
    """The run's snapshot and its run manifest. Unless `touching`, the image that restic comes in is
    not made, and nothing is remembered.
    """
    if not uses_restic(host):
        raise Refused("there is no restic repository to restore from: backup.restic is absent", 2)
    held = lock() if touching else contextlib.nullcontext()
    with held, secret_files(host, given) as secrets:
        if touching:
            make_image(host, host.configuration, rebuild=False)
        with repository(host, secrets=secrets) as repo:
            snapshots = find_snapshots(repo, wanted)
            for snapshot in snapshots:
                run = show_run(host, repo, snapshot)
                if run.result == "success" or wanted != "latest":
                    break
            else:
                raise Refused("the restic repository holds no successful backup: name a run")
    if touching:
        state = remembered()
        replace(state, sequence=max(state.sequence, snapshots[0].sequence)).store()
    warn_of_missing(run)
    return snapshot, run


def fetch(host: Host, snapshot: Snapshot, run: RunManifest) -> None:
    """The run's files and its run manifest into the destination, compared with their SHA-256 first;
    under the lock.
    """
    own = host.destination / f"runs/{run.id}.json"
    if own.exists() and not check_files(host, run):
        say(f"{run.id} is in {host.destination} already, and whole")
        return
    require_space(host.destination, run.bytes)
    target = host.destination / ".fetch"  # on the same file system, so that a rename publishes
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    try:
        with repository(host, *bind(target, "/target")) as repo:
            repo.call("fetch", snapshot=snapshot.id, files=[file.path for file in run.files])
        if problems := check_files(host, run, target):
            raise Refused(f"{run.id} was not fetched whole: {'; '.join(problems)}")
        for path in (file.path for file in run.files):
            with open_plain(target / path) as stream:
                os.fsync(stream.fileno())
                os.fchmod(stream.fileno(), 0o600)
            (target / path).rename(host.destination / path)
            sync_directory((host.destination / path).parent)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    write_durably(own, run.encode())
    say(f"changed: fetched {run.id} from the restic repository into {host.destination}")
