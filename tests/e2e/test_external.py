"""A MySQL server elsewhere, with and without a verified certificate; a user with no more rights
than a dump takes; a routine of somebody else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.bundle import Bundle, Outcome, ssh_key
from e2e.deployment import Deployment, Run
from e2e.faults import STATE
from e2e.host import Host, wait_until
from e2e.stack import (
    DATABASE,
    DATABASE_USER,
    HOSTILE_PASSWORD,
    ROOT_PASSWORD,
    Stack,
    compose,
    mysql,
    wait_for_tracker,
)

SERVER = "db.tracker.example"
STACK = Stack("mysql", server=SERVER)
TLS = "/root/tls"
AUTHORITY, ANOTHER_AUTHORITY = f"{TLS}/ca.pem", f"{TLS}/another.pem"
ROW = "e" * 40

# No PROCESS, no SHOW_ROUTINE: what a dump of one's own tables takes, and only encrypted.
RIGHTS = "SELECT, LOCK TABLES, SHOW VIEW, TRIGGER, EVENT"
USER, PASSWORD = "backup_user", 'backup\'s own "pass\\word"'
SQL_PASSWORD = "'" + PASSWORD.replace("\\", "\\\\").replace("'", "\\'") + "'"

_CERTIFICATES = f"""
mkdir {TLS} && cd {TLS}
for name in ca another; do
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=$name" \
        -keyout $name.key -out $name.pem
done
openssl req -newkey rsa:2048 -nodes -subj /CN={SERVER} -keyout server.key -out server.csr
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 30 -out server.pem -extfile <(
    printf 'subjectAltName=DNS:{SERVER}'
    gateway=$(docker network inspect bridge --format '{{{{(index .IPAM.Config 0).Gateway}}}}')
    printf ',IP:%s' "${{gateway%.*}}".{{2..30}}
)
chmod 0755 . && chown 999 server.key
"""

_SERVER = f"""
docker create --name mysql --env MYSQL_ROOT_PASSWORD --env MYSQL_DATABASE={DATABASE["mysql"]} \
    --volume {TLS}:/tls:ro mysql:8.4 \
    --ssl-ca=/tls/ca.pem --ssl-cert=/tls/server.pem --ssl-key=/tls/server.key >/dev/null
docker network connect --alias {SERVER} "$1" mysql
docker start mysql >/dev/null
"""


@pytest.fixture(scope="module")
def external(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A host whose stack has no MySQL; the server is a container that does not belong to the stack,
    and that the tracker's network reaches.
    """
    folder = tmp_path_factory.mktemp("external")
    key = ssh_key(folder)
    with Host(f"gen-backup-bundle-e2e-external-{os.getpid()}") as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        host.sh(_CERTIFICATES)
        STACK.lay_out(host)
        compose(host, "create")
        host.run(
            "env",
            f"MYSQL_ROOT_PASSWORD={ROOT_PASSWORD}",
            "bash",
            "-ec",
            _SERVER,
            "server",
            "torrust_default",
        )
        ready = (
            "docker exec mysql sh -c 'mysqladmin --host=127.0.0.1 --user=root "
            '--password="$MYSQL_ROOT_PASSWORD" ping\' 2>/dev/null'
        )
        wait_until("the server", lambda: "alive" in host.sh(ready, check=False), 120)
        grant_rights(host)
        compose(host, "up", "--detach", "--wait")
        wait_for_tracker(host)
        bundle = Bundle.generate(environment(key), folder / "bundle", host.address)
        installed = bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
        deployment = Deployment(host, STACK, bundle, key, frozenset(), installed, installed)
        # The backup's own network is there from the first run on.
        assert "Unknown" in failed(deployment)["reason"]
        host.run(
            "docker", "network", "connect", "--alias", SERVER, "torrust_backup_network", "mysql"
        )
        yield deployment


