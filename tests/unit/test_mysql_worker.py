"""The client and the examiner of MySQL, with stubs for MariaDB's client programs."""

from __future__ import annotations

import io
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from unit.examining import Worker

DATABASE = "tor.r`ust -x"
PASSWORD = "p\"a\\ss$(touch pwned) '#;=%"
DUMP = """\
/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19-11.8.3-MariaDB, for debian-linux-gnu (x86_64)
DROP TABLE IF EXISTS `torrents`;
CREATE TABLE `torrents` (
  `id` int NOT NULL AUTO_INCREMENT,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB;
INSERT INTO `torrents` VALUES
(1,'aa',1),
(2,'(tricky;\\n(not a row;',0),
(3,'cc',7);
CREATE TABLE `whitelist` (
  `id` int NOT NULL
) ENGINE=InnoDB;
INSERT INTO `whitelist` VALUES
(1,'aa');
INSERT INTO `whitelist` VALUES
(2,'bb');
CREATE TABLE `keys` (
  `id` int NOT NULL
) ENGINE=InnoDB;
CREATE TABLE `it's ``quoted``` (
  `id` int NOT NULL
) ENGINE=InnoDB;
INSERT INTO `it's ``quoted``` VALUES
(1);
-- Dump completed on 2026-01-02  3:04:05
"""
TORRENTS = """\
/*M!999999\\- enable the sandbox mode */
INSERT INTO `torrents` VALUES
(1,'aa',1),
(3,'cc',7);
-- Dump completed on 2026-01-02  3:04:06
"""
HEADER = "/*!40100 ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_bin */;\n"


def with_header(dump: str) -> str:
    """The dump with its second line, which keeps the database's character set."""
    first, _, rest = dump.partition("\n")
    return f"{first}\n{HEADER}{rest}"


WRITTEN = with_header(DUMP)
ROWS = {"torrents": 3, "whitelist": 2, "keys": 0, "it's `quoted`": 1}
# Each program notes its arguments, its environment and the option file, does what its hook says,
# and then answers. A hook can end it.
NOTE = """#!/usr/bin/env bash
cd "$STUB"
{ printf '%s' "${0##*/}"; printf '\\t%q' "$@"; echo; } >>calls
env >>environment
[[ $1 != --defaults-file=* ]] || cp --preserve=mode "${1#--defaults-file=}" client.cnf
[[ ! -e hook-${0##*/} ]] || source "./hook-${0##*/}"
"""
CLIENT = """case $* in
    *generation_expression*) cat generated ;;
    *hex*) cat tables ;;
    *default_character_set_name*) printf 'utf8mb4\\tutf8mb4_bin\\n' ;;
    *Ssl_cipher*) printf 'Ssl_cipher\\tTLS_AES_256_GCM_SHA384\\n' ;;
    *user_privileges*) echo 1 ;;
    *data_length*) echo 1000000 ;;
    *) echo "an unknown query: $*" >&2; exit 1 ;;
esac
"""
DUMPER = """case $* in
    --version) echo 'mariadb-dump from 11.8, client 10.19' ;;
    *--no-create-info*) cat dump-torrents ;;
    *) cat dump ;;
esac
"""


class Server(Worker):
    """A worker, and the directory of the stubs."""

    stub: Path
    arguments: dict[str, Any]

    def preflight(self) -> Any:
        return self.do("client", "preflight", self.arguments)

    def capture(self, scope: str = "full", limit_bytes: int = 1 << 30) -> Any:
        more = {"scope": scope, "limit_bytes": limit_bytes}
        return self.do("client", "capture", self.arguments | more)

    def has_tables(self, *names: str) -> None:
        (self.stub / "tables").write_text("".join(f"{name.encode().hex()}\n" for name in names))

    def on(self, program: str, script: str) -> None:
        (self.stub / f"hook-{program}").write_text(script)

    def calls(self, program: str) -> list[str]:
        lines = (self.stub / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(program + "\t")]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server(tmp_path / "work")
    made.stub = tmp_path / "stub"
    made.stub.mkdir()
    for name, script in {"mariadb": CLIENT, "mariadb-dump": DUMPER}.items():
        (made.stub / name).write_text(NOTE + script)
        (made.stub / name).chmod(0o755)
    (made.stub / "dump").write_text(DUMP)
    (made.stub / "generated").touch()
    (made.stub / "dump-torrents").write_text(TORRENTS)
    made.has_tables("torrents", "whitelist", "keys")
    monkeypatch.setenv("STUB", str(made.stub))
    monkeypatch.setenv("PATH", f"{made.stub}:{os.environ['PATH']}")
    monkeypatch.setattr(made.module("mysql"), "CLIENT", tmp_path / "client")
    made.arguments = {
        "driver": "mysql",
        "host": "mysql",
        "port": 3306,
        "user": "tracker",
        "password": PASSWORD,
        "name": DATABASE,
        "tls": "unverified",
        "ca_file": "",
    }
    return made


