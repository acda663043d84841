"""A MySQL server, asked as root: the stack's own, an external one, or a throw-away one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .answers import number, open_answer, table_name
from .docker import DOCKER_SECONDS, WORK_SECONDS, docker, service_of, stack_containers
from .host import Host, Refused
from .workshop import Workshop

SERVER_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """How to reach a MySQL server as root: the container to run clients in, their names and first
    options.
    """

    container: str
    client: tuple[str, ...]
    dump: tuple[str, ...]
    database: str

    def ask(self, statement: str, database: str = "") -> list[str]:
        """The lines of the answer to one statement."""
        words = [
            "--batch",
            "--skip-column-names",
            "--execute",
            statement,
            *([database] if database else []),
        ]
        return docker("exec", self.container, *self.client, *words).split("\n")[:-1]

    def end_imports(self) -> None:
        """Ends what a dead restore still does in the server: its client outlives it."""
        own = "user = substring_index(user(), '@', 1) AND id <> connection_id()"
        for line in self.ask(
            "SELECT id FROM information_schema.processlist WHERE db = "
            f"{quote_text(self.database)} AND {own}"
        ):
            with contextlib.suppress(Refused):  # it may have ended by itself
                self.ask(f"KILL {number(line, 'a connection')}")

    def prove_rights(self) -> None:
        """That this user may drop and make what a restore replaces; to be known before anything is
        stopped or dropped.
        """
        name, probe = quote_name(self.database), f"{quote_name(self.database)}.tracker_backup_probe"
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
                        f"CREATE TRIGGER {name}.tracker_backup_probe BEFORE INSERT ON {probe} "
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
        self.ask(f"DROP DATABASE IF EXISTS {quote_name(self.database)}")
        self.ask(f"CREATE DATABASE {quote_name(self.database)}")

    def load(self, *dumps: Path) -> None:
        """Imports dumps, without their first line, which MySQL's client does not know; no client
        command in them is obeyed.
        """
        for dump in dumps:
            descriptor = open_answer(dump.parent, dump.name, 1 << 62)
            if descriptor is None:
                raise Refused(f"{dump} is gone")
            with open(descriptor, "rb") as file:
                first = file.readline()
                os.lseek(
                    file.fileno(), len(first) if first.startswith(b"/*M!999999") else 0, os.SEEK_SET
                )
                done = subprocess.run(
                    [
                        "docker",
                        "exec",
                        "--interactive",
                        self.container,
                        *self.client,
                        "--binary-mode",
                        self.database,
                    ],
                    stdin=file,
                    capture_output=True,
                    text=True,
                    timeout=WORK_SECONDS,
                    check=False,
                )
            if done.returncode != 0:
                raise Refused(f"importing the dump failed: {done.stderr.strip()[-400:]}")

    def save(self, dump: Path) -> None:
        """Dumps the database as it is, to be able to go back."""
        options = (
            "--single-transaction",
            "--no-tablespaces",
            "--routines",
            "--triggers",
            "--events",
            "--hex-blob",
        )
        with open(os.open(dump, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            done = subprocess.run(
                ["docker", "exec", self.container, *self.dump, *options, self.database],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.PIPE,
                timeout=WORK_SECONDS,
                check=False,
            )
            os.fsync(file.fileno())
        if done.returncode != 0:
            raise Refused(
                "the present database could not be saved first: "
                f"{done.stderr.decode(errors='replace').strip()[-400:]}"
            )

    def count_rows(self) -> dict[str, int]:
        tables = (
            "SELECT table_name FROM information_schema.tables WHERE table_schema = database() AND "
            "table_type = 'BASE TABLE'"
        )
        names = self.ask(tables, self.database)
        return {
            table_name(name): number(
                "".join(self.ask(f"SELECT count(*) FROM {quote_name(name)}", self.database)),
                "a number of rows",
            )
            for name in names
        }


def quote_name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def quote_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def wait_for_server(server: Server) -> None:
    """Until it answers over TCP: while its image initialises it, it answers on its socket alone."""
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            server.ask("SELECT 1")
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
def tracker_server(host: Host, shop: Workshop) -> Iterator[Server]:
    """The server that the tracker uses, as root where root's password is known, once it answers."""
    with (
        stack_server(host)
        if host.in_stack
        else contextlib.nullcontext(external_server(shop)) as server
    ):
        wait_for_server(server)
        yield server


@contextlib.contextmanager
def stack_server(host: Host) -> Iterator[Server]:
    """The stack's own MySQL: by the secret db_root_password, else by what its container was started
    with. The password is there for as long as the block lasts.
    """
    for found in stack_containers(host):
        if service_of(found) == "mysql":
            break
    else:
        raise Refused("the service mysql has no container: docker compose up -d mysql")
    if not found["State"]["Running"]:
        raise Refused("the service mysql does not run: docker compose start mysql")
    secret = host.deploy_dir / "backup/secrets/db_root_password"
    environment = dict(pair.partition("=")[::2] for pair in found["Config"]["Env"] or [])
    password = (
        secret.read_text(encoding="utf-8")
        if secret.exists()
        else environment.get("MYSQL_ROOT_PASSWORD", "")
    )
    if not password:
        raise Refused(
            "MySQL's root password is neither a secret (tracker.core.database.root_password) "
            "nor in the service's environment"
        )
    quoted = password.replace("\\", "\\\\").replace('"', '\\"')
    options = f'[client]\nuser=root\npassword="{quoted}"\nhost=127.0.0.1\nprotocol=tcp\n'
    made = subprocess.run(
        [
            "docker",
            "exec",
            "--interactive",
            found["Id"],
            "sh",
            "-c",
            'umask 077; file=$(mktemp) && cat >"$file" && echo "$file"',
        ],
        input=options,
        capture_output=True,
        text=True,
        timeout=DOCKER_SECONDS,
        check=False,
    )
    if made.returncode != 0:
        raise Refused(
            f"the container of the service mysql does not take a file: {made.stderr.strip()[-400:]}"
        )
    option = f"--defaults-extra-file={made.stdout.strip()}"
    try:
        yield Server(
            found["Id"],
            ("mysql", option),
            ("mysqldump", option, "--set-gtid-purged=OFF"),
            host.backup_settings["DB_NAME"],
        )
    finally:
        with contextlib.suppress(Refused):
            docker("exec", found["Id"], "rm", "-f", made.stdout.strip())


def external_server(shop: Workshop) -> Server:
    """The external MySQL server, through the backup container's own client."""
    shop.step("connect")
    option = "--defaults-file=/tmp/client.cnf"
    return Server(
        shop.container,
        ("mariadb", option),
        ("mariadb-dump", option),
        shop.host.backup_settings["DB_NAME"],
    )
