"""`restore`, and `rollback` of one that failed or died."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from .beside import planned, restore_beside
from .deployment import make_deploy_directory
from .destination import IDENTITY, check_restorable, claim_destination
from .docker import (
    BUILD_SECONDS,
    compose_files,
    docker,
    make_image,
    remove_dead_containers,
    service_of,
    stack_containers,
    words,
)
from .documents import RestoreJournal, RunManifest
from .drivers import driver_of, driver_of_run
from .fault_points import fault_point
from .fetch import fetch, find_run
from .files import make_directory
from .host import STATE, Host, Refused, config_path
from .jobs import ready_image
from .log import say
from .runs import choose_run, read_runs
from .secrets import named_secrets, put_secrets, read_secrets
from .signals import signals
from .stack import use_recorded_images
from .state import LockHeld, lock
from .swap import keep_old, listed, look, make_directories, prepare, remove_rooms, swap, undo
from .undo_older import entries, undo_older
from .verify import ready_to_swap
from .workshop import Unrestorable, dumps, workshop

INSPECT_TRIES = STOP_TRIES = 3
UP = ("up", "--detach", "--pull", "missing")  # what the tags mean here now, whatever a file says


def rollback(host: Host, journal: RestoreJournal) -> None:
    """Puts everything back as it was before the restore that the journal tells of, then starts what
    it had stopped. Can die and be begun again.
    """
    work = host.staging / journal.work
    if not journal.undone:
        say(f"rolling back the restore of {journal.run}")
        needed = [work]
        if journal.importing:
            needed.append(work / driver_of(host).SAVED)
        if gone := [str(path) for path in needed if not path.exists()]:
            raise Refused(
                f"cannot be rolled back: {', '.join(gone)} is gone. Restore by hand "
                f"(docs/restore.md), then remove {STATE}/restore.json"
            )
        remove_dead_containers()
        if not journal.fresh:
            # What runs now, too: a dead restore's last call may still be under way in Docker, and
            # somebody may have started something.
            ids = list(dict.fromkeys([*journal.running, *running(host, moved(work, journal))]))
            journal = replace(journal, running=ids)
            journal.store()
            stop_users(host, moved(work, journal))
            undo_both(host, journal)
        else:
            # The server runs by the compose files that go away with the rest.
            undo_import(host, journal)
            take_down(host, journal)
            undo_swap(host, journal)
        journal = replace(journal, importing=False, undone=True)
        journal.store()
        say("rolled back: files and database are as they were before the restore")
    failures = start(journal.running)
    if tracker_is_down(host, journal.running):
        raise Refused(
            "rolled back, but the tracker does not start; --recover tries again every minute: "
            + "; ".join(failures)
        )
    journal.end()
    remove_rooms(host, work, journal.moves)
    if failures:
        raise Refused("rolled back, but not everything started again: " + "; ".join(failures))


def moved(work: Path, journal: RestoreJournal) -> list[str]:
    """The paths that a restore replaces; also one of an older version."""
    if journal.moves or not (work / "targets").exists():
        return [move.path for move in journal.moves]
    return entries(work, "targets")


def undo_both(host: Host, journal: RestoreJournal) -> None:
    """A failure of the one does not keep the other from being rolled back."""
    failures = []
    for name, back in (("the files", undo_swap), ("the database", undo_import)):
        try:
            back(host, journal)
        except (Refused, OSError) as error:
            failures.append(f"{name} cannot be rolled back: {error}")
    if failures:
        raise Refused("; ".join(failures))


def undo_swap(host: Host, journal: RestoreJournal) -> None:
    work = host.staging / journal.work
    room = str(work.relative_to(host.deploy_dir)) if journal.fresh else ""
    undo(host, journal.moves, journal.made, room)
    undo_older(host, work)


def undo_import(host: Host, journal: RestoreJournal) -> None:
    if journal.importing:
        driver = driver_of(host)
        if not driver.service(host):  # the client of an external server is in it
            make_image(host, host.configuration, rebuild=False)
        raise_service(host, driver.service(host), journal)
        driver.undo(host, host.staging / journal.work)
        replace(journal, importing=False).store()


# ---------------------------------------------------------------- who uses what is replaced


def containers() -> list[dict[str, Any]]:
    """What `docker inspect` says of every container of this host."""
    for left in reversed(range(INSPECT_TRIES)):
        try:
            ids = docker(*words("ps --all --quiet --no-trunc")).split()
            found = docker(*words("inspect --type container"), *ids) if ids else "[]"
            return list(json.loads(found))
        except Refused as error:  # a stranger's container can vanish between the calls
            if not left or "no such container" not in str(error).lower():
                raise
    return []


def users(host: Host, paths: list[str]) -> list[dict[str, Any]]:
    """The containers, running ones and others, that mount one of the paths, or something above or
    below it: they would go on with what was renamed away. The tracker is always one of them.
    """
    base = host.deploy_dir.resolve()
    places = [base / path for path in paths]
    trackers = {one["Id"] for one in stack_containers(host) if service_of(one) == "tracker"}

    def uses(found: dict[str, Any]) -> bool:
        sources = [
            Path(os.path.realpath(one["Source"])) for one in found["Mounts"] if one.get("Source")
        ]
        return found["Id"] in trackers or any(
            place.is_relative_to(source) or source.is_relative_to(place)
            for source in sources
            for place in places
        )

    return [found for found in containers() if uses(found)]


def running(host: Host, paths: list[str]) -> list[str]:
    """Ids of what runs of the stack, the tracker first, to come back first; and of other containers
    that use one of the paths.
    """
    stack = sorted(stack_containers(host), key=lambda one: service_of(one) != "tracker")
    found = [*stack, *users(host, paths)]
    return list(dict.fromkeys(one["Id"] for one in found if one["State"]["Running"]))


def stop_users(host: Host, paths: list[str]) -> None:
    """Returns when none of them runs any more."""
    for _ in range(STOP_TRIES):
        stop([one["Id"] for one in users(host, paths)])
        left = [one["Name"] for one in users(host, paths) if one["State"]["Running"]]
        if not left:
            return
    raise Refused(f"{', '.join(left)} did not stay stopped: something starts it again")


def tracker_is_down(host: Host, ids: list[str]) -> bool:
    """Whether the tracker is one of these containers, and does not run."""
    return any(
        service_of(one) == "tracker" and one["Id"] in ids and not one["State"]["Running"]
        for one in stack_containers(host)
    )


def stop(ids: list[str]) -> None:
    """Stops those of these containers that still exist, also one that is already stopping."""
    for container_id in present(ids):
        if docker("inspect", "--format", "{{.State.Paused}}", container_id).strip() == "true":
            docker("unpause", container_id)
        docker("stop", container_id, seconds=BUILD_SECONDS)


def start(ids: list[str]) -> list[str]:
    """Starts these containers, each on its own; returns what went wrong."""
    failures = []
    for container_id in present(ids):
        try:
            docker("start", container_id)
        except Refused as error:
            failures.append(str(error))
    return failures


def present(ids: list[str]) -> list[str]:
    there = set(docker("ps", "--all", "--quiet", "--no-trunc").split())
    return [container_id for container_id in ids if container_id in there]


def compose(host: Host, journal: RestoreJournal, *arguments: str) -> None:
    """For an empty machine, where the stack's compose files are those that the run has."""
    names = [host.deploy_dir / name for name in journal.compose_files] or compose_files(host)
    places = [f"--project-directory={host.deploy_dir}", *(f"--file={name}" for name in names)]
    docker("compose", *places, *arguments, seconds=BUILD_SECONDS)