# ---------------------------------------------------------------- connecting


def test_the_password_is_in_a_0600_file_for_a_while_and_nowhere_else(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.arguments["password"] = 's3cret-"quoted"\\back'
    assert server.preflight().code == 0
    assert server.capture().code == 0
    options = server.stub / "client.cnf"
    assert 'password="s3cret-\\"quoted\\"\\\\back"' in options.read_text().splitlines()
    assert options.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "client").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "client").iterdir()) == []
    options.unlink()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert "s3cret" not in path.read_text(), path
    assert "s3cret" not in "".join(capfd.readouterr())


def test_the_option_file_goes_when_the_server_fails(server: Server, tmp_path: Path) -> None:
    server.on("mariadb", "exit 1")
    assert server.preflight().code == 1
    assert list((tmp_path / "client").iterdir()) == []


def test_no_password_is_executed_and_no_line_of_one_is_an_option(
    server: Server, tmp_path: Path
) -> None:
    server.arguments["password"] = PASSWORD + "\nskip-ssl"
    server.preflight()
    written = (server.stub / "client.cnf").read_text().splitlines()
    assert 'password="p\\"a\\\\ss$(touch pwned) \'#;=%\\nskip-ssl"' in written
    assert "skip-ssl" not in written
    assert not list(tmp_path.rglob("pwned"))


def test_tls_is_always_on_and_the_connection_has_a_time_limit(server: Server) -> None:
    server.preflight()
    unverified = (server.stub / "client.cnf").read_text().splitlines()
    assert {"ssl", "skip-ssl-verify-server-cert", "connect-timeout=10"} < set(unverified)
    assert {"max-allowed-packet=1G", "default-character-set=utf8mb4"} < set(unverified)
    for ca_file, expected in {
        "/etc/backup/ca.pem": "/etc/backup/ca.pem",
        "": "/etc/ssl/certs/ca-certificates.crt",
    }.items():
        server.arguments |= {"tls": "verified", "ca_file": ca_file}
        server.capture()
        verified = (server.stub / "client.cnf").read_text().splitlines()
        assert {"ssl", "ssl-verify-server-cert", f'ssl-ca="{expected}"'} < set(verified)
        assert not [line for line in verified if line.startswith("skip-ssl")]


