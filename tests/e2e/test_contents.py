"""A backup is proved by restoring it: the published files equal what they were made from."""

from __future__ import annotations

import re

import pytest

from e2e.deployment import Deployment, Run
from e2e.host import wait_until
from e2e.stack import DATABASE, DEPLOY_DIR, mysql, sqlite

REQUIRED = {
    ".env": "-rw-r----- 1000/1000",
    "docker-compose.yml": "-rw-r----- 1000/1000",
    "storage/tracker/etc/tracker.toml": "-rwxrws--- 1000/1000",
    "storage/tracker/lib/": "drwxrws--- 1000/1000",
    "storage/tracker/log/": "drwxrws--- 1000/1000",
}
OF_SERVICES = {
    "sqlite3": {
        "storage/prometheus/etc/prometheus.yml": "-rw-r--r-- 1000/1000",
        "storage/grafana/data/": "drwxr-xr-x 472/472",
        "storage/grafana/data/grafana.db": "-rw-r--r-- 472/0",
        "storage/grafana/provisioning/datasources/prometheus.yml": "-rw-r--r-- 1000/1000",
        "storage/caddy/etc/Caddyfile": "-rw-r--r-- 1000/1000",
        "storage/caddy/data/caddy/pki/authorities/local/root.key": "-rw------- 0/0",
        "storage/caddy/config/": "drwxr-xr-x 0/0",
    },
    "mysql": {"storage/mysql/data/": "drwxr-xr-x 999/999"},
}


def _publish_announces(deployment: Deployment) -> None:
    """Lets the tracker write torrents of its own into its database."""
    before = int(deployment.query("SELECT count(*) FROM torrents;"))
    with deployment.load() as (http, _):
        wait_until("forty answered announces", lambda: http.answered >= 40, 60)
    wait_until(
        "the tracker to save torrents",
        lambda: int(deployment.query("SELECT count(*) FROM torrents;")) > before,
        30,
    )


def _new_run(deployment: Deployment, *options: str) -> Run:
    done = deployment.run(*options).succeeded()
    run = deployment.last_run()
    assert run["id"] in done.output
    return run


def _good_run(deployment: Deployment) -> Run:
    return next(run for run in reversed(deployment.runs()) if run["result"] == "success")


@pytest.mark.only("sqlite3")
def test_the_sqlite_backup_equals_the_live_database(deployment: Deployment) -> None:
    _publish_announces(deployment)
    deployment.query(
        "INSERT INTO whitelist (info_hash) VALUES ('0123456789abcdef0123456789abcdef01234567');"
    )
    run = _new_run(deployment)
    with deployment.scratch() as scratch:
        copy = f"{scratch}/restored.db"
        deployment.host.sh(f"gunzip --stdout {deployment.file(run, 'database')} >{copy}")
        assert sqlite(deployment.host, copy, "PRAGMA integrity_check;").strip() == "ok"
        rows = "".join(
            f"SELECT * FROM {table} ORDER BY 1;" for table in ("torrents", "whitelist", "keys")
        )
        restored = sqlite(deployment.host, copy, rows)
        counted = int(sqlite(deployment.host, copy, "SELECT count(*) FROM torrents;"))
    assert restored == deployment.query(rows)
    assert "0123456789abcdef0123456789abcdef01234567" in restored
    assert run["tables"]["torrents"] == counted > 0
    assert run["tables"].keys() >= {"torrents", "whitelist", "keys"}


@pytest.mark.only("mysql")
def test_the_mysql_dump_imports_into_the_same_server_and_equals_the_live_database(
    deployment: Deployment,
) -> None:
    _publish_announces(deployment)
    live, scratch = DATABASE["mysql"], "scratch"
    deployment.query(_HARD_TO_DUMP)
    try:
        run = _new_run(deployment)
        mysql(deployment.host, f"CREATE DATABASE {scratch};")
        # From the second line on: the first one is an instruction to MariaDB's client.
        importing = (
            f'exec mysql --user=root --password="$MYSQL_ROOT_PASSWORD" --binary-mode {scratch}'
        )
        deployment.host.sh(
            f"zcat {deployment.file(run, 'database')} | tail -n +2"
            f" | docker exec -i mysql sh -c '{importing}'"
        )
        tables = deployment.query(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = database() AND table_type = 'BASE TABLE';"
        ).split()
        assert set(tables) >= {"torrents", "whitelist", "keys", "hard"}
        for table in tables:
            original, copy = (
                mysql(deployment.host, f"CHECKSUM TABLE {schema}.`{table}`;").split()[1]
                for schema in (live, scratch)
            )
            assert copy == original != "NULL", table
            assert run["tables"][table] == int(
                mysql(deployment.host, f"SELECT count(*) FROM {scratch}.`{table}`;")
            )
        assert run["tables"]["torrents"] > 0
        made = (
            "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = '{0}'"
            " UNION SELECT table_name FROM information_schema.views WHERE table_schema = '{0}'"
            " UNION SELECT event_name FROM information_schema.events WHERE event_schema = '{0}';"
        )
        assert set(mysql(deployment.host, made.format(scratch)).split()) == {
            "hard_trigger",
            "hard_view",
            "hard_event",
        }
    finally:
        mysql(deployment.host, f"DROP DATABASE IF EXISTS {scratch};")


