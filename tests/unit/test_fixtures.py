"""What older versions left on a host is read: configurations, run manifests, journals, states."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unit.sandbox import TEMPLATES, TESTS, load

VERSIONS = sorted(path.parent for path in (TESTS / "fixtures").glob("*/bundles"))
HOSTS = [host for version in VERSIONS for host in (version / "sqlite", version / "mysql")]


@dataclass(frozen=True)
class Old:
    """The files of one host, at the places where the program looks for them."""

    fixtures: Path
    state: Path
    package: ModuleType
    host: Any

    def put(self, fixture: str, name: str) -> None:
        """A file of the state directory."""
        shutil.copyfile(self.fixtures / fixture, self.state / name)

    def journal(self, point: str) -> Any:
        """The journal of a restore."""
        self.put(f"{point}/restore.json", "restore.json")
        return self.package.documents.RestoreJournal.load()

    def work(self, point: str, name: str) -> list[str]:
        """The entries of a file in a restore's work directory, which end with NUL."""
        text = (self.fixtures / point / "work" / name).read_text(encoding="utf-8")
        return text.split("\0")[:-1]


@pytest.fixture(params=HOSTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    fixtures: Path = request.param
    destination, state, deploy = (tmp_path / name for name in ("destination", "state", "deploy"))
    shutil.copytree(fixtures / "destination", destination)
    state.mkdir()
    (deploy / "backup").mkdir(parents=True)
    shutil.copyfile(fixtures / "etc/backup.conf", deploy / "backup/backup.conf")
    for key, value in {
        "TRACKER_BACKUP_CONFIG": fixtures / "etc/tracker-backup.conf",
        "TRACKER_BACKUP_STATE_DIR": state,
        "TRACKER_BACKUP_ROOT": tmp_path,
    }.items():
        monkeypatch.setenv(key, str(value))
    package = load(TEMPLATES)
    settings = package.host.Host.read(fixtures / "etc/tracker-backup.conf")
    host = replaced(settings, destination=destination, deploy_dir=deploy)
    return Old(fixtures, state, package, host)


def replaced(host: Any, **changes: Any) -> Any:
    return type(host)(**{**host.__dict__, **changes})


def test_every_run_manifest_is_read(old: Old, capsys: pytest.CaptureFixture[str]) -> None:
    runs = old.package.runs.read_runs(old.host)
    assert capsys.readouterr() == ("", "")
    assert len(runs) == len(list((old.fixtures / "destination/runs").iterdir()))
    told = {run.sequence: (run.result, run.exit_code, run.scope) for run in runs}
    assert told[1] == ("success", 0, "full")
    assert told[2] == ("success", 0, "exclude-statistics")
    assert told[4] == ("failed", 143, "full")
    assert told[5] == ("failed", 1, "full")
    for run in runs:
        assert run.driver == (old.fixtures.name if run.files else "")
        assert run.missing == []
        written = json.loads((old.fixtures / f"destination/runs/{run.id}.json").read_bytes())
        completed = {"driver": run.driver, "missing": [], "compose_files": [], "releases": {}}
        completed |= {"format": 2, "database_bytes": 0, "killed": False}
        assert run.as_object() == written | completed


def test_the_configuration_and_the_identity_are_read(old: Old) -> None:
    assert old.host.retention_days > 0
    assert old.host.scope == "full"
    assert old.package.destination.check_restorable(old.host).environment == old.host.environment
    for other in old.fixtures.glob("*/etc/tracker-backup.conf"):
        assert old.package.host.Host.read(other).environment == old.host.environment


def test_the_state_of_retention_is_read(old: Old) -> None:
    runs = old.package.runs.read_runs(old.host)
    suspended = old.package.retention.suspended
    old.put("state/retention-pending.json", "retention.json")
    first = suspended(old.host, runs)
    old.put("state/retention-acknowledged.json", "retention.json")
    acknowledged = suspended(old.host, runs)
    old.put("state/retention.json", "retention.json")
    second = suspended(old.host, runs)
    assert first.keys() > acknowledged.keys()
    assert second.keys() >= acknowledged.keys()
    assert {key.partition(" ")[0] for key in second} == {"rows"}


def test_the_result_of_a_verification_is_read(old: Old) -> None:
    runs = old.package.runs.read_runs(old.host)
    old.put("state/verified.json", "verified.json")
    good = old.package.retention.suspended(old.host, runs)
    old.put("state/verified-problems.json", "verified.json")
    bad = old.package.retention.suspended(old.host, runs)
    (found,) = bad.keys() - good.keys()
    assert found.startswith("verify ")


def test_the_journal_of_a_restore_and_its_work_files_are_read(old: Old) -> None:
    points = sorted(path.name for path in old.fixtures.glob("restore-*"))
    for point in points:
        journal = old.journal(point)
        assert journal.importing == (point == "restore-importing")
        assert (journal.fresh, journal.config, journal.undone) == (False, True, False)
        assert journal.running
        assert {".env", "docker-compose.yml"} <= set(old.work(point, "targets"))
        assert {".env", "docker-compose.yml"} <= set(old.work(point, "existing"))
        assert set(old.work(point, "existing")) <= set(old.work(point, "targets"))
    assert points


def test_a_restore_that_died_after_its_swap_is_rolled_back(old: Old) -> None:
    for point in sorted(path.name for path in old.fixtures.glob("restore-*")):
        work = old.host.staging / old.journal(point).work
        shutil.copytree(old.fixtures / point / "work", work)
        targets, existing, absent = (
            old.work(point, name) for name in ("targets", "existing", "absent")
        )
        for root, text, paths in (
            (work / "old", "then", existing),
            (old.host.deploy_dir, "restored", targets),
        ):
            for path in paths:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
        old.package.undo_older.undo_older(old.host, work)
        assert {path: (old.host.deploy_dir / path).read_text() for path in existing} == (
            dict.fromkeys(existing, "then")
        )
        assert not [path for path in absent if (old.host.deploy_dir / path).exists()]
        assert old.package.restore.moved(work, old.journal(point)) == targets


def test_the_marker_of_a_window_has_its_seven_words(old: Old) -> None:
    for quiesce in ("stop", "pause"):
        words = (old.fixtures / f"state/window-{quiesce}").read_text(encoding="utf-8").split()
        container, started, action, opened, deadline, grace, run = words
        assert (len(container), action, started[-1]) == (64, quiesce, "Z")
        assert int(opened) < int(deadline) and int(grace) > 0
        old.put(f"state/window-{quiesce}", "window")
        marker = old.package.window.Marker.load()
        assert (marker.tracker, marker.deadline, marker.run) == (container, int(deadline), run)


def test_the_state_of_the_repository_is_read(old: Old) -> None:
    if not (old.fixtures / "state/remote.json").exists():
        pytest.skip("this host has no repository")
    runs = old.package.runs.read_runs(old.host)
    old.put("state/remote-pending.json", "remote.json")
    pending = old.package.remote.pending(runs, old.package.remote.remembered())
    assert [run.sequence for run in pending] == [13, 12]
    assert old.package.remote.remembered().error
    old.put("state/remote.json", "remote.json")
    assert old.package.remote.remembered().error == ""


def test_what_the_host_told_the_sidecar_is_read(old: Old) -> None:
    if not (old.fixtures / "state/stack.json").exists():
        pytest.skip("this host has no sidecar")
    old.put("state/stack.json", "stack.json")
    told = old.package.deployment.told_by_host()
    assert told.refused == ""
    assert told.images.keys() == {"tracker"}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["sqlite-minimal", "mysql-minimal"])
def test_the_bundles_are_whole(version: Path, name: str) -> None:
    bundle = version / "bundles" / name / "bundle"
    listed = json.loads((bundle / "manifest.json").read_bytes())["files"]
    for path, facts in listed.items():
        assert hashlib.sha256((bundle / path).read_bytes()).hexdigest() == facts["sha256"], path