def test_a_server_that_cannot_be_reached_fails_with_its_message(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    server.on("mariadb", "printf 'a warning\\nERROR 2002 (HY000): no connection\\n' >&2; exit 1")
    assert server.preflight().reason == "ERROR 2002 (HY000): no connection (mariadb, exit code 1)"
    assert "a warning" in capfd.readouterr().err


# ---------------------------------------------------------------- preflight


def test_preflight_reports_tables_and_size(server: Server) -> None:
    names = ["torrents", "it's", "line\nend", "-x", "a\tb", "`", '"', "雪" * 64, "$(id)"]
    server.has_tables(*names)
    answer = server.preflight()
    shown = [name.replace("\n", " ").replace("\t", " ") for name in names]
    assert answer.tables == dict.fromkeys(shown, 0)
    assert answer.numbers == {"database_bytes": 1000000}
    assert answer.warnings == []
    assert server.calls("mariadb")[-1].endswith("\t--\ttor.r\\`ust\\ -x")


def test_what_the_user_has_no_right_to_see_is_a_warning(server: Server) -> None:
    server.on("mariadb", "[[ $* != *user_privileges* ]] || { echo 0; exit; }")
    warnings = server.preflight().warnings
    for what in ("triggers (privilege TRIGGER)", "other users' routines (privilege SHOW_ROUTINE)"):
        warning = f"user tracker may not see {what} in database {DATABASE}: if there are any, the "
        assert warning + "backup lacks them" in warnings
    assert len(warnings) == 2


@pytest.mark.parametrize("query", ["user_privileges", "data_length"])
@pytest.mark.parametrize(
    "number",
    ["a[$(touch pwned)]", "1 + 1", "-1", "", "1e3", "0x10", "08", "9" * 20, "1\n2", "٣", "1_0"],
)
def test_no_answer_of_the_server_is_evaluated(
    server: Server, tmp_path: Path, query: str, number: str
) -> None:
    (server.stub / "number").write_text(number + "\n")
    server.on("mariadb", f"[[ $* != *{query}* ]] || {{ cat number; exit; }}")
    answer = server.preflight()
    assert (answer.code, "is not a whole number" in answer.reason) == (1, True)
    assert not list(tmp_path.rglob("pwned"))


def test_the_largest_size_of_a_database_is_read(server: Server) -> None:
    server.on("mariadb", f"[[ $* != *data_length* ]] || {{ echo {2**63 - 1}; exit; }}")
    assert server.preflight().numbers == {"database_bytes": 2**63 - 1}
    server.on("mariadb", f"[[ $* != *data_length* ]] || {{ echo {2**63}; exit; }}")
    assert "is not a whole number" in server.preflight().reason


@pytest.mark.parametrize("line", ["zz", "6", "ff", "6100", "'a'"])
def test_a_name_that_is_none_is_refused(server: Server, line: str) -> None:
    (server.stub / "tables").write_text(line + "\n")
    assert server.preflight().reason.startswith("the server's names of tables cannot be read")
    assert server.capture("exclude-statistics").code == 1


def test_more_tables_than_an_answer_may_have_are_refused(server: Server) -> None:
    server.has_tables(*(f"t{n}" for n in range(1001)))
    assert server.preflight().reason == "the database has more than 1000 tables"


# ---------------------------------------------------------------- a hostile server


def test_endless_rows_end_the_query(server: Server) -> None:
    server.on("mariadb", "[[ $* != *hex* ]] || exec yes 61")
    started = time.monotonic()
    assert server.preflight().reason == f"mariadb wrote more than {1 << 23} bytes"
    assert time.monotonic() - started < 20


def test_an_endless_dump_ends_at_the_limit(server: Server) -> None:
    server.on("mariadb-dump", "[[ $1 == --version ]] || exec yes \"(1,'aa'),\"")
    answer = server.capture(limit_bytes=1_000_000)
    assert answer.reason == "mariadb-dump wrote more than 1000000 bytes"
    assert (server.work / "database.sql").stat().st_size == 1_000_000


def test_endless_messages_are_bounded_in_memory_log_and_time(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.module("mysql"), "QUERY_SECONDS", 0.5)
    server.on("mariadb", "exec yes MESSAGE >&2")
    reason = server.preflight().reason
    assert reason.startswith("mariadb was killed; its time limit is ")
    assert len(capfd.readouterr().err) < 5000


def test_a_message_of_one_endless_line_is_cut(server: Server) -> None:
    server.on("mariadb", "head -c 10000000 /dev/zero | tr '\\0' x >&2; printf '\\e[2J' >&2; exit 1")
    reason = server.preflight().reason
    assert len(reason) < 1100
    assert "\x1b" not in reason


def test_a_server_that_says_nothing_meets_the_time_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.module("mysql"), "DUMP_SECONDS", 0.3)
    server.on("mariadb-dump", "[[ $1 == --version ]] || exec sleep 60")
    started = time.monotonic()
    assert server.capture().reason.startswith("mariadb-dump was killed; its time limit is ")
    assert time.monotonic() - started < 10


# ---------------------------------------------------------------- dumps


