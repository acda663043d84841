"""A MySQL server, asked through the client program in a container. It can answer anything."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import IO

from ..docker import DOCKER_SECONDS, WORK_SECONDS
from ..host import Refused
from ..jobs import Done, execute
from ..log import say
from ..protocol import printable, table_name

SERVER_SECONDS = 180  # until it answers
STATEMENT_SECONDS = 600
LINE_BYTES = 4096  # of a dump's first line
RESERVE_BYTES = 256 << 20  # of staging, when the present database is saved
DROPS = 3  # attempts
BATCH = ("--batch", "--skip-column-names", "--binary-mode")
# Otherwise a statement waits for a year while somebody holds a lock, and a server's own `sql_mode`
# changes what statements mean.
SESSION = "--init-command=SET SESSION lock_wait_timeout = 60, sql_mode = ''"
IMPORTER = "tracker_backup_import_"  # and random digits: the user of one import
OWN_SCHEMAS = "'mysql', 'sys', 'information_schema', 'performance_schema'"
# What lets a user give an object to another account, by the versions of MySQL and MariaDB.
IMPORTER_RIGHTS = ("SET_USER_ID", "SET_ANY_DEFINER", "ALLOW_NONEXISTENT_DEFINER")  # by version
DEFINING = "'SUPER', 'SET_USER_ID', 'SET_ANY_DEFINER', 'SET USER'"


@dataclass(frozen=True)
class Server:
    """How to reach a server: the container to run clients in, the client and its options, a command
    that prints a dump of the database, and the database's name.
    """

    container: str
    client: tuple[str, ...]
    dump: tuple[str, ...]
    database: str

    def ask(self, *statements: str, seconds: float = STATEMENT_SECONDS) -> list[str]:
        """The lines of the answers, as the server wrote them. Raises Refused at the first error."""
        done = self.tell(*statements, seconds=seconds)
        if done.code != 0:
            raise Refused(done.said[-400:] or f"{self.client[0]}: exit code {done.code}")
        return done.output.decode(errors="replace").split("\n")[:-1]

    def tell(self, *statements: str, seconds: float = STATEMENT_SECONDS, force: str = "") -> Done:
        """Runs statements. With `--force`, one that fails does not end the others."""
        text = "".join(f"{statement};\n" for statement in statements)
        words = (*self.client, SESSION, *BATCH, *filter(None, [force]))
        return execute(self.container, *words, given=text.encode(), seconds=seconds)

    def count(self, what: str) -> int:
        return number(self.ask(f"SELECT count(*) FROM {what}"))

    def wait(self) -> None:
        """Until it answers over TCP: while its image initialises it, it answers on its socket
        alone.
        """
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                self.ask("SELECT 1", seconds=DOCKER_SECONDS)
                return
            except Refused as error:
                if "ERROR 1045" in str(error):  # a password does not become right by waiting
                    raise
                if time.monotonic() > deadline:
                    raise Refused(
                        f"the MySQL server in {self.container} was not ready after "
                        f"{SERVER_SECONDS} s: {error}"
                    ) from error
                time.sleep(1)

    # ------------------------------------------------------------ the database

    def defined(self) -> str:
        """A query for the owners of what is in the database."""
        places = {"triggers": "trigger", "routines": "routine", "events": "event", "views": "table"}
        return " UNION ALL ".join(
            f"SELECT definer FROM information_schema.{kind} "
            f"WHERE {what}_schema = {quote_text(self.database)}"
            for kind, what in places.items()
        )

    def prove_rights(self) -> None:
        """That this user may drop and make what a restore replaces, which has to be known before
        anything is stopped or dropped. What it makes is legal where primary keys are required.
        """
        name, probe = quote_name(self.database), f"tracker_backup_probe_{token_hex(8)}"
        table = f"{name}.{probe}"
        here = f"information_schema.triggers WHERE trigger_schema = {quote_text(self.database)}"
        me = f"grantee = concat({part_of_me(1)}, '@', {part_of_me(-1)})"
        may = f"information_schema.user_privileges WHERE {me} AND privilege_type IN ({DEFINING})"
        strange = f"({self.defined()}) AS defined WHERE definer <> current_user()"
        try:
            if self.count(strange) and not self.count(may):
                raise Refused(
                    "triggers, routines, events or views in it belong to somebody else, and "
                    "are not this user's to make again"
                )
            self.ask(f"CREATE DATABASE IF NOT EXISTS {name}")
            trigger = f"CREATE TRIGGER {name}.{probe} BEFORE INSERT ON {table} FOR EACH ROW SET "
            try:
                self.ask(f"CREATE TABLE {table} (a INT NOT NULL PRIMARY KEY)")
                if self.count(here):
                    self.ask(trigger + "NEW.a = 1")
            finally:
                self.ask(f"DROP TABLE IF EXISTS {table}")
        except Refused as error:
            raise Refused(
                f"the database {self.database} may not be replaced by this user; give root's "
                "password (tracker.core.database.root_password), or grant CREATE and DROP: "
                f"{error}"
            ) from error

    def character_set(self) -> str:
        """The database's default, as a part of a statement; empty if there is no database."""
        lines = self.ask(
            "SELECT default_character_set_name, default_collation_name FROM "
            f"information_schema.schemata WHERE schema_name = {quote_text(self.database)}"
        )
        found = re.fullmatch(r"([a-z0-9_]{1,64})\t([a-z0-9_]{1,64})", "\n".join(lines))
        return f"CHARACTER SET {found[1]} COLLATE {found[2]}" if found else ""

    def end_connections(self) -> None:
        """Ends what works in the database: a dead restore's client outlives it, and an event of a
        hostile user can hold a lock for ever. Events are disabled first, so that none begins.
        """
        name = quote_text(self.database)
        events = self.ask(
            f"SELECT hex(event_name) FROM information_schema.events WHERE event_schema = {name}"
        )
        event = quote_name(self.database) + ".{}"
        disable = [
            f"ALTER EVENT {event.format(quote_name(from_hex(one)))} DISABLE" for one in events
        ]
        self.tell(*disable, force="--force")
        busy = self.ask(
            f"SELECT id FROM information_schema.processlist WHERE db = {name} "
            "AND id <> connection_id()"
        )
        self.tell(*(f"KILL {number([one])}" for one in busy), force="--force")

    def recreate(self) -> None:
        """Empties the database. It keeps its default character set."""
        name, defaults = quote_name(self.database), self.character_set()
        for attempt in range(1, DROPS + 1):
            self.end_connections()
            try:
                self.ask(f"DROP DATABASE IF EXISTS {name}")
                break
            except Refused:
                if attempt == DROPS:
                    raise
        self.ask(f"CREATE DATABASE {name} {defaults}".rstrip())

    def save(self, dump: Path) -> None:
        """Dumps the database as it is, to be able to go back."""
        room = shutil.disk_usage(dump.parent).free - RESERVE_BYTES
        with open(os.open(dump, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            if defaults := self.character_set():
                file.write(f"/*!40100 ALTER DATABASE {defaults} */;\n".encode())
            given = self.database.encode()
            done = execute(
                self.container, *self.dump, given=given, into=file, limit=room, seconds=WORK_SECONDS
            )
            file.flush()
            os.fsync(file.fileno())
        if done.code != 0:
            raise Refused(f"the present database could not be saved first: {done.said[-400:]}")

    def load(self, *dumps: Path) -> None:
        """Imports dumps, without their first line, which MySQL's client does not know; no client
        command in them is obeyed.
        """
        for dump in dumps:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(dump, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Refused(f"{dump} is no regular file")
                done = self.send(file)
            if done.code != 0:
                raise Refused(f"importing the dump failed: {done.said[-400:]}")

    def send(self, dump: IO[bytes]) -> Done:
        first = dump.readline(LINE_BYTES)
        start = len(first) if first.startswith(b"/*M!999999") else 0
        os.lseek(dump.fileno(), start, os.SEEK_SET)
        words = (*self.client, SESSION, "--binary-mode", self.database)
        return execute(self.container, *words, given=dump, seconds=WORK_SECONDS)

    def count_rows(self) -> dict[str, int]:
        """By table, in one call of the client."""
        # A line end in a name must not look like the end of a line of the answer.
        tables = self.ask(
            "SELECT hex(table_name) FROM information_schema.tables WHERE table_schema = "
            f"{quote_text(self.database)} AND table_type = 'BASE TABLE'"
        )
        names, database = [from_hex(line) for line in tables], quote_name(self.database)
        counts = [f"SELECT count(*) FROM {database}.{quote_name(name)}" for name in names]
        lines = self.ask(*counts, seconds=WORK_SECONDS)
        if len(lines) != len(names):
            raise Refused(f"the server answers {len(lines)} numbers for {len(names)} tables")
        return {table_name(name): number([line]) for name, line in zip(names, lines, strict=True)}

    # ------------------------------------------------------------ an import's own user

    @contextlib.contextmanager
    def importer(self) -> Iterator[Server]:
        """The server, as a user who may do everything in the one database and nothing elsewhere. A
        dump is SQL that nobody vouches for. Where this user may make no other, it imports itself.
        """
        user, password = IMPORTER + token_hex(5), token_hex(32) + "-Aa1"
        trust = "@@GLOBAL.log_bin_trust_function_creators"
        if not self.add_importer(user, password):
            yield self
            return
        trusting = self.tell(f"SELECT {trust}").output == b"0\n"
        try:
            if trusting:  # otherwise only an administrator may import a trigger
                self.ask(f"SET {trust} = 1")
            program, option = self.client
            name, _, base = option.partition("=")
            text = f"!include {base}\n[client]\nuser={user}\npassword={password}\n"
            with option_file(self.container, text) as path:
                yield replace(self, client=(program, f"{name}={path}"))
        finally:
            back = [f"SET {trust} = 0"] if trusting else []
            self.tell(*back, f"DROP USER '{user}'@'%'", force="--force")

    def add_importer(self, user: str, password: str) -> bool:
        """False if this user may make no other. Removes those that a killed import left.

        Only an account with SYSTEM_USER may give an object to an administrator. The importer gets
        it if there is no other database to protect, or if an administrator owns such an object now.
        """
        left = f"SELECT user FROM mysql.user WHERE user REGEXP '^{IMPORTER}[0-9a-f]{{10}}$'"
        account, database = f"'{user}'@'%'", quote_name(self.database)
        try:
            old = [one for one in self.ask(left) if re.fullmatch(IMPORTER + "[0-9a-f]{10}", one)]
            self.ask(*(f"DROP USER '{one}'@'%'" for one in old))
            if self.ask("SELECT @@GLOBAL.partial_revokes") == ["0"]:  # then these are wildcards
                database = re.sub(r"([_%])", r"\\\1", database)
            self.ask(
                f"CREATE USER {account} IDENTIFIED BY '{password}'",
                f"GRANT ALL ON {database}.* TO {account}",
            )
        except Refused as error:
            say(f"warning: the dump is imported with all rights of the user that is there: {error}")
            return False
        owner = "concat(quote(substring_index(definer, '@', 1)), '@', "
        owner += "quote(substring_index(definer, '@', -1)))"
        strangers = self.count(
            "information_schema.schemata WHERE schema_name NOT IN "
            f"({OWN_SCHEMAS}, {quote_text(self.database)})"
        )
        administrators = self.count(
            f"({self.defined()}) AS defined JOIN information_schema.user_privileges ON "
            f"grantee = {owner} AND privilege_type = 'SYSTEM_USER'"
        )
        rights = [*IMPORTER_RIGHTS, *(["SYSTEM_USER"] if administrators or not strangers else [])]
        self.tell(*(f"GRANT {one} ON *.* TO {account}" for one in rights), force="--force")
        return True


@contextlib.contextmanager
def option_file(container: str, text: str) -> Iterator[str]:
    """The path of a file in the container that only its user reads, for as long as the block
    lasts.
    """
    write = 'umask 077; file=$(mktemp) && cat >"$file" && echo "$file"'
    made = execute(container, "sh", "-c", write, given=text.encode())
    path = made.output.decode(errors="replace").strip()
    if made.code != 0 or not path.startswith("/"):
        raise Refused(f"the container {container} does not take a file: {made.said[-400:]}")
    try:
        yield path
    finally:
        with contextlib.suppress(Refused):
            execute(container, "rm", "-f", "--", path)


def part_of_me(which: int) -> str:
    """The present user's name (1) or host (-1), quoted as `grantee` has it."""
    return f"quote(substring_index(current_user(), '@', {which}))"


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
    """Right in every `sql_mode`."""
    return f"_utf8mb4 x'{text.encode().hex()}'"
