"""`restore`, and `rollback` of one that failed or died."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .deployment import make_deploy_directory
from .destination import IDENTITY, check_restorable, claim_destination
from .docker import (
    BUILD_SECONDS,
    bind,
    docker,
    make_image,
    remove_dead_containers,
    service_of,
    stack_containers,
    words,
)
from .documents import RestoreJournal, RunManifest
from .drivers import SERVICES, driver_of, driver_of_run
from .fetch import fetch, find_run
from .files import make_directory, remove_tree
from .host import STATE, Host, Refused, config_path
from .log import say
from .runs import check_files, choose_run, read_runs
from .secrets import named_secrets, put_secrets, read_secrets
from .state import LockHeld, lock
from .workshop import Workshop, workshop

COMPOSE_FILE = "docker-compose.yml"


@contextlib.contextmanager
def swapper(host: Host, purpose: str, work: Path) -> Iterator[Workshop]:
    """A workshop that may write to the deployment."""
    owners = words("--cap-add CHOWN --cap-add FOWNER --cap-add FSETID")
    with workshop(host, purpose, *owners, *bind(host.deploy_dir, "/data"), work=work) as shop:
        yield shop


def rollback(host: Host, journal: RestoreJournal) -> None:
    """Puts everything back as it was before the restore that the journal tells of, then starts what
    it had stopped. Can die and be begun again.
    """
    work = host.staging / journal.work
    if not journal.undone:
        say(f"rolling back the restore of {journal.run}")
        needed = [work / "targets"]
        if journal.importing:
            needed.append(work / driver_of(host).SAVED)
        if gone := [str(path) for path in needed if not path.exists()]:
            raise Refused(
                f"cannot be rolled back: {', '.join(gone)} is gone. Restore by hand "
                f"(docs/restore.md), then remove {STATE}/restore.json"
            )
        remove_dead_containers()
        make_image(host, host.configuration, rebuild=False)
        if not journal.fresh:
            # What runs now, too: a dead restore's last call may still be under way in Docker, and
            # somebody may have started something.
            ids = list(dict.fromkeys([*journal.running, *running(host)]))
            journal = replace(journal, running=ids)
            journal.store()
            stop(users(host, config=journal.config))
        if journal.fresh:
            # The server runs by the compose files that go away with the rest.
            undo_import(host, journal)
            take_down(host)
            undo_swap(host, journal)
        else:
            undo_both(host, journal)
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
    remove_tree(work)
    if failures:
        raise Refused("rolled back, but not everything started again: " + "; ".join(failures))


def undo_both(host: Host, journal: RestoreJournal) -> None:
    """A failure of the one does not keep the other from being rolled back."""
    failures = []
    for name, undo in (("the files", undo_swap), ("the database", undo_import)):
        try:
            undo(host, journal)
        except Refused as error:
            failures.append(f"{name} cannot be rolled back: {error}")
    if failures:
        raise Refused("; ".join(failures))


def undo_swap(host: Host, journal: RestoreJournal) -> None:
    with swapper(host, "rollback", host.staging / journal.work) as shop:
        shop.step("rollback", work=journal.work)


def undo_import(host: Host, journal: RestoreJournal) -> None:
    if journal.importing:
        driver = driver_of(host)
        raise_service(host, driver.service(host), fresh=journal.fresh)
        driver.undo(host, host.staging / journal.work)
        replace(journal, importing=False).store()


def running(host: Host) -> list[str]:
    """Ids of the stack's containers that run, of the tracker first, to come back first."""
    return [
        one["Id"]
        for one in sorted(stack_containers(host), key=lambda one: service_of(one) != "tracker")
        if one["State"]["Running"]
    ]


def users(host: Host, *, config: bool) -> list[str]:
    """Ids of the containers, of running ones and of others, that use what a restore replaces."""
    return [
        one["Id"]
        for one in stack_containers(host)
        if service_of(one) == "tracker" or (config and service_of(one) not in {*SERVICES, "backup"})
    ]


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


def compose(host: Host, *arguments: str) -> None:
    places = (f"--project-directory={host.deploy_dir}", f"--file={host.deploy_dir}/{COMPOSE_FILE}")
    docker("compose", *places, *arguments, seconds=BUILD_SECONDS)


def raise_service(host: Host, service: str, *, fresh: bool) -> None:
    """Starts a database server of the stack. An empty machine does not have it yet, and a Docker
    that died has taken it down.
    """
    if service and fresh:
        compose(host, "up", "--detach", service)
    found = [one for one in stack_containers(host) if service_of(one) == service]
    start([one["Id"] for one in found if not one["State"]["Running"]])


def take_down(host: Host) -> None:
    """What a restore onto an empty machine has started; the restored files may be what keeps
    Compose from it.
    """
    with contextlib.suppress(Refused):
        compose(host, "down")
    for left in stack_containers(host):
        docker("rm", "--force", left["Id"])