def test_a_dump_is_taken_in_one_transaction_without_a_privilege_that_users_lack(
    server: Server,
) -> None:
    tools = {"mariadb-dump": "mariadb-dump from 11.8, client 10.19"}
    assert server.preflight().tools == tools
    assert server.capture().code == 0
    assert (server.work / "database.sql").read_text() == WRITTEN
    (call,) = [call for call in server.calls("mariadb-dump") if "--version" not in call]
    _, options, words = call.split("\t", 2)
    assert options.startswith("--defaults-file=")
    assert words.replace("\t", " ") == (
        "--single-transaction --quick --no-tablespaces --hex-blob --routines --triggers --events "
        "-- tor.r\\`ust\\ -x"
    )


def test_without_statistics_there_are_two_dumps_and_the_second_has_completed_torrents_only(
    server: Server,
) -> None:
    names = ["whitelist", "keys", "it's & \\x.y", "-lead", "line\nend", "Torrents", "雪" * 64]
    server.has_tables("torrents", *names)
    assert server.capture("exclude-statistics").code == 0
    first, second = [call for call in server.calls("mariadb-dump") if "--version" not in call]
    common = "--single-transaction\t--quick\t--no-tablespaces\t--hex-blob\t"
    quoted = [f"--ignore-table-data={DATABASE}.{name}" for name in ("torrents", *names)]
    script = "printf '\\t%q' \"$@\""
    shown = subprocess.run(
        ["bash", "-c", script, "x", *quoted], capture_output=True, text=True, check=True
    ).stdout.split("\t")[1:]
    tail = "--\ttor.r\\`ust\\ -x"
    assert first.endswith(f"{common}--routines\t--skip-triggers\t--events\t{shown[0]}\t{tail}")
    assert second.endswith(
        f"{common}--triggers\t--no-create-info\t--where=completed\\ \\>\\ 0\t"
        + "\t".join(shown[1:])
        + f"\t{tail}"
    )
    assert (server.work / "torrents.sql").read_text() == TORRENTS


@pytest.mark.parametrize(("lines", "code"), [(0, 2), (10, 3), (1000, 2)])
def test_a_dump_that_fails_anywhere_fails_the_job(server: Server, lines: int, code: int) -> None:
    message = "mariadb-dump: Error 2013: Lost connection to server"
    server.on(
        "mariadb-dump",
        f"[[ $1 == --version ]] || {{ head -n {lines} dump; echo '{message}' >&2; exit {code}; }}",
    )
    assert server.capture().reason == f"{message} (mariadb-dump, exit code {code})"


def test_a_second_dump_that_fails_fails_the_job(server: Server) -> None:
    server.on("mariadb-dump", "[[ $* != *--where* ]] || { echo 'Lost connection' >&2; exit 3; }")
    reason = server.capture("exclude-statistics").reason
    assert reason == "Lost connection (mariadb-dump, exit code 3)"


GENERATED = """\
/*M!999999\\- enable the sandbox mode */
CREATE TABLE `o``dd` (
  `a` text,
  `g` int GENERATED ALWAYS AS (1) VIRTUAL
) ENGINE=InnoDB;
INSERT INTO `o``dd` (`a`, `g`, `b`, `h`) VALUES ('it\\'s, (a) \\\\',7,0x00FF,NULL),
(NULL,8,'',''''),
('x',9,_binary '\\n,',-1.5e3);
CREATE TABLE `plain` (
  `a` int
) ENGINE=InnoDB;
INSERT INTO `plain` (`a`) VALUES (') VALUES (');
DELIMITER ;;
CREATE PROCEDURE p() BEGIN
INSERT INTO `o``dd` (`a`, `g`, `b`, `h`) VALUES
(1,2,3,4),
(5,6,7,8);
END ;;
DELIMITER ;
-- Dump completed on 2026-01-02  3:04:05
"""


