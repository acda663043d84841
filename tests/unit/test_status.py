"""Status tells the truth: what makes it fail, and what does not."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from unit.sandbox import Sandbox
from unit.test_runs import hours_ago

MARKER = {
    "format": 2,
    "tracker": "7e57",
    "started": "2026-01-01T00:00:00Z",
    "action": "stop",
    "opened": 1,
    "deadline": 2,
    "stop_timeout": 10,
    "run": "20260101_030000",
}
JOURNAL = {
    "format": 1,
    "run": "20260101_030000",
    "work": "20260102_030000.restore",
    "fresh": False,
    "config": True,
    "running": [],
}


def status(host: Sandbox) -> dict[str, Any]:
    outcome = host.call("status", "--json")
    told: dict[str, Any] = json.loads(outcome.out)
    assert outcome.code == (0 if told["ok"] else 1)
    assert told["ok"] == (not told["problems"])
    return told


def problems(host: Sandbox) -> list[str]:
    found: list[str] = status(host)["problems"]
    return found


def put(host: Sandbox, name: str, document: dict[str, Any]) -> None:
    (host.state / name).write_text(json.dumps(document))


def set_host(host: Sandbox, **settings: str) -> None:
    lines = [
        line
        for line in host.config.read_text().splitlines()
        if line.partition("=")[0] not in settings
    ]
    lines += [f"{key}='{value}'" for key, value in settings.items()]
    host.config.write_text("".join(f"{line}\n" for line in lines))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def well(host: Sandbox) -> Sandbox:
    """A host whose status is OK."""
    host.add_run(hours_ago(1), 1)
    assert problems(host) == []
    return host


# ---------------------------------------------------------------- runs and restores


def test_a_tracker_that_was_not_brought_back_is_a_problem(well: Sandbox) -> None:
    well.add_run(hours_ago(0.5), 2, result="failed", exit_code=4, reason="docker start 7e57")
    (problem,) = problems(well)
    assert "failed with exit code 4, and the tracker was not brought back" in problem
    put(well, "window", MARKER)
    assert any("did not close its window (stop)" in one for one in problems(well))


def test_a_window_is_no_problem_while_its_run_works_within_its_deadline(well: Sandbox) -> None:
    put(well, "window", MARKER | {"deadline": int(time.time()) + 60})
    with (well.state / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status(well)["unfinished"] == ["window"]
        assert problems(well) == []
    assert "did not close its window" in problems(well)[0]


@pytest.mark.parametrize(
    ("held", "words"), [(True, "is under way"), (False, "rollback` undoes it")]
)
def test_an_unfinished_restore_is_a_problem(well: Sandbox, held: bool, words: str) -> None:
    put(well, "restore.json", JOURNAL)
    with (well.state / "lock").open("a") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        (problem,) = problems(well)
    assert "restore of 20260101_030000" in problem and words in problem


def test_a_run_that_died_is_a_problem_until_the_next_one(well: Sandbox) -> None:
    left = well.deploy / "storage/backup-staging/20260101_030000"
    left.mkdir(mode=0o700)
    with (well.state / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert problems(well) == []
    (problem,) = problems(well)
    assert "the run 20260101_030000 died" in problem


# ---------------------------------------------------------------- verification


def verified(well: Sandbox, days: float, **facts: Any) -> None:
    at = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days)
    document = {"format": 2, "run": "20260101_030000", "at": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
    put(well, "verified.json", document | {"problems": []} | facts)


@pytest.mark.parametrize(("days", "overdue"), [(13, False), (15, True)])
def test_a_verification_may_be_missed_once(well: Sandbox, days: float, overdue: bool) -> None:
    set_host(well, VERIFY_INTERVAL_SECONDS=str(7 * 86400))
    verified(well, days)
    assert ["last verified 15 days ago" in one for one in problems(well)] == [True] * overdue
    set_host(well, VERIFY_INTERVAL_SECONDS="0")
    assert problems(well) == []


def test_never_verified_is_a_problem_only_with_a_schedule_and_after_its_time(
    well: Sandbox,
) -> None:
    assert "never verified" in well.call("status").out
    set_host(well, VERIFY_INTERVAL_SECONDS=str(7 * 86400))
    assert problems(well) == []
    age(well.cron, 15 * 86400)
    (well.state / "cron").touch()
    (problem,) = problems(well)
    assert "never verified" in problem
    assert status(well)["verify_limit_seconds"] == 14 * 86400


def test_a_verification_that_could_not_be_made_is_a_problem_unless_nobody_scheduled_it(
    well: Sandbox,
) -> None:
    verified(well, 0, impossible="not verified: no memory")
    told = status(well)
    assert (told["problems"], told["last_verify"]["impossible"]) == ([], "not verified: no memory")
    assert "not verified: no memory" in well.call("status").out
    set_host(well, VERIFY_INTERVAL_SECONDS="604800")
    (problem,) = problems(well)
    assert "could not be verified: not verified: no memory" in problem


def test_a_verification_that_failed_is_a_problem_until_one_succeeds(well: Sandbox) -> None:
    verified(well, 0, problems=["table torrents: 1 rows, 3 in the run manifest"])
    assert any("verifying 20260101_030000 failed: table torrents" in one for one in problems(well))
    well.call("acknowledge")
    assert [one for one in problems(well) if "verifying" in one]
    verified(well, 0)
    assert problems(well) == []


def test_why_a_verification_is_impossible_is_kept(well: Sandbox) -> None:
    package = well.package

    def refuse(*_: Any) -> list[str]:
        raise package.host.Refused("no space")

    well.monkeypatch.setattr(package.verify, "ready_image", lambda _: None)
    well.monkeypatch.setattr(package.verify, "verify", refuse)
    assert well.call("verify").code == 1
    state = package.documents.VerificationState.load()
    assert (state.run, state.problems, state.impossible) == (hours_ago(1), [], "no space")
    assert package.retention.suspended(package.host.Host.read(well.config), []) == {}


# ---------------------------------------------------------------- cron


def test_a_fresh_heartbeat_counts_whatever_the_processes_are_called(well: Sandbox) -> None:
    (well.root / "proc/310/cmdline").write_bytes(b"/opt/my-cron\0")
    assert any("no cron daemon runs" in one for one in problems(well))
    (well.state / "cron").touch()
    assert problems(well) == []
    age(well.state / "cron", 160)
    assert any("no cron daemon runs" in one for one in problems(well))


@pytest.mark.parametrize("beaten", [True, False])
def test_a_cron_that_does_not_call_us_is_a_problem_after_two_minutes(
    well: Sandbox, beaten: bool
) -> None:
    """Its daemon runs, but does not take our file: it belongs to somebody else, or PAM refuses."""
    if beaten:
        (well.state / "cron").touch()
        age(well.state / "cron", 3600)
    assert problems(well) == []  # the schedule was just installed
    age(well.cron, 200)
    told = status(well)
    assert told["cron"] is False
    (problem,) = told["problems"]
    assert ("has not called tracker-backup for 60 minutes" in problem) == beaten
    assert ("has not called tracker-backup yet" in problem) != beaten
    ticks = int((time.clock_gettime(time.CLOCK_BOOTTIME) - 60) * os.sysconf("SC_CLK_TCK"))
    (well.root / "proc/1").mkdir()
    (well.root / "proc/1/stat").write_text(f"1 (in it) S {'0 ' * 18}{ticks} 0\n")
    assert problems(well) == []  # the host was just booted


def test_where_cron_writes_no_heartbeat_a_daemon_is_enough(well: Sandbox) -> None:
    well.cron.write_text("0 3 * * * root maintenance-backup.sh\n")  # of an older bundle
    age(well.cron, 200)
    assert problems(well) == []


def test_a_schedule_that_is_gone_is_a_problem(well: Sandbox) -> None:
    well.cron.unlink()
    (problem,) = problems(well)
    assert "cron.d/tracker-backup cannot be read" in problem and "install the bundle" in problem


# ---------------------------------------------------------------- secrets, copies, damage


@pytest.mark.parametrize("damage", ["missing", "empty", "open"])
def test_a_secret_that_is_not_as_it_should_be_is_a_problem(well: Sandbox, damage: str) -> None:
    secret = well.secrets / "db_root_password"
    if damage == "missing":
        secret.unlink()
    elif damage == "empty":
        secret.write_text("")
    else:
        secret.chmod(0o644)
    (problem,) = problems(well)
    assert str(secret) in problem


@pytest.mark.parametrize(("minutes", "count"), [(5, 0), (20, 1)])
def test_a_copy_that_is_pending_is_a_problem_but_not_at_once(
    host: Sandbox, minutes: float, count: int
) -> None:
    conf = host.deploy / "backup/backup.conf"
    conf.write_text(conf.read_text() + "RESTIC_REPOSITORY_FILE='/srv/restic'\n")
    finished = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=minutes)
    host.add_run(hours_ago(1), 1, finished=f"{finished:%Y-%m-%dT%H:%M:%SZ}")
    found = [one for one in problems(host) if "not copied" in one]
    assert len(found) == count
    assert all(hours_ago(1) in one and "tracker-backup push" in one for one in found)


@pytest.mark.parametrize(
    "name", ["window", "restore.json", "verified.json", "retention.json", "remote.json"]
)
@pytest.mark.parametrize("content", [b"", b"{ torn", b"[" * 9000, b'{"format": 99}', b"\xff"])
def test_a_damaged_state_is_a_problem_and_never_a_traceback(
    well: Sandbox, name: str, content: bytes
) -> None:
    conf = well.deploy / "backup/backup.conf"
    conf.write_text(conf.read_text() + "RESTIC_REPOSITORY_FILE='/srv/restic'\n")
    (well.state / name).write_bytes(content)
    told = status(well)
    assert any(str(well.state / name) in one for one in told["problems"])
    assert well.call("status").out.splitlines()[-1].startswith("PROBLEM: ")


@pytest.mark.parametrize(
    "calendar", ["x", "0 3 1 1", "99 3 1 1 0 both", "0 3 31 2 0 both", "a b c d e f"]
)
def test_a_malformed_calendar_is_a_problem_and_never_a_traceback(
    well: Sandbox, calendar: str
) -> None:
    set_host(well, CALENDAR=calendar)
    told = status(well)
    assert (told["next_run"], len(told["problems"])) == (None, 1)
    assert "CALENDAR" in told["problems"][0]


@pytest.mark.parametrize("content", ["", "BACKUP_RETENTION_DAYS='soon'\n", "x\n"])
def test_a_damaged_backup_conf_is_a_problem_and_the_rest_is_shown(
    well: Sandbox, content: str
) -> None:
    (well.deploy / "backup/backup.conf").write_text(content)
    told = status(well)
    assert any("backup.conf" in one for one in told["problems"])
    assert told["last_success"]["id"] == hours_ago(1)


# ---------------------------------------------------------------- what is advice


def test_a_secret_with_a_line_end_is_advice(well: Sandbox) -> None:
    (well.secrets / "db_password").write_text("pass\n")
    assert problems(well) == []
    assert any("db_password ends with a line end" in one for one in status(well)["advice"])


def test_a_hold_is_advice(well: Sandbox) -> None:
    (well.state / "hold").touch()
    told = status(well)
    assert (told["ok"], told["hold"], told["cron"]) == (True, True, True)
    assert any(one.startswith("held: ") for one in told["advice"])


def test_a_window_that_is_nearly_too_short_is_advice(well: Sandbox) -> None:
    well.add_run(hours_ago(0.5), 2, window_seconds=99.0)
    assert not any("a capture may" in one for one in status(well)["advice"])
    well.add_run(hours_ago(0.2), 3, window_seconds=101.0)
    (advice,) = [one for one in status(well)["advice"] if "a capture may" in one]
    assert "took 101 s" in advice and "only 200 s: raise backup.window_timeout_seconds" in advice


def test_a_database_that_is_too_large_for_the_window_is_advice(host: Sandbox) -> None:
    """17 GB at 85 MB/s take the 200 s that a capture has by default."""
    (host.deploy / "backup/backup.conf").write_text(
        "DB_TYPE='sqlite'\nDB_PATH='/data/storage/tracker/lib/database/tracker.db'\n"
        "BACKUP_RETENTION_DAYS='7'\nBACKUP_COMPRESSION='gzip'\nBACKUP_SCOPE='full'\n"
    )
    file = host.deploy / "storage/tracker/lib/database/tracker.db"
    file.parent.mkdir(parents=True)
    for size, told in ((16_900_000_000, False), (17_200_000_000, True)):
        with file.open("wb") as sparse:
            sparse.truncate(size)
        advice = status(host)["advice"]
        assert any("to copy the database may take 202 s" in one for one in advice) == told, advice


def test_a_destination_that_hangs_does_not_hang_the_status(well: Sandbox) -> None:
    stub = well.stub / "bin"
    stub.mkdir()
    (stub / "head").write_text("#!/bin/sh\nexec sleep 30\n")
    (stub / "head").chmod(0o755)
    well.monkeypatch.setenv("PATH", str(stub), prepend=":")
    well.monkeypatch.setattr(well.package.destination, "PROBE_SECONDS", 0.2)
    asked: list[object] = []
    real = os.statvfs

    def spy(path: Any) -> os.statvfs_result:
        asked.append(path)
        return real(path)

    well.monkeypatch.setattr(os, "statvfs", spy)
    told = status(well)
    assert any("does not answer within 0 s" in one for one in told["problems"])
    assert told["free_bytes"] is None
    assert well.destination not in asked
