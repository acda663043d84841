"""A host with the real bundle of commit 21bbb31 gets this one, after work of the old one died."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from e2e.bundle import REPOSITORY, Bundle, Outcome, ssh_key
from e2e.deployment import DESTINATION, Deployment
from e2e.faults import STATE
from e2e.host import Host
from e2e.stack import DEPLOY_DIR, Stack, wait_for_tracker

OLD = REPOSITORY / "tests/fixtures/21bbb31/bundles/sqlite-minimal/bundle"
UPLOAD = f"{STATE}/bundle"
CRON = "/etc/cron.d/tracker-backup"
ROWS = """
INSERT INTO torrents (info_hash, completed) VALUES ('00000000000000000000000000000000000000a1', 7);
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 300)
    INSERT INTO whitelist (info_hash) SELECT printf('%040x', n) FROM number;
"""
# Kills the program, and what it started, right after a call of Docker's client that matches.
SHIM = """#!/bin/bash
input=/dev/null
if [[ $* == 'exec --interactive '* ]]; then input=/tmp/shim-input; cat >$input; fi
/usr/bin/docker "$@" <$input
status=$?
if [[ $* =~ $DIE_AFTER ]]; then kill -9 "$DIE_PID"; fi
exit $status
"""
DYING = """
set -e
mkdir -p /root/shim
cat >/root/shim/docker
chmod 0755 /root/shim/docker
export DIE_PID=$$ PATH=/root/shim:$PATH
exec "$@"
"""
WORK = {
    "window": ("^(stop|pause) ", "maintenance-backup.sh"),
    "restore.json": ("restore.sh apply", "tracker-backup restore latest --confirm"),
}

pytestmark = pytest.mark.slow


def install_old(host: Host) -> Outcome:
    """Uploads the old bundle to where its playbook did, and runs its installer, as that did."""
    upload = UPLOAD.lstrip("/")
    files = [path for path in OLD.rglob("*") if path.is_file()]
    tree: dict[str, str | None] = {
        f"{upload}/{path.relative_to(OLD)}": path.read_text(encoding="utf-8") for path in files
    }
    parents = {str(parent) for path in tree for parent in PurePath(path).parents}
    inside = sorted(parent for parent in parents if parent.startswith(upload.rpartition("/")[0]))
    host.unpack({**dict.fromkeys(inside), **tree}, modes=dict.fromkeys([*inside, *tree], 0o755))
    done = host.run(
        f"{UPLOAD}/host/tracker-backup", "install", stdin="{}", check=False, seconds=600
    )
    return Outcome(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def old(docker: None, tmp_path: Path) -> Iterator[Deployment]:
    """A host with the old bundle, three runs, and an acknowledged loss of rows."""
    stack, key = Stack("sqlite3"), ssh_key(tmp_path)
    with Host(f"gen-backup-bundle-e2e-upgrade-{os.getpid()}") as host:
        host.authorize(key.with_suffix(".pub").read_text(encoding="utf-8"))
        stack.bring_up(host)
        nothing = Outcome(0, "")
        bundle = Bundle(tmp_path / "new")  # which a test makes
        deployment = Deployment(host, stack, bundle, key, frozenset(), nothing, nothing)
        deployment.query(ROWS)
        install_old(host).succeeded()
        deployment.run().succeeded()
        deployment.query("DELETE FROM whitelist;")
        deployment.run().succeeded()
        host.run("tracker-backup", "acknowledge")
        deployment.query(ROWS.replace("00a1", "00a2"))
        deployment.run().succeeded()
        yield deployment


def new_bundle(old: Deployment) -> Bundle:
    environment = old.stack.environment(old.key, {})
    environment["environment"]["name"] = "sqlite-minimal"
    return Bundle.generate(environment, old.bundle.directory, old.host.address)


def die(host: Host, after: str, command: str) -> None:
    """Runs a command of the old program that is killed after a call of Docker."""
    host.run("mv", CRON, "/root/cron")  # or the old program would recover by itself
    done = host.run(
        *("env", f"DIE_AFTER={after}", "bash", "-c", DYING, "dying", *command.split()),
        stdin=SHIM,
        check=False,
        seconds=300,
    )
    assert done.returncode == 137, done.stdout + done.stderr


@pytest.mark.parametrize("left", WORK)
def test_an_upgrade_finishes_what_died_and_keeps_what_was_known(old: Deployment, left: str) -> None:
    host, runs = old.host, old.runs()
    assert [run["sequence"] for run in runs] == [1, 2, 3]
    retention = host.read(f"{STATE}/retention.json")
    assert json.loads(retention)["acknowledged"]
    rows = old.query("SELECT count(*) FROM whitelist;")
    old.query(
        "INSERT INTO whitelist (info_hash) VALUES ('0000000000000000000000000000000000000fff')"
    )
    die(host, *WORK[left])
    assert host.exists(f"{STATE}/{left}")
    new = new_bundle(old)
    upgraded = new.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
    assert f"{STATE}/{left} is there, so the installed" in upgraded.output
    assert not host.exists(f"{STATE}/{left}")
    wait_for_tracker(host)
    assert int(old.query("SELECT count(*) FROM whitelist;")) == int(rows) + 1
    assert host.read(f"{STATE}/retention.json") == retention
    for name in ("backup/lib.sh", "backup/restic.sh", "backup/restore.sh"):
        assert not host.exists(f"{DEPLOY_DIR}/{name}")
    old.run().succeeded()
    last = old.runs()[-1]
    assert (last["sequence"] > 3, last["result"]) == (True, "success")
    assert {run["id"] for run in old.runs()} >= {run["id"] for run in runs}
    host.run("tracker-backup", "verify", runs[-1]["id"], seconds=300)
    status = json.loads(host.run("tracker-backup", "status", "--json", check=False).stdout)
    assert (status["retention_suspended"], status["unfinished"]) == ([], [])
    # The old image was in use until a run removed the container of the dead one.
    new.playbook("install-backup").succeeded()
    assert new.playbook("install-backup").succeeded().changed == 0
    if left == "window":
        downgrade(old, new)


def downgrade(old: Deployment, new: Bundle) -> None:
    """The old bundle is refused, and nothing of the new one changes."""
    places = f"/usr/local/bin /usr/local/lib/tracker-backup /etc/tracker-backup.conf {CRON}"
    digest = f"find {places} {DEPLOY_DIR}/backup -type f | sort | xargs sha256sum"
    before, files = old.host.sh(digest), old.published()
    refused = install_old(old.host)
    assert refused.code != 0
    assert "written by a newer gen-backup-bundle" in refused.output
    assert (old.host.sh(digest), old.published()) == (before, files)
    # The old program built its image before it was refused.
    said = new.playbook("install-backup").succeeded().output
    assert set(re.findall(r"changed: (\w+) ", said)) <= {"image"}
    assert old.host.exists(f"{DESTINATION}/runs")
