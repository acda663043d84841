"""The procedure of docs/operations.md, "Change a password": no step leaves a host whose backups
fail, and at the end the old password is worth nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from e2e.bundle import Bundle, Outcome, generator, ssh_key
from e2e.deployment import Deployment
from e2e.host import Host
from e2e.servers import DIRECTORY, PASSWORD, local
from e2e.stack import (
    DATABASE_USER,
    DEPLOY_DIR,
    HOSTILE_PASSWORD,
    ROOT_PASSWORD,
    Stack,
    compose,
    mysql,
    wait_for_tracker,
)

NEW = "a new password, l0ng: 'and' odd\\"
TOML = f"{DEPLOY_DIR}/storage/tracker/etc/tracker.toml"

pytestmark = pytest.mark.slow


@dataclass
class Rotated:
    """A deployment with MySQL and a restic repository, and the environment JSON behind it."""

    deployment: Deployment
    environment: dict[str, Any]

    @property
    def host(self) -> Host:
        return self.deployment.host

    def apply(self) -> None:
        """The new environment JSON: generate, with no option, and install."""
        bundle = self.deployment.bundle
        source = bundle.directory.with_suffix(".json")
        source.write_text(json.dumps(self.environment), encoding="utf-8")
        command = [generator(), "--host", self.host.address, str(source), str(bundle.directory)]
        subprocess.run(command, check=True, timeout=60)
        bundle.playbook("install-backup").succeeded()

    def backs_up(self) -> None:
        run = self.deployment.run().succeeded()
        assert "to the restic repository" in run.output

    def restic(self, password: str, *words: str) -> subprocess.CompletedProcess[str]:
        """restic of the backup image on the host's repository."""
        image = self.host.sh(
            "sed -n \"s/^IMAGE='\\(.*\\)'/\\1/p\" /etc/tracker-backup.conf"
        ).strip()
        return self.host.run(
            *("docker", "run", "--rm", "--network", "none", "--entrypoint", "restic"),
            *("--env", f"RESTIC_PASSWORD={password}", "--volume", f"{DIRECTORY}:{DIRECTORY}"),
            *("--volume", "/root/new:/root/new:ro", "--tmpfs", "/tmp"),
            *(image, "--no-cache", "--repo", DIRECTORY, *words),
            check=False,
        )


@pytest.fixture(scope="module")
def rotated(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotated]:
    folder, stack = tmp_path_factory.mktemp("rotation"), Stack("mysql")
    key = ssh_key(folder)
    with Host(f"gen-backup-bundle-e2e-rotation-{os.getpid()}") as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        environment = stack.environment(key, {"restic": local(host).section})
        bundle = Bundle.generate(environment, folder / "bundle", host.address)
        bundle.playbook("install-backup").succeeded()
        nothing = Outcome(0, "")
        deployment = Deployment(host, stack, bundle, key, frozenset(), nothing, nothing)
        yield Rotated(deployment, environment)


def may_log_in(host: Host, user: str, password: str) -> bool:
    """Whether MySQL accepts the password; it comes on standard input."""
    script = (
        'IFS= read -r p; printf "[client]\\nuser=%s\\npassword=\\"%s\\"\\n" "$1" "$p" >/tmp/login;'
        " mysql --defaults-file=/tmp/login --execute='SELECT 1'; s=$?; rm /tmp/login; exit $s"
    )
    escaped = password.replace("\\", "\\\\").replace('"', '\\"')
    command = ("docker", "exec", "-i", "mysql", "sh", "-c", script, "login", user)
    return host.run(*command, stdin=escaped + "\n", check=False).returncode == 0


def literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def test_the_databases_password(rotated: Rotated) -> None:
    host, account = rotated.host, f"{DATABASE_USER}@'%'"
    mysql(host, f"ALTER USER {account} IDENTIFIED BY {literal(NEW)} RETAIN CURRENT PASSWORD")
    rotated.backs_up()  # with the old one
    rotated.environment["tracker"]["core"]["database"]["password"] = NEW
    rotated.apply()
    assert host.read(f"{DEPLOY_DIR}/backup/secrets/db_password") == NEW
    rotated.backs_up()  # with the new one, while the tracker has the old one
    text = host.read(TOML)
    old, new = (quote(one, safe="") for one in (HOSTILE_PASSWORD, NEW))
    assert old in text
    host.run("tee", TOML, stdin=text.replace(old, new))
    compose(host, "up", "--detach", "--force-recreate", "--no-deps", "tracker")
    wait_for_tracker(host)
    mysql(host, f"ALTER USER {account} DISCARD OLD PASSWORD")
    assert not may_log_in(host, DATABASE_USER, HOSTILE_PASSWORD)
    assert may_log_in(host, DATABASE_USER, NEW)
    rotated.backs_up()


def test_roots_password_which_a_restore_needs(rotated: Rotated) -> None:
    host = rotated.host
    accounts = mysql(host, "SELECT host FROM mysql.user WHERE user = 'root'").split()
    new = "root2-" + ROOT_PASSWORD
    for name in accounts:
        text = f"ALTER USER root@{literal(name)} IDENTIFIED BY {literal(new)}"
        mysql(host, f"{text} RETAIN CURRENT PASSWORD")
    rotated.environment["mysql"] = {"root_password": new}
    rotated.apply()
    assert host.read(f"{DEPLOY_DIR}/backup/secrets/db_root_password") == new
    dotenv = host.read(f"{DEPLOY_DIR}/.env")
    assert ROOT_PASSWORD in dotenv
    host.run("tee", f"{DEPLOY_DIR}/.env", stdin=dotenv.replace(ROOT_PASSWORD, new))
    compose(host, "up", "--detach", "--wait", seconds=180)
    for name in accounts:
        mysql(host, f"ALTER USER root@{literal(name)} DISCARD OLD PASSWORD")
    assert not may_log_in(host, "root", ROOT_PASSWORD)
    rotated.backs_up()
    restore = ("tracker-backup", "restore", "latest", "--only", "database", "--confirm")
    done = host.run(*restore, check=False, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_tracker(host)


def test_restics_password(rotated: Rotated) -> None:
    host, new = rotated.host, "restic's next password"
    host.run("install", "-m", "0600", "/dev/stdin", "/root/new", stdin=new)
    added = rotated.restic(PASSWORD, "key", "add", "--new-password-file", "/root/new")
    assert added.returncode == 0, added.stderr
    rotated.backs_up()  # with the old one
    rotated.environment["backup"]["restic"]["password"] = new
    rotated.apply()
    rotated.backs_up()  # with the new one
    keys = rotated.restic(new, "key", "list").stdout  # a star marks the key in use
    (old,) = re.findall("^ ([0-9a-f]{8}) ", keys, re.MULTILINE)
    removed = rotated.restic(new, "key", "remove", old)
    assert removed.returncode == 0, removed.stderr
    assert rotated.restic(PASSWORD, "snapshots").returncode != 0
    rotated.backs_up()
