"""Makes the fixtures of one version: the files that its program writes on a host.

    PYTHONPATH=tests python3 -m e2e.make_fixtures GENERATOR DIRECTORY

GENERATOR is the gen-backup-bundle of that version. This was written for commit 21bbb31. A version
that calls other Docker commands during a restore needs other values in `Driver.dies_after`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.bundle import Bundle, ssh_key
from e2e.deployment import CONFIG, DESTINATION, STAGING, Deployment
from e2e.host import Host, wait_until
from e2e.stack import DEPLOY_DIR, Stack, wait_for_tracker

STATE = "/var/lib/tracker-backup"
HOLD = f"{STATE}/hold"
RESTIC = "/srv/restic"
STOP = {"QUIESCE": "stop", "STOP_TIMEOUT_SECONDS": "5"}
SMALL_BYTES = 65536

FILL = """
INSERT INTO whitelist (info_hash) VALUES
    ('00000000000000000000000000000000000000b1'), ('00000000000000000000000000000000000000b2');
INSERT INTO torrents (info_hash, completed) VALUES
    ('00000000000000000000000000000000000000a1', 7),
    ('00000000000000000000000000000000000000a2', 0);
"""
EMPTY = "DELETE FROM whitelist; DELETE FROM torrents;"

# Kills the program right after a call of Docker's client whose words, or standard input, match.
_SHIM = """#!/bin/bash
input=/dev/null
if [[ $* == 'exec --interactive '* ]]; then input=/tmp/shim-input; cat >$input; fi
/usr/bin/docker "$@" <$input
status=$?
if [[ "$* $(head -c 1000 $input | tr -d '\\0')" =~ $DIE_AFTER ]]; then kill -9 "$DIE_PID"; fi
exit $status
"""
_DIE = """
set -e
mkdir -p /root/shim
cat >/root/shim/docker
chmod 0755 /root/shim/docker
export DIE_PID=$$ PATH=/root/shim:$PATH
exec tracker-backup restore latest --confirm
"""


@dataclass(frozen=True)
class Driver:
    """One database: its stack, and the calls after which a restore is killed, by name."""

    stack: Stack
    dies_after: dict[str, str]


DRIVERS = {
    "sqlite": Driver(Stack("sqlite3"), {"applied": "restore.sh apply"}),
    "mysql": Driver(
        Stack("mysql"), {"applied": "restore.sh apply", "importing": "^exec .*DROP DATABASE"}
    ),
}


@dataclass(frozen=True)
class Keeper:
    """Copies files of a deployment into a directory."""

    deployment: Deployment
    directory: Path

    def keep(self, source: str, name: str = "") -> None:
        """One file of the host; `name` is where it goes, below the directory."""
        target = self.directory / (name or source.rpartition("/")[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.deployment.host.read(source), encoding="utf-8")

    def keep_run(self) -> None:
        """The newest run manifest."""
        self.keep(f"{DESTINATION}/runs/{self.deployment.last_run()['id']}.json", self._run_name())

    def _run_name(self) -> str:
        return f"destination/runs/{self.deployment.last_run()['id']}.json"


def make(name: str, program: Path, directory: Path) -> None:
    """All fixtures of one database."""
    driver = DRIVERS[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        installed(driver.stack, program, Path(folder)) as (deployment),
    ):
        keeper = Keeper(deployment, directory / name)
        keeper.keep(CONFIG, "etc/tracker-backup.conf")
        keeper.keep(f"{DEPLOY_DIR}/backup/backup.conf", "etc/backup.conf")
        keeper.keep(f"{DESTINATION}/.tracker-backup.json", "destination/.tracker-backup.json")
        keeper.keep_run()
        make_runs(keeper)
        make_retention(keeper)
        make_verified(keeper)
        for point, call in driver.dies_after.items():
            make_restore(keeper, point, call)
        if name == "sqlite":
            make_remote(keeper, program)
            make_sidecar(keeper, program)


@contextmanager
def installed(stack: Stack, program: Path, folder: Path) -> Iterator[Deployment]:
    """A host with the stack and the bundle."""
    key = ssh_key(folder)
    with Host(f"gen-backup-bundle-e2e-fixtures-{os.getpid()}") as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        environment = stack.environment(key, {})
        bundle = Bundle.generate(environment, folder / "bundle", host.address, program)
        done = bundle.playbook("install-backup").succeeded()
        deployment = Deployment(host, stack, bundle, key, frozenset(), done, done)
        deployment.query(FILL)
        yield deployment


def make_runs(keeper: Keeper) -> None:
    """A run without statistics, one that a signal ended in its window, and one refused before."""
    deployment = keeper.deployment
    with deployment.configured(BACKUP_SCOPE="exclude-statistics"):
        deployment.run().succeeded()
    keeper.keep_run()
    for quiesce in ("stop", "pause"):
        with deployment.configured(**STOP | {"QUIESCE": quiesce}), deployment.running() as run:
            run.hold_capture()
            keeper.keep(f"{STATE}/window", f"state/window-{quiesce}")
            run.signal("TERM")
            assert run.wait().code == 143
        wait_for_tracker(deployment.host)
    keeper.keep_run()
    key = "DB_PATH" if keeper.deployment.kind == "sqlite" else "DB_NAME"
    with deployment.configured(**{key: "/data/storage/tracker/lib/database/absent"}):
        assert deployment.run().code == 1
    keeper.keep_run()


def make_retention(keeper: Keeper) -> None:
    """State of retention that is suspended, and was acknowledged once before."""
    deployment = keeper.deployment
    for number in range(2):
        deployment.run().succeeded()
        deployment.query(EMPTY)
        deployment.run().succeeded()
        deployment.query(FILL)
        keeper.keep_run()
        if number == 0:
            keeper.keep(f"{STATE}/retention.json", "state/retention-pending.json")
            deployment.host.run("tracker-backup", "acknowledge")
            keeper.keep(f"{STATE}/retention.json", "state/retention-acknowledged.json")
    keeper.keep(f"{STATE}/retention.json", "state/retention.json")
    deployment.host.run("tracker-backup", "acknowledge")
    deployment.run().succeeded()


def make_verified(keeper: Keeper) -> None:
    """What verifying leaves: of a good backup, and of a damaged one."""
    deployment = keeper.deployment
    deployment.host.run("tracker-backup", "verify", seconds=300)
    keeper.keep(f"{STATE}/verified.json", "state/verified.json")
    file = deployment.file(deployment.last_run(), "config")
    deployment.host.sh(f"cp -p {file} /root/kept; printf x >>{file}")
    deployment.host.run("tracker-backup", "verify", check=False, seconds=300)
    keeper.keep(f"{STATE}/verified.json", "state/verified-problems.json")
    deployment.host.sh(f"mv /root/kept {file}; tracker-backup verify; tracker-backup acknowledge")


def make_restore(keeper: Keeper, point: str, call: str) -> None:
    """The journal and the small work files of a restore that was killed, then rolled back."""
    deployment, host = keeper.deployment, keeper.deployment.host
    host.run("touch", HOLD)
    dying = f"export DIE_AFTER={json.dumps(call)}\n{_DIE}"
    died = host.run("bash", "-c", dying, stdin=_SHIM, check=False, seconds=300)
    assert died.returncode == 137, died.stdout + died.stderr
    keeper.keep(f"{STATE}/restore.json", f"restore-{point}/restore.json")
    work = f"{STAGING}/{json.loads(host.read(f'{STATE}/restore.json'))['work']}"
    listing = host.sh(f"cd {work}; find . -printf '%y %#m %U:%G %s %P\\n' | sort -k 5")
    (keeper.directory / f"restore-{point}/listing.txt").write_text(listing, encoding="utf-8")
    names = host.sh(f"cd {work}; find . -maxdepth 1 -type f -size -{SMALL_BYTES}c -printf '%P\\n'")
    for name in names.split():
        if not name.startswith(("database", "before", "config", "torrents")):
            keeper.keep(f"{work}/{name}", f"restore-{point}/work/{name}")
    host.run("rm", HOLD)
    host.run("tracker-backup", "rollback", seconds=300)
    wait_for_tracker(deployment.host)


def make_remote(keeper: Keeper, program: Path) -> None:
    """State of a restic repository: with its copies, and with one that could not be copied."""
    deployment, host = keeper.deployment, keeper.deployment.host
    host.run("mkdir", "-p", RESTIC)
    section = {"restic": {"repository": RESTIC, "password": "a password of the fixtures"}}
    install_another(deployment, program, "remote", section)
    deployment.run().succeeded()
    keeper.keep(CONFIG, "remote/etc/tracker-backup.conf")
    keeper.keep(f"{DEPLOY_DIR}/backup/backup.conf", "remote/etc/backup.conf")
    keeper.keep(f"{STATE}/remote.json", "state/remote.json")
    host.sh(f"mv {RESTIC} {RESTIC}.away; mkdir {RESTIC}")
    assert deployment.run().code == 1
    keeper.keep(f"{STATE}/remote.json", "state/remote-pending.json")
    keeper.keep_run()


def make_sidecar(keeper: Keeper, program: Path) -> None:
    """What the host tells the sidecar, and a run of the sidecar's."""
    deployment, host = keeper.deployment, keeper.deployment.host
    deployment.query("PRAGMA journal_mode = delete;")
    install_another(deployment, program, "sidecar", {"strategy": "sidecar"})
    keeper.keep(CONFIG, "sidecar/etc/tracker-backup.conf")
    keeper.keep(f"{DEPLOY_DIR}/backup/backup.conf", "sidecar/etc/backup.conf")
    keeper.keep(f"{DEPLOY_DIR}/backup/sidecar.env", "sidecar/etc/sidecar.env")
    wait_until("stack.json", lambda: host.exists(f"{STATE}/stack.json"), 90)
    keeper.keep(f"{STATE}/stack.json", "state/stack.json")
    label = "label=tracker-backup.sidecar"
    sidecar = host.run("docker", "ps", "--quiet", "--filter", label).stdout.strip()
    host.run("docker", "exec", sidecar, "backup.sh", "now", seconds=300)
    keeper.keep_run()


def install_another(
    deployment: Deployment, program: Path, name: str, section: dict[str, Any]
) -> None:
    """Another bundle on the same host."""
    environment = deployment.stack.environment(deployment.key, section)
    directory = deployment.bundle.directory.with_name(name)
    bundle = Bundle.generate(environment, directory, deployment.host.address, program)
    bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()


def main() -> None:
    parser = argparse.ArgumentParser(prog="e2e.make_fixtures")
    parser.add_argument("generator", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", choices=DRIVERS, help="of one database")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else DRIVERS:
        try:
            make(name, arguments.generator.resolve(), arguments.directory)
        except subprocess.SubprocessError as error:
            raise SystemExit(f"{name}: {error}") from error


if __name__ == "__main__":
    main()
