"""MySQL: a server of the stack, an external one, or a throw-away one. A restore imports as root."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from ..docker import (
    BUILD_SECONDS,
    container,
    docker,
    has_image,
    service_of,
    stack_containers,
    words,
)
from ..documents import RunManifest
from ..files import sync_directory
from ..host import IN_SIDECAR, Host, Refused
from ..jobs import CONFINED, THROW_AWAY, ask, docker_root, require_memory, watching
from ..secrets import read_one_line
from ..space import require_space
from ..workshop import compare_rows
from .driver import Driver
from .mysql_server import Server, option_file

PORT = "3306"
# of the stack's own server; a name of a database is no option
DUMP = ("mysqldump",)
DUMPED = words(
    "--set-gtid-purged=OFF --single-transaction --no-tablespaces --routines --triggers --events "
    "--hex-blob --"
)
# of a throw-away server, beside production's: no binary log, little memory
SMALL = (
    *("--skip-log-bin", "--performance-schema=OFF", "--max-connections=10"),
    *("--innodb-buffer-pool-size=64M", "--innodb-redo-log-capacity=64M"),
)
CLIENT = words(
    "--user 64101:64101 --network bridge --tmpfs /tmp:size=16m "
    "--tmpfs /run/client:mode=0700,uid=64101,gid=64101,size=1m"
)


class MySQL(Driver):
    NAME = TRACKER_NAME = SERVICE = "mysql"
    KEYS = ("DB_HOST", "DB_PORT", "DB_USER", "DB_NAME", "DB_PASSWORD_FILE")
    SETTINGS: ClassVar = {**dict.fromkeys(KEYS, ""), "DB_TLS": "unverified verified"}
    SAVED = "before.sql"
    SOURCE = "client"
    CAPTURED = ("database.sql", "torrents.sql")

    def arguments(self, host: Host) -> dict[str, Any]:
        settings = host.backup_settings
        secret = Path(settings["DB_PASSWORD_FILE"])
        if not IN_SIDECAR:
            secret = host.deploy_dir / "backup/secrets" / secret.name
        try:
            password = read_one_line(secret)
        except OSError as error:
            raise Refused(f"the secret {secret} cannot be read: {error.strerror}", 2) from error
        keys = ("host", "port", "user", "name", "tls")
        return {
            **{key: settings[f"DB_{key.upper()}"] for key in keys},
            "driver": self.NAME,
            "password": password,
            "ca_file": settings.get("DB_TLS_CA_FILE", ""),
            "scope": host.scope,
        }

    def files(self, scope: str) -> dict[str, str]:
        found = {"database.sql": "sql"}
        return found if scope == "full" else found | {"torrents.sql": "torrents.sql"}

    def expected(self, settings: Mapping[str, str]) -> str:
        return address(settings["DB_HOST"], settings["DB_PORT"], settings["DB_NAME"])

    def uses(self, database: Mapping[str, str]) -> str:
        if not (path := database.get("path", "")):
            port, name = database.get("port") or PORT, database.get("database", "")
            return address(database["host"], port, name) if database.get("host") else ""
        try:
            # A password may hold any character.
            url = urlsplit("//" + path.partition("://")[2].rpartition("@")[2])
            name = unquote(url.path.removeprefix("/"))
            return address(unquote(url.hostname or ""), str(url.port or PORT), name)
        except ValueError:  # of the port, or of an address in brackets
            return "at an address that cannot be read"

    def service(self, host: Host) -> str:
        return self.SERVICE if host.backup_settings["DB_HOST"] == self.SERVICE else ""

    def prove_login(self, host: Host) -> None:
        with tracker_server(host):
            pass

    def prove_rights(self, host: Host) -> None:
        with tracker_server(host) as server:
            server.prove_rights()

    def replace(
        self, host: Host, work: Path, dumps: list[Path], run: RunManifest, begin: Callable[[], None]
    ) -> None:
        """Saves an empty database, too: then nothing in the volume of an empty machine is lost."""
        with tracker_server(host) as server, watching(work, docker_root()):
            server.prove_rights()
            server.save(work / self.SAVED)
            sync_directory(work)
            if self.service(host):  # rows and indexes, and the server's binary log
                require_space(docker_root(), 2 * sum(dump.lstat().st_size for dump in dumps))
            with server.importer() as importer:
                begin()
                server.recreate()
                importer.load(*dumps)
            if problems := compare_rows(run.tables, server.count_rows()):
                raise Refused("; ".join(problems))

    def undo(self, host: Host, work: Path) -> None:
        with tracker_server(host) as server:
            server.recreate()
            server.load(work / self.SAVED)

    def verify(self, host: Host, run: RunManifest, dumps: list[Path], image: str) -> list[str]:
        """The server has no network, and the image that the stack had when it was backed up."""
        image = image or run.images.get(self.SERVICE, "")
        if not image:
            raise Refused(
                "not verified: the database is on an external server; name an image of its kind: "
                "--image (-e verify_image=...)"
            )
        require_image(image)
        require_memory()
        root = docker_root()
        # rows, indexes, and what the server writes beside them
        require_space(root, 3 * sum(dump.lstat().st_size for dump in dumps))
        options = [*THROW_AWAY, "--env", "MYSQL_ALLOW_EMPTY_PASSWORD=yes"]
        local = ("--user=root", "--protocol=tcp", "--host=127.0.0.1")
        name = f"tracker-backup-server-{run.id}"
        with watching(root), container(name, image, *options, command=SMALL):
            database = host.backup_settings.get("DB_NAME", "tracker")
            server = Server(name, ("mysql", *local), (), database)
            server.wait()
            try:
                server.recreate()
                server.load(*dumps)
                return compare_rows(run.tables, server.count_rows())
            except Refused as error:
                return [str(error)]


def address(host: str, port: str, name: str) -> str:
    """One spelling of a database's place."""
    host = host.lower().strip("[]").rstrip(".")
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return f"{f'[{host}]' if ':' in host else host}:{port}/{name}"


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


