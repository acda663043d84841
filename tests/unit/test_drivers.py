"""The database drivers on the host: a server can answer anything, and an import can fail."""

from __future__ import annotations

import importlib
import os
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from unit import worker
from unit.sandbox import Sandbox

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def mysql(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a Docker in which every program is the script $SERVER; $STATEMENT has the statements."""
    docker = '#!/usr/bin/env bash\n[[ $* != *--batch* ]] || { IFS= read -rd "" STATEMENT; '
    docker += 'export STATEMENT; }; exec bash -c "$SERVER" server "$@"\n'
    worker.program(tmp_path / "bin/docker", docker)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found: ModuleType = importlib.import_module(f"{tool.__name__}.drivers.mysql_server")
    return found


def server(mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, script: str) -> SimpleNamespace:
    monkeypatch.setenv("SERVER", script)
    made: SimpleNamespace = mysql.Server("c", ("mysql",), ("mysqldump",), "torrust")
    return made


# ---------------------------------------------------------------- a hostile server


@pytest.mark.parametrize(
    "answer",
    ["", "-1", "1e3", "٣", "9999999999999999999", "1\n2", "PATH[$(id)0]", "1\x1b[2J"],
)
def test_what_is_no_number_of_rows_is_refused(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setenv("ANSWER", answer)
    asked = server(mysql, monkeypatch, 'printf "%s\\n" "$ANSWER"')
    with pytest.raises(mysql.Refused, match="instead of a number"):
        mysql.number(asked.ask("SELECT 1"))


def test_a_servers_message_is_printable_and_short(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = server(mysql, monkeypatch, "printf 'ERROR \\033[2J%05000d' 7 >&2; exit 1")
    with pytest.raises(mysql.Refused) as refused:
        asked.ask("SELECT 1")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) <= 400


def test_rows_without_end_are_refused(mysql: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = server(mysql, monkeypatch, "exec cat /dev/zero")
    with pytest.raises(mysql.Refused, match="printed too much"):
        asked.count_rows()


def test_a_dump_without_end_leaves_the_reserve(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    room = 3 << 20
    usage = Usage(0, 0, mysql.RESERVE_BYTES + room)
    monkeypatch.setattr(mysql.shutil, "disk_usage", lambda _: usage)
    asked = server(mysql, monkeypatch, "exec cat /dev/zero")
    with pytest.raises(mysql.Refused, match="printed too much"):
        asked.save(tmp_path / "before.sql")
    assert (tmp_path / "before.sql").stat().st_size <= room


def test_a_dump_that_fails_is_refused(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = server(mysql, monkeypatch, "[[ ${STATEMENT-} ]] || { echo no >&2; exit 2; }")
    with pytest.raises(mysql.Refused, match="could not be saved first: no"):
        asked.save(tmp_path / "before.sql")


def test_the_first_line_of_a_dump_is_left_out_and_the_rest_imported(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.sql").write_text("/*M!999999\\- enable the sandbox mode */ \nfirst\n")
    (tmp_path / "b.sql").write_text("second\n")
    server(mysql, monkeypatch, f"cat >>{tmp_path}/loaded").load(
        tmp_path / "a.sql", tmp_path / "b.sql"
    )
    assert (tmp_path / "loaded").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_only_a_regular_file_is_imported(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planted: str
) -> None:
    dump = tmp_path / "database.sql"
    if planted == "link":
        dump.symlink_to("/etc/passwd")
    else:
        os.mkfifo(dump)
    with pytest.raises((mysql.Refused, OSError)):
        server(mysql, monkeypatch, f"cat >{tmp_path}/loaded").load(dump)
    assert not (tmp_path / "loaded").exists()


def test_before_a_database_is_dropped_its_events_are_disabled_and_its_connections_end(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An event of a hostile user can hold a lock on a table for ever."""
    script = f'echo "$STATEMENT" >>{tmp_path}/asked; case $STATEMENT in '
    script += "*events*) echo 686f6c64 ;; *processlist*) echo 9 ;; "
    script += "*character*) printf 'latin1\\tlatin1_bin\\n' ;; esac"
    server(mysql, monkeypatch, script).recreate()
    lines = filter(None, (tmp_path / "asked").read_text().splitlines())
    asked = [line.split(" FROM")[0].removesuffix(";") for line in lines]
    assert asked == [
        "SELECT default_character_set_name, default_collation_name",
        "SELECT hex(event_name)",
        "ALTER EVENT `torrust`.`hold` DISABLE",
        "SELECT id",
        "KILL 9",
        "DROP DATABASE IF EXISTS `torrust`",
        "CREATE DATABASE `torrust` CHARACTER SET latin1 COLLATE latin1_bin",
    ]


def test_what_is_no_number_of_a_connection_is_never_part_of_a_statement(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f'echo "$STATEMENT" >>{tmp_path}/asked; '
    script += 'case $STATEMENT in *processlist*) printf "7\\n8; DROP\\n" ;; esac'
    with pytest.raises(mysql.Refused, match="instead of a number"):
        server(mysql, monkeypatch, script).end_connections()
    assert "KILL" not in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("name", ["a\\b", "tab\tnew\nline", "q`uote'", "delimiter x"])
def test_rows_are_counted_by_one_call_whatever_the_names(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    script = f"printf 'x\\n' >>{tmp_path}/calls; case $STATEMENT in *information_schema*) "
    script += f"echo {name.encode().hex()}; echo 61 ;; *) printf '3\\n4\\n' ;; esac"
    asked = server(mysql, monkeypatch, script)
    shown = "".join(one if one.isprintable() else " " for one in name)
    assert asked.count_rows() == {shown: 3, "a": 4}
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    answers = script.replace("3\\n4", "3")
    with pytest.raises(mysql.Refused, match="1 numbers for 2 tables"):
        server(mysql, monkeypatch, answers).count_rows()


IMPORTED = """
echo "${STATEMENT-}" >>"$HERE/asked"
case ${STATEMENT-$*} in
    *schemata*NOT?IN*) echo "${OTHERS-0}" ;;
    *SYSTEM_USER*count*|*count*SYSTEM_USER*) echo "${ADMINISTRATORS-0}" ;;
    *"REGEXP"*) echo tracker_backup_import_0123456789 ;;
    *partial_revokes*) echo 0 ;;
    *"CREATE USER"*) exit "${REFUSED-0}" ;;
    *"SELECT @@GLOBAL.log_bin_trust"*) echo 0 ;;
    *mktemp*) cat >"$HERE/option"; echo /tmp/option ;;
    *"--binary-mode tor_rust") cat >"$HERE/loaded" ;;
esac
"""


def imported(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **answers: str
) -> str:
    """What the server was asked while a dump was imported."""
    monkeypatch.setenv("HERE", str(tmp_path))
    for key, value in answers.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("SERVER", IMPORTED)
    (tmp_path / "a.sql").write_text("DROP DATABASE another;\n")
    client = ("mysql", "--defaults-extra-file=/tmp/root")
    asked = mysql.Server("c", client, ("mysqldump",), "tor_rust")
    with asked.importer() as limited:
        limited.load(tmp_path / "a.sql")
    assert (tmp_path / "loaded").read_text() == "DROP DATABASE another;\n"
    return (tmp_path / "asked").read_text()


def test_a_dump_is_imported_by_a_user_of_the_one_database(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = imported(mysql, monkeypatch, tmp_path, OTHERS="1")
    option = (tmp_path / "option").read_text()
    assert option.startswith("!include /tmp/root\n[client]\nuser=tracker_backup_import_")
    user = option.split("user=")[1].split()[0]
    assert f"GRANT ALL ON `tor\\_rust`.* TO '{user}'@'%'" in asked
    assert f"GRANT SET_ANY_DEFINER ON *.* TO '{user}'@'%'" in asked
    assert "GRANT SYSTEM_USER" not in asked
    assert "DROP USER 'tracker_backup_import_0123456789'@'%'" in asked  # of a killed import
    end = asked[asked.index("log_bin_trust_function_creators = 1") :]
    assert "log_bin_trust_function_creators = 0" in end
    assert f"DROP USER '{user}'@'%'" in end


@pytest.mark.parametrize("answers", [{"OTHERS": "0"}, {"OTHERS": "2", "ADMINISTRATORS": "1"}])
def test_an_administrators_objects_are_imported_where_they_can_harm_nobody_else(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: dict[str, str]
) -> None:
    assert "GRANT SYSTEM_USER ON *.* TO" in imported(mysql, monkeypatch, tmp_path, **answers)


def test_where_no_user_can_be_made_the_present_one_imports(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = imported(mysql, monkeypatch, tmp_path, REFUSED="1")
    assert "GRANT SET_ANY_DEFINER" not in asked
    assert not (tmp_path / "option").exists()


# ---------------------------------------------------------------- what the tracker uses


@pytest.mark.parametrize(
    "path",
    [
        "mysql://user:p@ss@mysql/torrust",
        "mysql://user:p%40ss@MySQL:3306/torrust",
        "mysql://user@mysql:3306/torrust?require_ssl=true&x=/y",
        "mysql://u:p@mysql./torrust",
        "mysql://u:p@mysql/%74orrust#x",
    ],
)
def test_p24_a_url_is_compared_by_its_parts(tool: ModuleType, path: str) -> None:
    mysql = tool.drivers.DRIVERS["mysql"]
    settings = {"DB_HOST": "mysql", "DB_PORT": "3306", "DB_NAME": "torrust"}
    assert mysql.expected(settings) == mysql.uses({"path": path})
    for other in ("mysql://u:p@mysql:3307/torrust", "mysql://u:p@mysql/Torrust", "mysql://[::1/x"):
        assert mysql.expected(settings) != mysql.uses({"path": other})


@pytest.mark.parametrize("host", ["2001:db8::a", "[2001:DB8::A]", "2001:db8:0:0:0:0:0:a"])
def test_p24_an_ipv6_literal_has_many_spellings(tool: ModuleType, host: str) -> None:
    mysql = tool.drivers.DRIVERS["mysql"]
    settings = {"DB_HOST": host, "DB_PORT": "3307", "DB_NAME": "torrust"}
    assert mysql.expected(settings) == mysql.uses(
        {"path": "mysql://u:p@[2001:db8::A]:3307/torrust"}
    )


def test_p40_both_schemas_of_the_tracker_are_compared(tool: ModuleType) -> None:
    drivers = tool.drivers
    sqlite, mysql = (drivers.DRIVERS[name] for name in ("sqlite", "mysql"))
    assert sqlite.expected({"DB_PATH": "/data/storage/x.db"}) == sqlite.uses(
        {"path": "/var/lib/x.db"}
    )
    settings = {"DB_HOST": "mysql", "DB_PORT": "3306", "DB_NAME": "torrust"}
    schema_3 = {"host": "mysql", "database": "torrust"}
    assert mysql.expected(settings) == mysql.uses(schema_3)
    assert mysql.expected(settings) != mysql.uses(schema_3 | {"port": "3307"})
    assert mysql.uses({}) == sqlite.uses({}) == ""
    assert drivers.used_database({"driver": "postgresql", "path": "/x/y"}) == "y"


# ---------------------------------------------------------------- roll-back


@pytest.mark.parametrize("broken", [{"undo_import"}, {"undo_swap"}, {"undo_import", "undo_swap"}])
def test_a_part_that_cannot_be_rolled_back_does_not_keep_the_other(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, broken: set[str]
) -> None:
    done = []

    def part(name: str) -> None:
        if name in broken:
            raise tool.host.Refused(f"{name} failed")
        done.append(name)

    for name in ("undo_swap", "undo_import"):
        monkeypatch.setattr(tool.restore, name, lambda *_, name=name: part(name))
    with pytest.raises(tool.host.Refused) as refused:
        tool.restore.undo_both(None, None)
    assert set(done) == {"undo_swap", "undo_import"} - broken
    assert all(f"{name} failed" in str(refused.value) for name in broken)


# ---------------------------------------------------------------- connecting


def test_a_secret_that_is_not_there_ends_with_2_and_is_named(host: Sandbox) -> None:
    package = host.package
    settings = package.host.Host.read(host.config)
    assert package.drivers.driver_of(settings).arguments(settings)["password"] == "pass"
    (host.secrets / "db_password").unlink()
    with pytest.raises(package.host.Refused, match="db_password cannot be read") as refused:
        package.drivers.driver_of(settings).arguments(settings)
    assert refused.value.code == 2