def grant_rights(host: Host) -> None:
    tracker = "'" + HOSTILE_PASSWORD.replace("\\", "\\\\").replace("'", "\\'") + "'"
    mysql(
        host,
        f"CREATE USER {DATABASE_USER}@'%' IDENTIFIED BY {tracker}; GRANT ALL ON "
        f"{DATABASE['mysql']}.* TO {DATABASE_USER}@'%';"
        f"CREATE USER {USER}@'%' IDENTIFIED BY {SQL_PASSWORD} REQUIRE SSL; GRANT {RIGHTS} ON "
        f"{DATABASE['mysql']}.* TO {USER}@'%';",
    )


def environment(key: Any, **backup: Any) -> dict[str, Any]:
    """The environment JSON, with a user of the backup's own."""
    described = STACK.environment(key, backup)
    described["tracker"]["core"]["database"] |= {"username": USER, "password": PASSWORD}
    return described


def install(deployment: Deployment, **backup: Any) -> None:
    """Another section `backup`, generated and installed again."""
    bundle = Bundle.generate(
        environment(deployment.key, **backup), deployment.bundle.directory, deployment.host.address
    )
    bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()


def failed(deployment: Deployment) -> Run:
    """The manifest of a run that has to fail, and publishes nothing."""
    done = deployment.run()
    assert done.code == 1, done.output
    run = deployment.last_run()
    assert (run["result"], run["files"]) == ("failed", [])
    return run


def dumped(deployment: Deployment) -> str:
    """The dump of a run that has to succeed, with a row written just before."""
    deployment.query(f"REPLACE INTO whitelist (info_hash) VALUES ('{ROW}');")
    deployment.run().succeeded()
    dump = deployment.host.sh(f"zcat {deployment.file(deployment.last_run(), 'database')}")
    assert ROW in dump
    return dump


def test_by_default_a_certificate_of_a_private_authority_is_refused(external: Deployment) -> None:
    install(external)
    assert "TLS/SSL error" in failed(external)["reason"]


def test_a_certificate_is_verified_by_the_authority_that_is_named(external: Deployment) -> None:
    install(external, database_tls={"ca_file": AUTHORITY})
    dumped(external)


def test_a_certificate_of_another_authority_is_refused(external: Deployment) -> None:
    install(external, database_tls={"ca_file": ANOTHER_AUTHORITY})
    assert "TLS/SSL error" in failed(external)["reason"]


def test_a_certificate_for_another_name_is_refused(external: Deployment) -> None:
    another = f"another.{SERVER}"
    install(external, database_tls={"ca_file": AUTHORITY})
    external.host.run("docker", "network", "disconnect", "torrust_backup_network", "mysql")
    external.host.run(
        "docker",
        "network",
        "connect",
        "--alias",
        SERVER,
        "--alias",
        another,
        "torrust_backup_network",
        "mysql",
    )
    toml = "/opt/torrust/storage/tracker/etc/tracker.toml"
    external.host.sh(f"cp -p {toml} /root/toml; sed -i 's/@{SERVER}:/@{another}:/' {toml}")
    try:
        with external.configured(DB_HOST=another):
            assert "TLS/SSL error" in failed(external)["reason"]
    finally:
        external.host.sh(f"cat /root/toml >{toml}")


def test_unverified_is_still_encrypted(external: Deployment) -> None:
    """The server refuses the user unless the connection is encrypted."""
    install(external, database_tls={"verify": False})
    dumped(external)


