"""`restore`, and `rollback` of one that failed or died."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from .deployment import make_deploy_directory
from .destination import IDENTITY, check_restorable, claim_destination
from .docker import BUILD_SECONDS, bind, docker, make_image, service_of, stack_containers
from .fetch import fetch, find_run
from .files import make_directory
from .host import STATE, Host, Refused, config_path
from .log import say
from .runs import Manifest, check_files, choose_run, read_runs
from .secrets import named_secrets, put_secrets, read_secrets
from .server import external_server, stack_server, wait_for_server
from .state import LockHeld, lock, read_state, refuse_while_unfinished, write_state
from .workshop import Workshop, compare_rows, workshop


@dataclass
class Journal:
    """What a restore has begun, durable before each step, so that a dead one can be undone: by --recover, too."""

    run: str
    work: str
    fresh: bool  # there was no stack: what is undone is everything
    start: list[str]  # ids of the containers to start again
    saved: bool = False  # work/before.sql holds the database as it was, whole
    importing: bool = False

    def write(self) -> None:
        write_state("restore.json", self.__dict__)

    @classmethod
    def read(cls) -> Journal | None:
        state = read_state("restore.json", {})
        return cls(**state) if state else None


@contextlib.contextmanager
def restore_workshop(host: Host) -> Iterator[Workshop]:
    """As for verifying, with the deployment mounted to be written, and with a network when the server is external."""
    external = "DB_HOST" in host.backup_settings and host.backup_settings["DB_HOST"] != "mysql"
    network = ["--network", "bridge", *bind(host.deploy_dir / "backup/secrets", "/run/secrets", "readonly")] if external else []
    with workshop(
        host, "restore", "--cap-add", "CHOWN", "--cap-add", "FOWNER", "--cap-add", "FSETID", *network,
        *bind(host.deploy_dir, "/data"), *bind(host.configuration, "/etc/backup", "readonly"),
    ) as shop:  # fmt: skip
        yield shop


def rollback(host: Host, journal: Journal) -> None:
    """Puts everything back as it was before the restore that the journal tells of, then starts what it had stopped."""
    say(f"rolling back the restore of {journal.run}")
    for left in docker("ps", "--all", "--quiet", "--filter", "label=tracker-backup.run").split():
        docker("rm", "--force", "--volumes", left)  # a dead restore's container goes on working
    if journal.fresh:
        compose(host, "down")
    work = host.staging / journal.work
    with restore_workshop(host) as shop:
        if work.is_dir():
            Workshop(host, shop.container, work).step("rollback")
        if journal.importing:
            server = stack_server(host) if host.in_stack else external_server(shop)
            wait_for_server(server)
            server.end_imports()
            server.recreate()
            if journal.saved:
                server.load(work / "before.sql")
        shutil.rmtree(shop.work)
    failures = start(journal.start)
    (STATE / "restore.json").unlink()
    shutil.rmtree(work, ignore_errors=True)
    say("rolled back: files and database are as they were before the restore")
    if failures:
        raise Refused("rolled back, but not everything started again: " + "; ".join(failures))


def start(ids: list[str]) -> list[str]:
    """Starts these containers, each on its own; returns what went wrong."""
    failures = []
    present = set(docker("ps", "--all", "--quiet", "--no-trunc").split())
    for container_id in ids:
        try:
            if container_id in present:
                docker("start", container_id)
        except Refused as error:
            failures.append(str(error))
    return failures


def compose(host: Host, *arguments: str) -> None:
    docker("compose", "--project-directory", str(host.deploy_dir), "--file", str(host.deploy_dir / "docker-compose.yml"),
           *arguments, seconds=BUILD_SECONDS)  # fmt: skip


def restore(host: Host, run: Manifest, kinds: set[str]) -> None:
    """Unpacks and checks first; then stops, swaps, imports and starts, each step in the journal before it is done."""
    found = stack_containers(host)
    fresh = not found
    database = host.backup_settings.get("DB_PATH", "").removeprefix("/data/")
    mysql = "database" in kinds and not database
    stops = [
        one["Id"]
        for one in sorted(found, key=lambda one: service_of(one) != "tracker")  # the tracker is the first to come back
        if one["State"]["Running"] and (service_of(one) == "tracker" or ("config" in kinds and service_of(one) not in ("mysql", "backup")))
    ]
    with restore_workshop(host) as shop:
        if problems := check_files(host, run) + shop.unpack(run, kinds):
            shutil.rmtree(shop.work)
            raise Refused(f"{run['id']} is not restored: " + "; ".join(problems))
        what = "all" if len(kinds) == 2 else kinds.copy().pop()
        shop.step("prepare", what, *([database] if database else []))
        journal = Journal(run["id"], shop.work.name, fresh, stops)
        journal.write()
        try:
            for container_id in stops:
                if docker("inspect", "--format", "{{.State.Paused}}", container_id).strip() == "true":
                    docker("unpause", container_id)
                docker("stop", container_id, seconds=BUILD_SECONDS)
            shop.step("apply")
            if mysql:
                if fresh and host.in_stack:
                    compose(host, "up", "--detach", "mysql")
                server = stack_server(host) if host.in_stack else external_server(shop)
                wait_for_server(server)
                if not fresh or not host.in_stack:
                    server.save(shop.work / "before.sql")
                    journal.saved = True
                journal.importing = True
                journal.write()
                server.recreate()
                server.load(*shop.dumps)
                if problems := compare_rows(run["tables"], server.count_rows()):
                    raise Refused("; ".join(problems))
            if fresh and "config" in kinds:
                compose(host, "up", "--detach")
            for failure in start(stops):
                if docker("inspect", "--format", "{{.State.Running}}", stops[0]).strip() != "true":
                    raise Refused(failure)
                say(f"warning: {failure}")
        except BaseException as error:
            say(f"error: the restore failed: {error}")
            rollback(host, journal)
            raise
        (STATE / "restore.json").unlink()
        before = host.staging / "before-restore"
        shutil.rmtree(before, ignore_errors=True)
        (shop.work / "old").rename(before)
        if journal.saved:
            (shop.work / "before.sql").rename(before / "before.sql")
        shutil.rmtree(shop.work)
        say(f"changed: restored {' and '.join(sorted(kinds))} of {run['id']}; what was there before is in {before}, until the next restore")


def command_restore(arguments: argparse.Namespace) -> int:
    host = Host.read(config_path())
    kinds = {arguments.only} if arguments.only else {"database", "config"}
    secrets = read_secrets()
    snapshot = None
    if not arguments.source and not arguments.run:
        raise Refused("say which backup: latest, or the id of a run that `tracker-backup list` shows", 2)
    if not arguments.source or (host.destination / IDENTITY).exists():
        check_restorable(host)
    if arguments.source:
        snapshot, run = find_run(host, arguments.run or "latest", secrets, may_make_image=arguments.confirm)
    else:
        run = choose_run(read_runs(host), arguments.run)
    say(f"restore of {run['id']} ({run['started']}, {run['scope']}): {' and '.join(sorted(kinds))} into {host.deploy_dir}")
    for name, rows in run["tables"].items() if "database" in kinds else ():
        say(f"  table {name}: {rows} rows")
    if arguments.dry_run:
        say("dry run: nothing was done")
        return 0
    if not arguments.confirm:
        raise Refused("nothing was done: what is there now would be replaced. Confirm: --confirm (-e confirm_restore=yes)", 2)
    with lock():
        refuse_while_unfinished()
        if not (host.deploy_dir / "docker-compose.yml").exists():  # an empty machine, whatever was made there for the destination
            make_deploy_directory(host, run["directories"])
        make_directory(host.staging, 0o700)
        claim_destination(host, take_over=True)
        make_directory(host.deploy_dir / "backup", 0o755)
        put_secrets(host, named_secrets(host.configuration / "backup.conf"), secrets)
        make_image(host, host.configuration, rebuild=False)
        if snapshot:
            fetch(host, snapshot, run)
        restore(host, run, kinds)
    return 0


def command_rollback(_: argparse.Namespace) -> int:
    """For --recover: undoes a dead restore; a live one holds the lock and is left alone."""
    host = Host.read(config_path())
    with contextlib.suppress(LockHeld), lock(wait=0):
        if journal := Journal.read():
            rollback(host, journal)
    return 0
