"""Cases from public reports about servers and their dumps, on a real MySQL; each test names its
case. R is an attack of a hostile server, event or dump.
"""

from __future__ import annotations

import json
import shlex
import time

import pytest

from e2e.deployment import DESTINATION, Deployment
from e2e.stack import DATABASE, DATABASE_USER, DEPLOY_DIR, mysql
from e2e.test_reports import tool

pytestmark = pytest.mark.only("mysql")

NAME = DATABASE["mysql"]
TOML = f"{DEPLOY_DIR}/storage/tracker/etc/tracker.toml"
RESTORE = ("restore", "latest", "--only", "database", "--confirm")
# What MySQL has and MariaDB's dump program does not know, and what is odd in other ways.
SCHEMA = r"""
ALTER DATABASE CHARACTER SET latin1 COLLATE latin1_german1_ci;
CREATE TABLE `odd generated` (a INT, v INT GENERATED ALWAYS AS (a+1) VIRTUAL, t TEXT,
    s VARCHAR(40) GENERATED ALWAYS AS (concat(t,'x,''y')) STORED, b BLOB, KEY (v))
    CHARACTER SET utf8mb4;
INSERT INTO `odd generated` (a,t,b)
    VALUES (1,'it''s, (a) \\',x'00ff0a27'),(2,'),\n(3,''x''',NULL),(NULL,NULL,'');
CREATE TABLE odd_hidden (id INT PRIMARY KEY, secret INT INVISIBLE DEFAULT 7,
    g INT GENERATED ALWAYS AS (id*2) STORED INVISIBLE, CHECK (id > 0),
    CONSTRAINT c2 CHECK (secret < 100) NOT ENFORCED);
INSERT INTO odd_hidden (id, secret) VALUES (1,2),(3,4);
CREATE TABLE odd_invisible (id INT PRIMARY KEY, secret INT INVISIBLE DEFAULT 7);
INSERT INTO odd_invisible (id, secret) VALUES (1,2),(3,4);
CREATE TABLE odd_parts (id INT NOT NULL, y INT NOT NULL, PRIMARY KEY (id,y)) PARTITION BY RANGE (y)
    (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN MAXVALUE);
INSERT INTO odd_parts VALUES (1,1),(2,20);
CREATE TABLE odd_index (a VARCHAR(20), j JSON, KEY f ((lower(a))));
INSERT INTO odd_index VALUES ('Ab', '{"tags":[1,2],"x":"q\\"uote\\n"}');
CREATE TABLE odd_bits (b BIT(9), bi BINARY(4), vb VARBINARY(9), e ENUM('a','b,c'),
    d DECIMAL(10,3), f DOUBLE, ti TIME(6), ts TIMESTAMP(6) NULL);
INSERT INTO odd_bits VALUES (b'101010101', x'00ff0a00', x'27', 'b,c', -1.5, 1e-300,
    '-838:59:59', '2026-01-02 03:04:05.678901');
CREATE TABLE odd_places (id INT PRIMARY KEY, p POINT NOT NULL SRID 4326, SPATIAL INDEX(p));
INSERT INTO odd_places VALUES (1, ST_GeomFromText('POINT(10 20)', 4326));
SET sql_mode='';
CREATE TABLE odd_dates (d DATE DEFAULT '0000-00-00', dt DATETIME NOT NULL
    DEFAULT '0000-00-00 00:00:00', id INT AUTO_INCREMENT PRIMARY KEY);
SET sql_mode='NO_AUTO_VALUE_ON_ZERO';
INSERT INTO odd_dates VALUES ('2026-00-00','0000-00-00 00:00:00',0);
SET sql_mode=DEFAULT;
CREATE TABLE `odd\	tab` (x INT); INSERT INTO `odd\	tab` VALUES (5);
CREATE VIEW odd_v2 AS SELECT a FROM `odd generated`;
CREATE VIEW odd_v1 AS SELECT * FROM odd_v2;
DELIMITER ;;
CREATE TRIGGER odd_trigger BEFORE INSERT ON odd_parts FOR EACH ROW SET NEW.y = NEW.y + 0;;
CREATE PROCEDURE odd_procedure() BEGIN
/*
CREATE TABLE `looks` (
INSERT INTO `whitelist` VALUES
(1,'x'),
(2,'y');
*/ SELECT 1; END;;
CREATE FUNCTION odd_function(x INT) RETURNS INT DETERMINISTIC RETURN x+1;;
CREATE EVENT odd_event ON SCHEDULE EVERY 1 YEAR DO DELETE FROM whitelist WHERE id > 1000;;
DELIMITER ;
"""
TABLES = (
    *("odd generated", "odd_hidden", "odd_invisible", "odd_parts", "odd_index", "odd_bits"),
    *("odd_places", "odd_dates", "odd\\\ttab"),
)
GONE = "".join(f"DROP TABLE IF EXISTS `{name}`;" for name in TABLES)
GONE += (
    "DROP VIEW IF EXISTS odd_v1, odd_v2; DROP PROCEDURE IF EXISTS odd_procedure; DROP FUNCTION IF "
    "EXISTS odd_function; DROP EVENT IF EXISTS odd_event;"
    "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_ai_ci;"
)
STATE = "".join(f"CHECKSUM TABLE `{name}`;" for name in TABLES) + (
    "SELECT * FROM `odd generated`; SELECT id, secret, g FROM odd_hidden; SELECT * FROM odd_v1;"
    "SELECT default_collation_name FROM information_schema.schemata WHERE schema_name = database();"
    "SELECT routine_name, definer FROM information_schema.routines WHERE routine_schema = "
    "database() ORDER BY 1; SELECT trigger_name, definer FROM information_schema.triggers WHERE "
    "trigger_schema = database(); SELECT event_name, definer FROM information_schema.events;"
)