def test_a_generated_column_gets_no_value(server: Server) -> None:
    """MySQL refuses one with error 3105; mariadb-dump writes it all the same."""
    name = b"o`dd".hex()
    (server.stub / "generated").write_text(f"{name}\t2\n{name}\t4\n")
    (server.stub / "dump").write_text(GENERATED)
    assert server.capture().code == 0
    written = (server.work / "database.sql").read_text()
    expected = with_header(GENERATED)
    for row in (
        "('it\\'s, (a) \\\\',7,0x00FF,NULL)|('it\\'s, (a) \\\\',DEFAULT,0x00FF,DEFAULT)",
        "(NULL,8,'','''')|(NULL,DEFAULT,'',DEFAULT)",
        "('x',9,_binary '\\n,',-1.5e3)|('x',DEFAULT,_binary '\\n,',DEFAULT)",
    ):
        old, _, new = row.partition("|")
        assert old in expected
        expected = expected.replace(old, new)
    assert written == expected
    assert "--complete-insert" in server.calls("mariadb-dump")[-1]
    assert server.examine(driver="mysql").tables == {"o`dd": 3, "plain": 1}


def test_a_row_that_is_not_as_the_server_says_fails_the_dump(server: Server) -> None:
    name = b"plain".hex()
    (server.stub / "generated").write_text(f"{name}\t2\n")
    (server.stub / "dump").write_text(GENERATED)
    assert "fewer values" in server.capture().reason


@pytest.mark.parametrize("answer", ["", "utf8mb4", "utf8mb4\t`;DROP", "a\tb\tc"])
def test_a_character_set_that_is_none_is_refused(server: Server, answer: str) -> None:
    (server.stub / "answer").write_text(answer + "\n")
    server.on("mariadb", "[[ $* != *default_character_set_name* ]] || { cat answer; exit; }")
    assert server.capture().reason.startswith("the server's character set cannot be read")


def test_a_connection_in_plain_text_is_a_warning(server: Server) -> None:
    server.on("mariadb", "[[ $* != *Ssl_cipher* ]] || { printf 'Ssl_cipher\\t\\n'; exit; }")
    answer = server.preflight()
    assert answer.code == 0
    assert answer.warnings[0].startswith("the connection to the server mysql is not encrypted")


# ---------------------------------------------------------------- examining


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_dump_is_compressed_byte_for_byte_and_its_rows_are_counted(
    server: Server, compression: str
) -> None:
    (server.work / "database.sql").write_text(DUMP)
    answer = server.examine(driver="mysql")
    assert (answer.code, answer.tables, set(answer.milliseconds)) == (0, ROWS, {"check"})
    answer = server.compress(compression, "database.sql")
    assert (answer.code, set(answer.milliseconds)) == (0, {"compress"})
    suffix, program = (".gz", "gzip") if compression == "gzip" else (".zst", "zstd")
    packed = server.work / f"database.sql{suffix}"
    unpacked = subprocess.run([program, "-dc", packed], capture_output=True, check=True).stdout
    assert unpacked.decode() == DUMP


def write_two_dumps(server: Server) -> None:
    rows = DUMP[DUMP.index("INSERT INTO `torrents`") : DUMP.index("CREATE TABLE `whitelist`")]
    (server.work / "database.sql").write_text(DUMP.replace(rows, ""))
    (server.work / "torrents.sql").write_text(TORRENTS)


def test_two_dumps_are_counted_together_and_both_compressed(server: Server) -> None:
    write_two_dumps(server)
    answer = server.examine("exclude-statistics", "mysql")
    assert (answer.code, answer.tables) == (0, ROWS | {"torrents": 2})
    assert server.compress("gzip", "database.sql", "torrents.sql").code == 0
    assert (server.work / "database.sql.gz").exists()
    assert (server.work / "torrents.sql.gz").exists()


@pytest.mark.parametrize("lines", [0, 10, 26])
def test_a_dump_that_is_cut_off_fails(server: Server, lines: int) -> None:
    (server.work / "database.sql").write_text("".join(DUMP.splitlines(True)[:lines]))
    assert "cut off" in server.examine(driver="mysql").reason


def test_a_second_dump_that_is_cut_off_fails(server: Server) -> None:
    write_two_dumps(server)
    (server.work / "torrents.sql").write_text(TORRENTS[: TORRENTS.index("-- Dump")])
    assert "cut off" in server.examine("exclude-statistics", "mysql").reason


