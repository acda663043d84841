"""The bundle of commit 21bbb31 and this one, one over the other, each with its real program."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unit.sandbox import TESTS, Sandbox, mode

OLD = TESTS / "fixtures/21bbb31/bundles/sqlite-minimal/bundle"
ENVIRONMENT = "sqlite-minimal"
SQLITE = {
    "ENVIRONMENT": ENVIRONMENT,
    "DB_TYPE": "sqlite",
    "DB_PATH": "/data/storage/tracker/lib/database/tracker.db",
}


@pytest.fixture
def new(sandbox: Sandbox) -> Sandbox:
    """A host on which nothing is installed, and this bundle for the environment of the old one."""
    sandbox.make_bundle(**SQLITE)
    conf = sandbox.bundle / "backup/backup.conf"
    lines = conf.read_text().splitlines(keepends=True)
    conf.write_text("".join(line for line in lines if "PASSWORD" not in line))
    sandbox.sign()
    return sandbox


def install_old(host: Sandbox) -> subprocess.CompletedProcess[str]:
    """Uploads the old bundle, made for the directories of this host, and runs its installer."""
    upload = host.state / "bundle"
    shutil.copytree(OLD, upload, dirs_exist_ok=True)
    conf = upload / "host/tracker-backup.conf"
    text = conf.read_text(encoding="utf-8")
    conf.write_text(text.replace("/opt/torrust", str(host.deploy)), encoding="utf-8")
    manifest = json.loads((upload / "manifest.json").read_bytes())
    digest = hashlib.sha256(conf.read_bytes()).hexdigest()
    manifest["files"]["host/tracker-backup.conf"]["sha256"] = digest
    (upload / "manifest.json").write_text(json.dumps(manifest))
    return subprocess.run(
        [sys.executable, upload / "host/tracker-backup", "install"],
        input="{}",
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def placed(host: Sandbox) -> dict[str, tuple[str, bytes]]:
    """Mode and content of everything but the upload."""
    return {
        str(path.relative_to(host.path)): (mode(path), path.read_bytes() if path.is_file() else b"")
        for top in (host.root, host.deploy)
        for path in top.rglob("*")
        if path != host.state / "lock" and not path.is_relative_to(host.root / "proc")
    }


def test_an_upgrade_leaves_what_a_first_installation_leaves(new: Sandbox) -> None:
    assert new.call("install").code == 0
    expected = placed(new)
    assert new.call("uninstall").code == 0
    shutil.rmtree(new.destination)
    done = install_old(new)
    assert done.returncode == 0, done.stderr
    assert (new.deploy / "backup/lib.sh").exists()
    outcome = new.call("install")
    assert outcome.code == 0, outcome.err
    assert placed(new) == expected
    assert new.call("install").changes == []


def test_an_upgrade_keeps_what_the_old_program_knew(new: Sandbox) -> None:
    assert install_old(new).returncode == 0
    known = {
        name: (TESTS / "fixtures/21bbb31/sqlite/state" / fixture).read_bytes()
        for name, fixture in (
            ("retention.json", "retention-acknowledged.json"),
            ("remote.json", "remote-pending.json"),
            ("verified.json", "verified.json"),
        )
    }
    for name, content in known.items():
        (new.state / name).write_bytes(content)
    new.add_run("20260101_030000", 41, environment=ENVIRONMENT)
    before = new.files()
    assert new.call("install").code == 0
    assert {name: (new.state / name).read_bytes() for name in known} == known
    assert new.files() == before
    host = new.package.host.Host.read(new.config)
    assert [run.sequence for run in new.package.runs.read_runs(host)] == [41]


def test_the_old_bundle_over_this_one_is_refused_by_name(new: Sandbox) -> None:
    assert new.call("install").code == 0
    before = placed(new)
    done = install_old(new)
    assert done.returncode == 1
    assert "written by a newer gen-backup-bundle: generate the bundle with that" in done.stderr
    upload = str((new.state / "bundle").relative_to(new.path))
    assert {name: what for name, what in placed(new).items() if not name.startswith(upload)} == {
        name: what for name, what in before.items() if not name.startswith(upload)
    }
    assert new.call("install").code == 0
    assert placed(new) == before


def test_what_the_old_bundle_installed_is_uninstalled_without_its_configuration(
    new: Sandbox,
) -> None:
    before = placed(new)
    assert install_old(new).returncode == 0
    new.config.unlink()
    (new.bundle / "host/tracker-backup.conf").unlink()
    outcome = new.call("uninstall")
    assert outcome.code == 0, outcome.err
    left = {name for name in placed(new) if not name.startswith("deploy/storage/backup")}
    assert left == {name for name in before if not name.startswith("deploy/storage/backup")}
    assert not Path(new.state).exists()
