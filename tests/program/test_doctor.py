"""`doctor` finds what a run, a recovery, a verification or a restore would fail of, and neither it
nor a dry run changes anything.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from program.host import Host


@pytest.fixture
def host(host: Host) -> Host:
    """A host on which a bundle is installed."""
    host.install()
    return host


def tree(host: Host) -> dict[str, tuple[Any, ...]]:
    """Every file with its content, mode and owner; not when a directory changed."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, _, names in os.walk(host.path):
        for path in [Path(folder), *(Path(folder) / name for name in names)]:
            facts = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (facts.st_mode, facts.st_uid, facts.st_gid, content)
    own = (str(host.stub / "calls"), str(host.path / "output"))
    return {name: facts for name, facts in found.items() if not name.startswith(own)}


def doctor(host: Host) -> tuple[int, list[dict[str, Any]]]:
    outcome = host.tool("doctor", "--json")
    told = json.loads(outcome.output)
    assert told["ok"] == (outcome.status == 0)
    findings: list[dict[str, Any]] = told["findings"]
    return outcome.status, findings


def problems(host: Host) -> list[str]:
    code, findings = doctor(host)
    found = [f"{one['check']}: {one['text']}" for one in findings if not one["advice"]]
    assert code == bool(found)
    return found


def test_a_host_where_all_is_well_has_no_problem(host: Host) -> None:
    host.configure(QUIESCE="pause")
    before = tree(host)
    host.tool("doctor").ends_with(0, "advice: ", " 0 problems").lacks("PROBLEM", "run 2")
    assert tree(host) == before
    host.calls_in_order("^docker pause tracker-backup-", "^job preflight", "^docker rm ")
    host.tracker_was_left_alone()
    assert problems(host) == []


def cannot_pause(host: Host) -> None:
    host.configure(QUIESCE="pause")
    host.on("pause-ours", "fail('no')")


def no_docker(host: Host) -> None:
    host.on("ps", "fail('no daemon')")
    host.on("version", "fail('no daemon')")


def silent_cron(host: Host) -> None:
    for name in ("etc/cron.d/tracker-backup", "var/lib/tracker-backup/cron"):
        os.utime(host.root / name, (1, 1))


BROKEN: dict[str, tuple[Callable[[Host], object], str]] = {
    "the engine cannot pause": (
        cannot_pause,
        "backup: this Docker engine cannot pause",
    ),
    "Compose is old": (
        lambda host: (host.stub / "compose-version").write_text("2.20.0\n"),
        "compose: docker compose is 2.20.0; 2.24.4 or newer is needed",
    ),
    "the image is gone": (
        lambda host: (host.stub / "images").write_text(""),
        "image: the image .* is missing",
    ),
    "another machine's destination": (
        lambda host: (host.root / "etc/machine-id").write_text("0ther\n"),
        "destination: .* belongs to another machine",
    ),
    "no destination": (
        lambda host: (host.destination / ".tracker-backup.json").unlink(),
        "destination: .*is the destination mounted",
    ),
    "no right on the database": (
        lambda host: host.on("preflight", "refuse('the user may not read the table torrents')"),
        "backup: the user may not read the table torrents",
    ),
    "no compose file": (
        lambda host: (host.deploy / "docker-compose.yml").unlink(),
        "compose: there is no .*docker-compose.yml",
    ),
    "Docker does not answer": (
        no_docker,
        "deployment: Docker does not list its containers",
    ),
    "a program that cannot be executed": (
        lambda host: (host.root / "usr/local/bin/maintenance-backup.sh").chmod(0o644),
        "programs: .*maintenance-backup.sh cannot be executed",
    ),
    "cron is silent": (
        silent_cron,
        "cron: a cron daemon runs, but has not called tracker-backup for",
    ),
    "a dead run": (
        lambda host: host.marker.write_text("7e57 2026-01-01T00:00:00Z stop 1 2 9 20260101_030000"),
        "backup: a run died and left",
    ),
    "a clock that was set back": (
        lambda host: host.add_run("20360101_030000", 1),
        "clock: the newest run began at 2036",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_a_problem_and_nothing_is_changed(host: Host, case: str) -> None:
    break_it, pattern = BROKEN[case]
    break_it(host)
    before = tree(host)
    found = problems(host)
    assert any(re.search(pattern, one) for one in found), found
    assert tree(host) == before


def test_while_a_run_works_no_container_is_started(host: Host) -> None:
    with host.locked():
        code, findings = doctor(host)
    assert code == 0
    assert any("is under way" in one["text"] for one in findings)
    host.never_called("^docker (run|compose .* run) ")


def test_a_tracker_that_does_not_run_is_advice(host: Host) -> None:
    host.set_tracker(status="exited")
    code, findings = doctor(host)
    assert code == 0
    assert any("the tracker is exited" in one["text"] for one in findings)
    host.tracker_was_left_alone()


@pytest.mark.parametrize("quiesce", ["stop", "pause"])
def test_a_dry_run_changes_nothing_whatever_a_dead_run_left(host: Host, quiesce: str) -> None:
    host.configure(QUIESCE=quiesce)
    host.add_container("tracker-backup-20260101_030000-reader")
    (host.staging / "20260101_030000/reader").mkdir(parents=True)
    (host.staging / "20260101_030000/reader/database.db").write_text("half")
    (host.destination / "sqlite/sqlite_20260101_030000.db.gz.partial").write_text("half")
    (host.destination / "sqlite/sqlite_20260101_030000.db.gz").write_text("whole, but no backup")
    host.add_run("20200101_030000", 1)  # retention would remove it
    before = tree(host)
    host.run("--dry-run").ends_with(0, "dry run: everything is ready")
    assert tree(host) == before
    host.tracker_was_left_alone()


@pytest.mark.parametrize("left", ["window", "restore.json"])
def test_a_dry_run_recovers_nothing_and_rolls_nothing_back(host: Host, left: str) -> None:
    (host.state / left).write_text("7e57 2026-01-01T00:00:00Z stop 1 2 9 20260101_030000\n")
    host.set_tracker(status="exited")
    before = tree(host)
    host.run("--dry-run").ends_with(1, f"died and left {host.state / left}")
    assert tree(host) == before
    assert host.calls == []


def test_a_docker_that_dies_in_a_dry_run_is_not_made_up_for(host: Host) -> None:
    (host.stub / "docker.pid").write_text("1")
    die = "(STUB / 'docker.pid').write_text('2'); stopped(137); fail('the daemon is gone')"
    host.on("preflight", die)
    host.run("--dry-run").ends_with(1)
    host.tracker_was_left_alone()