def raise_service(host: Host, service: str, journal: RestoreJournal) -> None:
    """Starts a database server of the stack. An empty machine does not have it yet, and a Docker
    that died has taken it down.
    """
    if service and journal.fresh:
        compose(host, journal, *UP, service)
    found = [one for one in stack_containers(host) if service_of(one) == service]
    start([one["Id"] for one in found if not one["State"]["Running"]])


def take_down(host: Host, journal: RestoreJournal) -> None:
    """What a restore onto an empty machine has started; the restored files may be what keeps
    Compose from it.
    """
    with contextlib.suppress(Refused):
        compose(host, journal, "down")
    for left in stack_containers(host):
        docker("rm", "--force", left["Id"])


def restore(host: Host, run: RunManifest, kinds: set[str], *, fresh: bool) -> None:
    """Unpacks and checks first; then stops, swaps, imports and starts, each step in the journal
    before it is done.
    """
    driver = driver_of(host)
    if "database" in kinds and driver_of_run(run) != driver:
        raise Refused(f"{run.id} has no database of the driver {driver.TRACKER_NAME}")
    importing = "database" in kinds and not driver.target(host)
    service = driver.service(host) if importing else ""
    if importing and not (fresh and service):
        driver.prove_rights(host)
    with workshop(host, "restore") as work:
        try:
            paths = ready_to_swap(host, run, kinds, work)
        except Unrestorable as error:
            raise Refused(f"{run.id} is not restored: {error}") from error
        moves = prepare(host, work, paths)
        paths = [move.path for move in moves]
        fault_point("restore-prepared", host)
        ids = running(host, paths)  # on an empty machine, other people's containers alone
        config = "config" in kinds
        journal = RestoreJournal(run.id, work.name, fresh, config, ids)
        journal = replace(journal, compose_files=run.compose_files if config else [])
    try:
        journal.store()
        fault_point("restore-stopping", host)
        stop_users(host, paths)
        fault_point("restore-stopped", host)
        directories = [path for path, kind in listed(host).items() if kind == "dir"]
        moves, made = look(host, moves, directories if journal.config else [])
        journal = replace(journal, moves=moves, made=made)
        journal.store()
        fault_point("restore-swapping", host)
        make_directories(host, work / "new", made)
        swap(host, moves)
        fault_point("restore-swapped", host)
        if importing:
            raise_service(host, service, journal)
            begin = replace(journal, importing=True).store
            driver.replace(host, work, dumps(work), run, begin)
            fault_point("restore-imported", host)
        if fresh and journal.config:
            compose(host, journal, *UP)
        failures = start(journal.running)
        fault_point("restore-started", host)
        if tracker_is_down(host, journal.running):
            raise Refused("; ".join(failures))
        for failure in failures:
            say(f"warning: {failure}")
    except BaseException as error:
        signals.ignore()
        say(f"error: the restore failed: {error}")
        rollback(host, RestoreJournal.load() or journal)
        raise
    journal.end()
    if importing:
        (work / "old").mkdir(mode=0o700, exist_ok=True)
        (work / driver.SAVED).rename(work / "old" / driver.SAVED)
    say(f"changed: restored {' and '.join(sorted(kinds))} of {run.id}")
    keep_old(host, work, moves)
    remove_rooms(host, work, moves)
    if not any(
        service_of(one) == "tracker" and one["State"]["Running"] for one in stack_containers(host)
    ):
        say("the tracker does not run, as before the restore: docker compose up -d")