# ---------------------------------------------------------------- reaching a server


@contextlib.contextmanager
def tracker_server(host: Host) -> Iterator[Server]:
    """The server that the tracker uses, as root where root's password is known, once it answers."""
    with stack_server(host) if MySQL().service(host) else external_server(host) as server:
        server.wait()
        yield server


@contextlib.contextmanager
def stack_server(host: Host) -> Iterator[Server]:
    """The stack's own MySQL: by the secret db_root_password, else by what its container was started
    with. The password is there for as long as the block lasts.
    """
    found = next((one for one in stack_containers(host) if service_of(one) == MySQL.SERVICE), None)
    if not found:
        raise Refused("the service mysql has no container: docker compose up -d mysql")
    if not found["State"]["Running"]:
        raise Refused("the service mysql does not run: docker compose start mysql")
    environment = dict(pair.partition("=")[::2] for pair in found["Config"]["Env"] or [])
    password = secret(host, "db_root_password") or environment.get("MYSQL_ROOT_PASSWORD", "")
    if not password:
        raise Refused(
            "MySQL's root password is neither a secret (tracker.core.database.root_password) "
            "nor in the service's environment"
        )
    quoted = password.replace("\\", "\\\\").replace('"', '\\"')
    options = f'[client]\nuser=root\npassword="{quoted}"\nhost=127.0.0.1\nprotocol=tcp\n'
    options += "default-character-set=utf8mb4\n"
    with option_file(found["Id"], options) as path:
        option, database = f"--defaults-extra-file={path}", host.backup_settings["DB_NAME"]
        yield Server(found["Id"], ("mysql", option), (*DUMP, option, *DUMPED, database), database)


@contextlib.contextmanager
def external_server(host: Host) -> Iterator[Server]:
    """An external MySQL server, through a container of the backup image that sees nothing else."""
    settings = host.backup_settings
    root = secret(host, "db_root_password")  # triggers need it
    authority = host.database_ca_file.read_text("utf-8") if host.database_ca_file else ""
    with container("tracker-backup-client", host.image, *CONFINED, *CLIENT) as name:
        answer = ask(
            name,
            "client",
            "connect",
            60,
            host=settings["DB_HOST"],
            port=settings["DB_PORT"],
            user="root" if root else settings["DB_USER"],
            password=root or secret(host, "db_password"),
            tls=settings["DB_TLS"],
            ca=authority,
        )
        if answer.code != 0:
            raise Refused(answer.reason)
        client = ("mariadb", "--defaults-file=/run/client/client.cnf")
        yield Server(name, client, ("backup.sh", "dump"), settings["DB_NAME"])


def secret(host: Host, name: str) -> str:
    """Empty if the host does not have it. One line end is an editor's."""
    path = host.deploy_dir / "backup/secrets" / name
    return read_one_line(path) if path.exists() else ""
