"""MySQL: a server of the stack, an external one, or a throw-away one. A restore imports as root."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar

from ..docker import (
    BUILD_SECONDS,
    DOCKER_SECONDS,
    WORK_SECONDS,
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
from ..jobs import CONFINED, THROW_AWAY, ask, docker_root, execute, require_memory, watching
from ..protocol import printable, table_name
from ..space import require_space
from ..workshop import compare_rows
from .driver import Driver

SERVER_SECONDS = 180  # until it answers
STATEMENT_SECONDS = 600
LINE_BYTES = 4096  # of a dump's first line
# of a throw-away server, beside production's: no binary log, little memory
SMALL = (
    *("--skip-log-bin", "--performance-schema=OFF", "--max-connections=10"),
    *("--innodb-buffer-pool-size=64M", "--innodb-redo-log-capacity=64M"),
)
RESERVE_BYTES = 256 << 20  # of staging, when the present database is saved
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
            password = secret.read_text(encoding="utf-8").removesuffix("\n")
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
        return f"{settings['DB_HOST']}:{settings['DB_PORT']}/{settings['DB_NAME']}"

    def uses(self, path: str) -> str:
        return re.sub(r"^([^:/]+)/", r"\1:3306/", path.removeprefix("mysql://").rpartition("@")[2])

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
        with tracker_server(host) as server:
            server.prove_rights()
            server.save(work / self.SAVED)
            sync_directory(work)
            begin()
            server.recreate()
            server.load(*dumps)
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


# ---------------------------------------------------------------- a server


@dataclass(frozen=True)
class Server:
    """How to reach a MySQL server as root: the container to run clients in, their names and first
    options.
    """

    container: str
    client: tuple[str, ...]
    dump: tuple[str, ...]
    database: str

    def ask(
        self, statement: str, database: str = "", seconds: float = STATEMENT_SECONDS
    ) -> list[str]:
        """The lines of the answer to one statement, as the server wrote them."""
        words = ["--batch", "--skip-column-names", "--execute", statement]
        done = execute(
            self.container, *self.client, *words, *filter(None, [database]), seconds=seconds
        )
        if done.code != 0:
            raise Refused(done.said[-400:] or f"{self.client[0]}: exit code {done.code}")
        return done.output.decode(errors="replace").split("\n")[:-1]

    def end_connections(self) -> None:
        """Ends what works in the database: a dead restore's client outlives it, and an event of a
        hostile user can hold a lock for ever. Events are disabled first, so that none begins.
        """
        database = quote_text(self.database)
        events = (
            f"SELECT hex(event_name) FROM information_schema.events WHERE event_schema = {database}"
        )
        for line in self.ask(events):
            with contextlib.suppress(Refused):
                event = f"{quote_name(self.database)}.{quote_name(from_hex(line))}"
                self.ask(f"ALTER EVENT {event} DISABLE")
        others = f"WHERE db = {database} AND id <> connection_id()"
        for line in self.ask(f"SELECT id FROM information_schema.processlist {others}"):
            with contextlib.suppress(Refused):  # it may have ended by itself
                self.ask(f"KILL {number([line])}")

    def prove_rights(self) -> None:
        """That this user may drop and make what a restore replaces; to be known before anything is
        stopped or dropped.
        """
        # A name that nobody can have taken before.
        name, probe_name = quote_name(self.database), f"tracker_backup_probe_{token_hex(8)}"
        probe = f"{name}.{probe_name}"
        triggers = (
            "SELECT count(*) FROM information_schema.triggers WHERE trigger_schema = "
            f"{quote_text(self.database)}"
        )
        defined = " UNION ALL ".join(
            f"SELECT definer FROM information_schema.{kind} WHERE {schema} = "
            f"{quote_text(self.database)}"
            for kind, schema in (
                ("triggers", "trigger_schema"),
                ("routines", "routine_schema"),
                ("events", "event_schema"),
                ("views", "table_schema"),
            )
        )
        me = (
            "concat(quote(substring_index(current_user(), '@', 1)), '@', "
            "quote(substring_index(current_user(), '@', -1)))"
        )
        may_define = "privilege_type IN ('SUPER', 'SET_USER_ID', 'SET_ANY_DEFINER', 'SET USER')"
        try:
            if self.ask(
                f"SELECT count(*) FROM ({defined}) AS defined WHERE definer <> current_user()"
            ) != ["0"] and self.ask(
                "SELECT count(*) FROM information_schema.user_privileges WHERE grantee = "
                f"{me} AND {may_define}"
            ) == ["0"]:
                raise Refused(
                    "triggers, routines, events or views in it belong to somebody else, and "
                    "are not this user's to make again"
                )
            self.ask(f"CREATE DATABASE IF NOT EXISTS {name}")
            self.ask(f"DROP TABLE IF EXISTS {probe}")
            try:
                self.ask(f"CREATE TABLE {probe} (a INT)")
                if self.ask(triggers) != ["0"]:
                    self.ask(
                        f"CREATE TRIGGER {name}.{probe_name} BEFORE INSERT ON {probe} "
                        "FOR EACH ROW SET NEW.a = 1"
                    )
            finally:
                self.ask(f"DROP TABLE IF EXISTS {probe}")
        except Refused as error:
            raise Refused(
                f"the database {self.database} may not be replaced by this user; give root's "
                "password (tracker.core.database.root_password), or grant CREATE and DROP: "
                f"{error}"
            ) from error

    def recreate(self) -> None:
        self.end_connections()
        self.ask(f"DROP DATABASE IF EXISTS {quote_name(self.database)}")
        self.ask(f"CREATE DATABASE {quote_name(self.database)}")

    def load(self, *dumps: Path) -> None:
        """Imports dumps, without their first line, which MySQL's client does not know; no client
        command in them is obeyed.
        """
        for dump in dumps:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(dump, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Refused(f"{dump} is no regular file")
                first = file.readline(LINE_BYTES)
                start = len(first) if first.startswith(b"/*M!999999") else 0
                os.lseek(file.fileno(), start, os.SEEK_SET)
                words = (*self.client, "--binary-mode", self.database)
                done = execute(self.container, *words, given=file, seconds=WORK_SECONDS)
            if done.code != 0:
                raise Refused(f"importing the dump failed: {done.said[-400:]}")

    def save(self, dump: Path) -> None:
        """Dumps the database as it is, to be able to go back."""
        options = words(
            "--single-transaction --no-tablespaces --routines --triggers --events --hex-blob"
        )
        room = shutil.disk_usage(dump.parent).free - RESERVE_BYTES
        with open(os.open(dump, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            command = (*self.dump, *options, self.database)
            done = execute(self.container, *command, into=file, limit=room, seconds=WORK_SECONDS)
            file.flush()
            os.fsync(file.fileno())
        if done.code != 0:
            raise Refused(f"the present database could not be saved first: {done.said[-400:]}")

    def count_rows(self) -> dict[str, int]:
        # A line end in a name must not look like the end of a line of the answer.
        tables = (
            "SELECT hex(table_name) FROM information_schema.tables "
            "WHERE table_schema = database() AND table_type = 'BASE TABLE'"
        )
        names = [from_hex(line) for line in self.ask(tables, self.database)]
        count = "SELECT count(*) FROM {}"
        return {
            table_name(name): number(self.ask(count.format(quote_name(name)), self.database))
            for name in names
        }


def from_hex(line: str) -> str:
    try:
        return bytes.fromhex(line).decode()
    except ValueError as error:
        raise Refused(f"the server answers {printable(repr(line))} instead of a name") from error


def number(lines: list[str]) -> int:
    """An integer from 0 to 2^63-1. The server can answer anything."""
    if len(lines) != 1 or not re.fullmatch("0|[1-9][0-9]{0,17}", lines[0]):
        raise Refused(f"the server answers {printable(repr(lines))} instead of a number")
    return int(lines[0])


def quote_name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def quote_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def wait_for_server(server: Server) -> None:
    """Until it answers over TCP: while its image initialises it, it answers on its socket alone."""
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            server.ask("SELECT 1", seconds=DOCKER_SECONDS)
            return
        except Refused as error:
            if "ERROR 1045" in str(error):  # a password does not become right by waiting
                raise
            if time.monotonic() > deadline:
                raise Refused(
                    f"the MySQL server in {server.container} was not ready after "
                    f"{SERVER_SECONDS} s: {error}"
                ) from error
            time.sleep(1)


@contextlib.contextmanager
def tracker_server(host: Host) -> Iterator[Server]:
    """The server that the tracker uses, as root where root's password is known, once it answers."""
    with stack_server(host) if MySQL().service(host) else external_server(host) as server:
        wait_for_server(server)
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
    write = 'umask 077; file=$(mktemp) && cat >"$file" && echo "$file"'
    made = execute(found["Id"], "sh", "-c", write, given=options.encode())
    path = made.output.decode(errors="replace").strip()
    if made.code != 0 or not path.startswith("/"):
        raise Refused(f"the service mysql's container does not take a file: {made.said[-400:]}")
    option = f"--defaults-extra-file={path}"
    try:
        yield Server(
            found["Id"],
            ("mysql", option),
            ("mysqldump", option, "--set-gtid-purged=OFF"),
            host.backup_settings["DB_NAME"],
        )
    finally:
        with contextlib.suppress(Refused):
            execute(found["Id"], "rm", "-f", "--", path)


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
        option = "--defaults-file=/run/client/client.cnf"
        yield Server(name, ("mariadb", option), ("mariadb-dump", option), settings["DB_NAME"])


def secret(host: Host, name: str) -> str:
    """Empty if the host does not have it."""
    path = host.deploy_dir / "backup/secrets" / name
    return path.read_text(encoding="utf-8").rstrip("\n") if path.exists() else ""