def test_p22_p25_p26_what_mysql_has_is_dumped_so_that_it_can_be_imported(
    deployment: Deployment,
) -> None:
    host = deployment.host
    mysql(host, f"GRANT SHOW_ROUTINE ON *.* TO {DATABASE_USER}@'%'")
    deployment.query(SCHEMA)
    try:
        before = deployment.query(STATE)
        deployment.run().succeeded()
        rows = deployment.last_run()["tables"]
        assert {name: rows[name] for name in ("odd generated", "odd_hidden", "odd_invisible")} == {
            "odd generated": 3,
            "odd_hidden": 2,
            "odd_invisible": 2,
        }
        assert "looks" not in rows
        tool(host, "verify").succeeded()
        deployment.query(GONE)
        tool(host, *RESTORE).succeeded()
        assert deployment.query(STATE) == before
        # Going back to what the restore saved works, too: the same once more, from the same dump.
        tool(host, *RESTORE).succeeded()
        assert deployment.query(STATE) == before
        assert mysql(host, "SELECT user FROM mysql.user WHERE user LIKE 'tracker_backup%'") == ""
        assert mysql(host, "SELECT @@GLOBAL.log_bin_trust_function_creators") == "0\n"
    finally:
        deployment.query(GONE)
        deployment.run().succeeded()
        tool(host, "acknowledge").succeeded()


def test_p23_what_a_managed_server_requires_does_not_stop_a_restore(
    deployment: Deployment,
) -> None:
    host = deployment.host
    settings = ("sql_require_primary_key", "sql_generate_invisible_primary_key")
    try:
        for setting in settings:
            mysql(host, f"SET GLOBAL {setting} = ON")
            deployment.run().succeeded()
            tool(host, *RESTORE).succeeded()
            assert "tracker_backup_probe" not in deployment.query("SHOW TABLES")
    finally:
        for setting in settings:
            mysql(host, f"SET GLOBAL {setting} = OFF")


@pytest.mark.parametrize(
    ("spelling", "right"),
    [
        ("mysql://u:p@MYSQL:3306/{}?require_ssl=true", True),
        ("mysql://u:p%40@mysql/%74{}#x", True),
        ("mysql://u:p@mysql:3307/{}", False),
        ("mysql://u:p@[::1]:3306/{}", False),
    ],
)
def test_p24_an_address_is_compared_by_its_parts(
    deployment: Deployment, spelling: str, right: bool
) -> None:
    host, path = (
        deployment.host,
        spelling.format(NAME.removeprefix("t" if "%74" in spelling else "")),
    )
    host.sh(f"cp -p {TOML} /root/toml && sed -i 's|^path = .*|path = \"{path}\"|' {TOML}")
    try:
        done = deployment.run("--dry-run")
        assert (done.code == 0) is right, done.output
        assert right or "the tracker uses mysql" in done.output
    finally:
        host.sh(f"cat /root/toml >{TOML}; rm /root/toml")