def test_the_archive_holds_the_configuration_with_owners_and_modes(deployment: Deployment) -> None:
    run = _good_run(deployment)
    listed = deployment.host.sh(
        "tar --list --verbose --numeric-owner --auto-compress"
        f" --file {deployment.file(run, 'config')}"
    )
    members = {}
    for line in listed.splitlines():
        mode, owner, _size, _day, _time, name = line.split(maxsplit=5)
        members[name] = f"{mode} {owner}"
    required = REQUIRED | OF_SERVICES[deployment.stack.driver]
    assert {name: members.get(name) for name in required} == required
    assert not [name for name in members if name.startswith(("/", "..")) or "/secrets/" in name]
    for name, seen in members.items():
        assert (
            deployment.host.run("stat", "--format=%A %u/%g", f"{DEPLOY_DIR}/{name}").stdout.strip()
            == seen
        ), name


def test_the_archive_holds_the_files_as_they_are(deployment: Deployment) -> None:
    run = _good_run(deployment)
    with deployment.scratch() as scratch:
        deployment.host.run(
            "tar", "--extract", "--file", deployment.file(run, "config"), "--directory", scratch
        )
        for name in (".env", "docker-compose.yml", "storage/tracker/etc"):
            deployment.host.run("diff", "--recursive", f"{DEPLOY_DIR}/{name}", f"{scratch}/{name}")
        if "grafana" in deployment.stack.services:
            database = f"{scratch}/storage/grafana/data/grafana.db"
            assert sqlite(deployment.host, database, "PRAGMA integrity_check;").strip() == "ok"
            assert (
                sqlite(
                    deployment.host,
                    database,
                    "SELECT name FROM sqlite_master WHERE name = 'dashboard';",
                ).strip()
                == "dashboard"
            )


def test_the_run_manifest_tells_size_and_digest_of_every_file(deployment: Deployment) -> None:
    run = _good_run(deployment)
    for file in run["files"]:
        path = f"/opt/torrust/storage/backup/{file['path']}"
        assert deployment.host.run("sha256sum", path).stdout.split()[0] == file["sha256"]
        assert int(deployment.host.run("stat", "--format=%s", path).stdout) == file["bytes"]
        assert re.fullmatch(rf"(\w+)/\1_{run['id']}\.(db|sql|tar)\.gz", file["path"])


_HARD_TO_DUMP = """
    CREATE TABLE IF NOT EXISTS hard
        (id INT PRIMARY KEY, text_value TEXT, bytes BLOB, moment DATETIME(6), number DOUBLE);
    REPLACE INTO hard VALUES
        (1, 'quotes '' " ` and back\\\\slash; newline\\n tab\\t ñ雪🐢', x'00ff27225c0a0d1a',
            '2024-02-29 23:59:59.999999', 0.1),
        (2, NULL, NULL, NULL, NULL),
        (3, 'looks like the end\\n-- Dump completed on 2020-01-01', '', '1999-12-31', -1e300);
    CREATE OR REPLACE VIEW hard_view AS SELECT id, text_value FROM hard;
    DROP TRIGGER IF EXISTS hard_trigger;
    CREATE TRIGGER hard_trigger BEFORE UPDATE ON hard FOR EACH ROW SET NEW.number = OLD.number;
    DROP EVENT IF EXISTS hard_event;
    CREATE EVENT hard_event ON SCHEDULE EVERY 1 YEAR DO DELETE FROM hard WHERE id > 1000;
"""