def test_a_routine_of_somebody_else_fails_the_run_by_its_name_until_it_may_be_read(
    external: Deployment,
) -> None:
    install(external, database_tls={"ca_file": AUTHORITY})
    mysql(external.host, "CREATE PROCEDURE of_somebody_else() SELECT 1;", DATABASE["mysql"])
    try:
        # The server does not even tell this user that there is one.
        assert "of_somebody_else" not in dumped(external)
        assert [
            warning
            for warning in external.last_run()["warnings"]
            if "may not see other users' routines" in warning
        ]
        mysql(external.host, f"GRANT EXECUTE ON {DATABASE['mysql']}.* TO {USER}@'%';")
        run = failed(external)
        assert "of_somebody_else" in run["reason"] and "SHOW CREATE PROCEDURE" in run["reason"], (
            run["reason"]
        )
        mysql(external.host, f"GRANT SHOW_ROUTINE ON *.* TO {USER}@'%';")
        assert "PROCEDURE `of_somebody_else`" in dumped(external)
        assert external.last_run()["warnings"] == []
    finally:
        mysql(
            external.host,
            f"REVOKE IF EXISTS EXECUTE ON {DATABASE['mysql']}.* FROM {USER}@'%';",
            DATABASE["mysql"],
        )
        mysql(
            external.host,
            f"REVOKE IF EXISTS SHOW_ROUTINE ON *.* FROM {USER}@'%'; DROP PROCEDURE "
            "of_somebody_else;",
            DATABASE["mysql"],
        )


def tool(deployment: Deployment, *words: str) -> Outcome:
    """One command of the operator's tool."""
    done = deployment.host.run("tracker-backup", *words, check=False, seconds=600)
    return Outcome(done.returncode, done.stdout + done.stderr)


def test_without_an_image_of_its_kind_a_run_is_not_verified(external: Deployment) -> None:
    install(external, database_tls={"ca_file": AUTHORITY})
    dumped(external)
    refused = tool(external, "verify")
    assert (
        refused.code == 1
        and "not verified: the database is on an external server" in refused.output
    ), refused.output
    assert json.loads(tool(external, "status", "--json").output)["last_verify"] is None
    unknown = external.bundle.playbook(
        "verify-backup", "-e", "verify_image=localhost:1/not/there:1"
    )
    assert (
        unknown.code != 0
        and "not verified: there is no image localhost:1/not/there:1" in unknown.output
    ), unknown.output
    verified = external.bundle.playbook("verify-backup", "-e", "verify_image=mysql:8.4").succeeded()
    assert "verified " in verified.output and "whitelist 1 rows" in verified.output


def test_restoring_wants_the_rights_before_it_stops_anything(external: Deployment) -> None:
    """The restoring container reaches servers that the host reaches, not those that only a network
    of Docker's knows: it is told the address.
    """
    install(external, database_tls={"ca_file": AUTHORITY})
    dumped(external)
    host, tracker = external.host, external.tracker()
    address = host.sh(
        "docker inspect --format '{{.NetworkSettings.Networks.bridge.IPAddress}}' mysql"
    ).strip()
    mysql(host, f"DELETE FROM {DATABASE['mysql']}.whitelist")
    with external.configured(DB_HOST=address):
        refused = tool(external, "restore", "latest", "--only", "database", "--confirm")
        assert refused.code == 1 and "may not be replaced by this user" in refused.output, (
            refused.output
        )
        assert external.tracker() == tracker
        assert not host.exists(f"{STATE}/restore.json")
        mysql(host, f"GRANT ALL ON {DATABASE['mysql']}.* TO {USER}@'%'")
        mysql(host, "CREATE PROCEDURE of_somebody_else() SELECT 1;", DATABASE["mysql"])
        try:
            refused = tool(external, "restore", "latest", "--only", "database", "--confirm")
            assert refused.code == 1 and "belong to somebody else" in refused.output, refused.output
            mysql(host, "DROP PROCEDURE of_somebody_else", DATABASE["mysql"])
            assert "tracker_backup_probe" not in external.query("SHOW TABLES")
            tool(external, "restore", "latest", "--only", "database", "--confirm").succeeded()
        finally:
            mysql(
                host,
                f"REVOKE ALL ON {DATABASE['mysql']}.* FROM {USER}@'%'; GRANT {RIGHTS} ON "
                f"{DATABASE['mysql']}.* TO {USER}@'%'",
            )
    wait_for_tracker(host)
    assert external.query("SELECT info_hash FROM whitelist").split() == [ROW]
