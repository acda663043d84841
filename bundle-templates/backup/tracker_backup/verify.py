"""`verify`: proves that a run can be restored, without touching the deployment."""

from __future__ import annotations

import argparse
from pathlib import Path

from .destination import check_destination
from .docker import BUILD_SECONDS, container, docker, has_image, remove_dead_containers
from .documents import RunManifest, VerificationState
from .files import remove_tree, require_space
from .host import CONFIG, Host, Refused, utc_now
from .log import say
from .remote import check_repository
from .retention import remember_suspension
from .runs import check_files, choose_run, read_runs
from .server import Server, wait_for_server
from .state import lock
from .workshop import compare_rows, workshop


def verify_import(host: Host, run: RunManifest, dumps: list[Path], image: str) -> list[str]:
    """Imports the dumps into a throw-away server without network; returns what differs from the run
    manifest.
    """
    require_image(image)
    root = Path(docker("info", "--format", "{{.DockerRootDir}}").strip())
    require_space(
        root, 3 * sum(dump.lstat().st_size for dump in dumps)
    )  # rows, indexes, and what the server writes beside them
    name = f"tracker-backup-server-{run.id}"
    local = ("--user=root", "--protocol=tcp", "--host=127.0.0.1")
    with container(
        name,
        image,
        "--network",
        "none",
        "--env",
        "MYSQL_ALLOW_EMPTY_PASSWORD=yes",
        command=("--skip-log-bin",),
    ):
        server = Server(
            name, ("mysql", *local), ("mysqldump", *local), host.backup_settings["DB_NAME"]
        )
        wait_for_server(server)
        try:
            server.recreate()
            server.load(*dumps)
            return compare_rows(run.tables, server.count_rows())
        except Refused as error:
            return [str(error)]


def require_image(image: str) -> None:
    """An image's name is pulled when it is not there; the id of the one that the stack had when it
    was backed up cannot be.
    """
    if not has_image(image):
        try:
            docker("pull", image, seconds=BUILD_SECONDS)
        except Refused as error:
            raise Refused(
                f"not verified: there is no image {image} to import the dump into; name "
                f"another: --image (-e verify_image=...): {error}"
            ) from error


def verify(host: Host, run: RunManifest, image: str) -> list[str]:
    """Everything that can be proved of one run without touching the deployment; returns the
    problems found.
    """
    if problems := check_files(host, run):
        return problems
    with workshop(host, "verify") as shop:
        try:
            shop.require_space(run, {"database", "config"})
            problems = shop.unpack(run, {"database", "config"})
            if not problems and shop.dumps:
                server_image = image or run.images.get("mysql", "")
                if not server_image:
                    raise Refused(
                        "not verified: the database is on an external server; name an image "
                        "of its kind: --image (-e verify_image=...)"
                    )
                problems = verify_import(host, run, shop.dumps, server_image)
        finally:
            remove_tree(shop.work)
    return problems


def command_verify(arguments: argparse.Namespace) -> int:
    host = Host.read(CONFIG)
    with lock():
        remove_dead_containers()
        check_destination(host)
        run = choose_run(read_runs(host), arguments.run)
        problems = verify(host, run, arguments.image)
        VerificationState(run.id, utc_now(), problems).store()
        remember_suspension(host, read_runs(host))
        remote = check_repository(host) if arguments.run == "latest" else ""
    for problem in problems:
        say(f"PROBLEM: {run.id}: {problem}")
    if not problems:
        say(
            f"verified {run.id}: "
            f"{', '.join(f'{name} {rows} rows' for name, rows in run.tables.items())}"
        )
    if remote:
        say(f"PROBLEM: checking the restic repository failed: {remote}")
    return 1 if problems or remote else 0
