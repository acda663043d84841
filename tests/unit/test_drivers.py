"""The database drivers on the host: a server can answer anything, and an import can fail."""

from __future__ import annotations

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
    """With a Docker in which every program is the script $SERVER; $STATEMENT is the last word."""
    docker = '#!/usr/bin/env bash\nSTATEMENT=${@: -1} exec bash -c "$SERVER"\n'
    worker.program(tmp_path / "bin/docker", docker)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found: ModuleType = tool.drivers.mysql
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
    asked = server(mysql, monkeypatch, "echo no >&2; exit 2")
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
    script += "*events*) echo 686f6c64 ;; *processlist*) echo 9 ;; esac"
    server(mysql, monkeypatch, script).recreate()
    asked = [line.split(" FROM")[0] for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == [
        "SELECT hex(event_name)",
        "ALTER EVENT `torrust`.`hold` DISABLE",
        "SELECT id",
        "KILL 9",
        "DROP DATABASE IF EXISTS `torrust`",
        "CREATE DATABASE `torrust`",
    ]


def test_a_connection_is_killed_by_its_number_alone(
    mysql: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f'echo "$STATEMENT" >>{tmp_path}/asked; '
    script += '[[ $STATEMENT == KILL* ]] || printf "7\\n8; DROP\\n"'
    server(mysql, monkeypatch, script).end_connections()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if "KILL" in line] == ["KILL 7"]


# ---------------------------------------------------------------- what the tracker uses


def test_each_driver_compares_databases_in_the_words_of_the_tracker(tool: ModuleType) -> None:
    sqlite, mysql = (tool.drivers.DRIVERS[name] for name in ("sqlite", "mysql"))
    assert sqlite.expected({"DB_PATH": "/data/storage/x.db"}) == sqlite.uses("/var/lib/x.db")
    settings = {"DB_HOST": "mysql", "DB_PORT": "3306", "DB_NAME": "torrust"}
    assert mysql.expected(settings) == mysql.uses("mysql://user:p@ss@mysql/torrust")
    assert tool.drivers.used_database("postgresql", "/x/y") == "y"


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