@pytest.mark.parametrize("server", ["mysql", "elsewhere"])
def test_p40_the_trackers_configuration_of_schema_3_is_read(
    deployment: Deployment, server: str
) -> None:
    host = deployment.host
    lines = f'host = "{server}"\\nport = 3306\\nuser = "u"\\npassword = "p"\\ndatabase = "{NAME}"'
    host.sh(
        f"cp -p {TOML} /root/toml && sed -i -e 's|^path = .*|{lines}|' "
        f"-e 's|schema_version = .*|schema_version = \"3.0.0\"|' {TOML}"
    )
    try:
        done = deployment.run("--dry-run")
        assert "what database the tracker uses cannot be read" not in done.output
        assert (done.code == 0) is (server == "mysql"), done.output
    finally:
        host.sh(f"cat /root/toml >{TOML}; rm /root/toml")


def test_r52_an_event_that_holds_a_lock_does_not_stop_a_restore(deployment: Deployment) -> None:
    host = deployment.host
    deployment.run().succeeded()
    deployment.query(
        "SET GLOBAL event_scheduler = ON;\nDELIMITER ;;\n"
        "CREATE EVENT hold ON SCHEDULE EVERY 1 SECOND DO BEGIN START TRANSACTION; "
        "SELECT count(*) INTO @n FROM whitelist FOR UPDATE; SELECT SLEEP(600) INTO @n; END;;\n"
    )
    try:
        began = time.monotonic()
        tool(host, *RESTORE).succeeded()
        assert time.monotonic() - began < 180
    finally:
        deployment.query("DROP EVENT IF EXISTS hold")
        asleep = (
            "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(600)%'"
        )
        for process in deployment.query(asleep).split():
            deployment.query(f"KILL {process}")


TAMPER = """
import gzip, hashlib, json, sys
manifest = json.load(open(sys.argv[1]))
for file in manifest["files"]:
    if file["kind"] == "database":
        path = sys.argv[2] + "/" + file["path"]
        dump = gzip.open(path).read().replace(b"\\n-- Dump completed", sys.argv[3].encode())
        open(path, "wb").write(gzip.compress(dump))
        data = open(path, "rb").read()
        file["sha256"], file["bytes"] = hashlib.sha256(data).hexdigest(), len(data)
json.dump(manifest, open(sys.argv[1], "w"))
"""


def test_r28_a_dump_reaches_no_other_database(deployment: Deployment) -> None:
    host = deployment.host
    mysql(host, "CREATE DATABASE another; CREATE TABLE another.kept (a INT);")
    try:
        deployment.run().succeeded()
        run = deployment.last_run()
        evil = "\nDROP TABLE another.kept;\n-- Dump completed"
        command = ["python3", "-c", TAMPER, f"{DESTINATION}/runs/{run['id']}.json", DESTINATION]
        host.sh(shlex.join([*command, evil]))
        deployment.query("REPLACE INTO whitelist (info_hash) VALUES ('still here')")
        refused = tool(host, *RESTORE)
        assert refused.code == 1, refused.output
        assert "denied" in refused.output
        assert "rolled back" in refused.output
        assert mysql(host, "SHOW TABLES", "another") == "kept\n"
        assert "still here" in deployment.query("SELECT info_hash FROM whitelist")
        assert mysql(host, "SELECT user FROM mysql.user WHERE user LIKE 'tracker_backup%'") == ""
        host.run("rm", f"{DESTINATION}/runs/{run['id']}.json")
    finally:
        mysql(host, "DROP DATABASE another")
        deployment.query("DELETE FROM whitelist WHERE info_hash = 'still here'")
    assert json.loads(host.run("tracker-backup", "list", "--json").stdout)[-1]["id"] != run["id"]