def command_restore(arguments: argparse.Namespace) -> int:
    host = Host.read(config_path())
    kinds = {arguments.only} if arguments.only else {"database", "config"}
    secrets = read_secrets()
    snapshot = None
    if not arguments.source and not arguments.run:
        raise Refused(
            "say which backup: latest, or the id of a run that `tracker-backup list` shows", 2
        )
    there = bool(compose_files(host))
    if kinds == {"database"} and driver_of(host).service(host) and not there:
        raise Refused(
            f"there is no compose file in {host.deploy_dir} to start MySQL with: restore "
            "the configuration, too, without --only",
            2,
        )
    if bool(arguments.to) != bool(arguments.name) or (arguments.to and arguments.source):
        raise Refused("--to and --name go together, and with a run of the destination", 2)
    if arguments.confirm and not arguments.dry_run:
        # Of a restore that died before: an empty machine has no line in cron for it.
        command_rollback(arguments)
    if not arguments.source or (host.destination / IDENTITY).exists():
        check_restorable(host)
    if arguments.source:
        snapshot, run = find_run(
            host,
            arguments.run or "latest",
            secrets,
            touching=arguments.confirm and not arguments.dry_run,
        )
    else:
        run = choose_run(read_runs(host), arguments.run)
    say(
        f"restore of {run.id} ({run.started}, {run.scope}): "
        f"{' and '.join(sorted(kinds))} into {arguments.to or host.deploy_dir}"
    )
    for name, rows in run.tables.items() if "database" in kinds else ():
        say(f"  table {name}: {rows} rows")
    copy = planned(host, run, kinds, arguments.to, arguments.name) if arguments.to else None
    if arguments.dry_run:
        say("dry run: nothing was done")
        return 0
    if not arguments.confirm:
        raise Refused(
            f"nothing was done: {'' if copy else 'what is there now would be replaced. '}"
            "Confirm: --confirm (-e confirm_restore=yes)",
            2,
        )
    if copy:
        restore_beside(host, copy, run, kinds)
        return 0
    with lock():
        remove_dead_containers()
        there = bool(compose_files(host))
        if not there:  # an empty machine, whatever was made there for the destination
            make_deploy_directory(host, run.directories)
        make_directory(host.staging, 0o700)
        claim_destination(host, take_over=True)
        make_directory(host.deploy_dir / "backup", 0o755)
        put_secrets(host, named_secrets(host.configuration / "backup.conf"), secrets)
        ready_image(host)
        if snapshot:
            fetch(host, snapshot, run)
        fresh = not there and not stack_containers(host)
        if fresh and arguments.images == "recorded":
            use_recorded_images(run.releases)
        restore(host, run, kinds, fresh=fresh)
    return 0


def command_rollback(_: argparse.Namespace) -> int:
    """For --recover: undoes a dead restore; a live one holds the lock and is left alone."""
    host = Host.read(config_path())
    with contextlib.suppress(LockHeld), lock(wait=0, recovering=True):
        if journal := RestoreJournal.load():
            rollback(host, journal)
    return 0