def test_a_dump_that_is_a_link_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "dump.sql").write_text(DUMP)
    (server.work / "database.sql").symlink_to(tmp_path / "dump.sql")
    assert server.examine(driver="mysql").reason == (
        "database.sql is not a regular file of its own"
    )


class Pieces(io.BytesIO):
    """A stream that gives at most so many bytes a call, as a pipe does."""

    size = 1

    def read(self, _size: int | None = -1) -> bytes:
        return super().read(self.size)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100000])
def test_rows_are_counted_whatever_the_pieces_of_the_stream(server: Server, size: int) -> None:
    stream = Pieces(DUMP.encode())
    stream.size = size
    assert server.module("dumps").digest(stream) == ROWS


def dump_of(*statements: str) -> io.BytesIO:
    return io.BytesIO("\n".join([*statements, "-- Dump completed on x", ""]).encode())


def test_the_text_of_a_routine_is_not_counted(server: Server) -> None:
    stream = dump_of(
        "INSERT INTO `torrents` VALUES\n(1);",
        "DELIMITER ;;\n/*!50003 PROCEDURE p() BEGIN",
        "INSERT INTO `torrents` VALUES\n(2),\n(3);\nEND */ ;;\nDELIMITER ;",
        "(4)\nINSERT INTO `keys` VALUES\n(5),\n(6);",
        "/*!50001 CREATE VIEW `v` AS SELECT\n(1)*/;",
    )
    assert server.module("dumps").digest(stream) == {"torrents": 1, "keys": 2}


def test_names_with_line_ends_and_quotes_are_tables(server: Server) -> None:
    stream = dump_of(
        "CREATE TABLE `line\nend` (\n  `a` int\n);\nINSERT INTO `line\nend` VALUES\n(1),\n(2);",
        "CREATE TABLE `a``b` (\n  `a` int\n);\nINSERT INTO `a``b` (`x`, `y`) VALUES\n(1);",
        f"CREATE TABLE `{'雪' * 64}` (\n  `a` int\n);",
        "CREATE TABLE `x` VALUES` (\n  `a` int\n);",
    )
    assert server.module("dumps").digest(stream) == {
        "line end": 2,
        "a`b": 1,
        "雪" * 64: 0,
    }


def test_p22_with_named_columns_the_first_row_is_on_the_same_line(server: Server) -> None:
    """mariadb-dump names them where a table has an invisible column."""
    stream = dump_of(
        "CREATE TABLE `i` (\n);\nINSERT INTO `i` (`a`, `b)`) VALUES (1,') VALUES\\n'),",
        "(2,3);\nINSERT INTO `i` (`a`, `b)`) VALUES (1,2);",
    )
    assert server.module("dumps").digest(stream) == {"i": 3}


def test_long_rows_are_counted_once(server: Server) -> None:
    long = "(" * 3_000_000
    stream = dump_of(f"INSERT INTO `t` VALUES\n(1,'{long}'),\n(2,'{long}'),\n(3);")
    assert server.module("dumps").digest(stream) == {"t": 3}


def test_more_tables_than_an_answer_may_have_fail_a_dump(server: Server) -> None:
    stream = dump_of(*(f"CREATE TABLE `t{n}` (\n);" for n in range(1001)))
    with pytest.raises(server.module("service").StepFailed, match="more than 1000 tables"):
        server.module("dumps").digest(stream)


def test_a_line_without_end_takes_no_memory(server: Server) -> None:
    program = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]);"
        "from tracker_backup.worker import dumps\n"
        "try: dumps.digest(open(0, 'rb', buffering=0))\n"
        "except dumps.StepFailed as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    template = Path(server.package.__path__[0]).parent
    for start in ("INSERT INTO `t` VALUES\n(1,", "-- ", "CREATE TABLE `"):
        source = f"printf '%s' '{start}'; head -c 300000000 /dev/zero"
        command = f'{{ {source}; }} | python3 -I -B -c "$1" "$2"'
        done = subprocess.run(
            ["bash", "-c", command, "x", program, template], capture_output=True, check=True
        )
        reason, kibibytes = done.stdout.decode().splitlines()
        assert "cut off" in reason
        assert int(kibibytes) < 60000