@contextlib.contextmanager
def emptying(work: Path) -> Iterator[None]:
    """Removes the directory if the block fails."""
    try:
        yield
    except BaseException:
        remove_tree(work)
        raise


def restore(host: Host, run: RunManifest, kinds: set[str], *, fresh: bool) -> None:
    """Unpacks and checks first; then stops, swaps, imports and starts, each step in the journal
    before it is done.
    """
    driver = driver_of(host)
    if "database" in kinds and driver_of_run(run) != driver:
        raise Refused(f"{run.id} has no database of the driver {driver.TRACKER_NAME}")
    target = driver.target(host) if "database" in kinds else ""
    importing = "database" in kinds and not target
    service = driver.service(host) if importing else ""
    if importing and not (fresh and service):
        driver.prove_rights(host)
    problems = check_files(host, run)
    with workshop(host, "restore", run=run) as shop, emptying(shop.work):
        work = shop.work
        if not problems:
            shop.require_space(run, kinds)
            problems = shop.unpack(run, kinds)
        if problems:
            raise Refused(f"{run.id} is not restored: " + "; ".join(problems))
    with swapper(host, "swap", work) as shop:
        with emptying(work):
            kind = "all" if len(kinds) == 2 else min(kinds)
            shop.step("prepare", work=work.name, kind=kind, database=target, paths=run.paths)
        journal = RestoreJournal(run.id, work.name, fresh, "config" in kinds, running(host))
        journal.store()
        try:
            stop(users(host, config=journal.config))
            shop.step("apply", work=work.name)
            if importing:
                raise_service(host, service, fresh=fresh)
                begin = replace(journal, importing=True).store
                driver.replace(host, work, shop.dumps, run, begin)
            if fresh and "config" in kinds:
                compose(host, "up", "--detach")
            failures = start(journal.running)
            if tracker_is_down(host, journal.running):
                raise Refused("; ".join(failures))
            for failure in failures:
                say(f"warning: {failure}")
        except BaseException as error:
            say(f"error: the restore failed: {error}")
            rollback(host, RestoreJournal.load() or journal)
            raise
        journal.end()
    before = host.staging / "before-restore"
    remove_tree(before)
    (work / "old").rename(before)
    if importing:
        (work / driver.SAVED).rename(before / driver.SAVED)
    remove_tree(work)
    say(
        f"changed: restored {' and '.join(sorted(kinds))} of {run.id}; what was there "
        f"before is in {before}, until the next restore"
    )
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
    stack = host.deploy_dir / COMPOSE_FILE
    if kinds == {"database"} and driver_of(host).service(host) and not stack.exists():
        raise Refused(
            f"there is no {stack} to start MySQL with: restore the configuration, too, without "
            "--only",
            2,
        )
    if arguments.confirm and not arguments.dry_run:
        # Of a restore that died before: an empty machine has no line in cron for it.
        command_rollback(arguments)
    if not arguments.source or (host.destination / IDENTITY).exists():
        check_restorable(host)
    if arguments.source:
        snapshot, run = find_run(
            host, arguments.run or "latest", secrets, may_make_image=arguments.confirm
        )
    else:
        run = choose_run(read_runs(host), arguments.run)
    say(
        f"restore of {run.id} ({run.started}, {run.scope}): "
        f"{' and '.join(sorted(kinds))} into {host.deploy_dir}"
    )
    for name, rows in run.tables.items() if "database" in kinds else ():
        say(f"  table {name}: {rows} rows")
    if arguments.dry_run:
        say("dry run: nothing was done")
        return 0
    if not arguments.confirm:
        raise Refused(
            "nothing was done: what is there now would be replaced. Confirm: --confirm (-e "
            "confirm_restore=yes)",
            2,
        )
    with lock():
        there = stack.exists()
        if not there:  # an empty machine, whatever was made there for the destination
            make_deploy_directory(host, run.directories)
        make_directory(host.staging, 0o700)
        claim_destination(host, take_over=True)
        make_directory(host.deploy_dir / "backup", 0o755)
        put_secrets(host, named_secrets(host.configuration / "backup.conf"), secrets)
        make_image(host, host.configuration, rebuild=False)
        if snapshot:
            fetch(host, snapshot, run)
        restore(host, run, kinds, fresh=not there and not stack_containers(host))
    return 0


def command_rollback(_: argparse.Namespace) -> int:
    """For --recover: undoes a dead restore; a live one holds the lock and is left alone."""
    host = Host.read(config_path())
    with contextlib.suppress(LockHeld), lock(wait=0, recovering=True):
        if journal := RestoreJournal.load():
            rollback(host, journal)
    return 0
