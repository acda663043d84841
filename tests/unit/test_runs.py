"""Run manifests: which are ours, what a run records, what it teaches the next, and what list and
status say of them.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unit.sandbox import Sandbox, manifest, mode

SHA256 = "5a" * 32

NOW = datetime.datetime.now(datetime.timezone.utc)


def hours_ago(hours: float) -> str:
    return (NOW - datetime.timedelta(hours=hours)).strftime("%Y%m%d_%H%M%S")


def strangers() -> dict[str, str | bytes]:
    """Files that lie in runs/ and are no run manifests of ours, by name."""
    whole = manifest("20260101_030000", 99)

    def without(key: str) -> str:
        return json.dumps({name: value for name, value in whole.items() if name != key})

    return {
        "empty.json": b"",
        "20260101_030001.json": b"{ torn",
        "20260101_030002.json": b"\xff\xfe",
        "20260101_030003.json": "[]",
        "20260101_030004.json": "null",
        "20260101_030005.json": json.dumps(whole),  # not its name
        "20260101_030006.json": json.dumps({**whole, "id": 20260101030006}),
        "20260101_030007.json": json.dumps(
            {**manifest("20260101_030007", 99), "environment": "staging"}
        ),
        "20260101_030008.json": json.dumps({**manifest("20260101_030008", 99), "sequence": "high"}),
        "20260101_030000.json": without("environment"),
        "notes.txt": "remember the milk",
        ".20260101_030009.json.swp": "",
        "20260101_030010.json.partial": json.dumps(manifest("20260101_030010", 99)),
    }


# Manifests as an older or newer version, a careless hand or a bad disk could leave them: with the
# right id and environment.
HALF_MANIFESTS: dict[str, dict[str, Any]] = {
    "no result": {"result": None},
    "files are no list": {"files": 7},
    "a file that is no object": {"files": ["sqlite/x"]},
    "a file without bytes": {"files": [{"kind": "database", "path": "x", "sha256": ""}]},
    "tables are no object": {"tables": None},
    "an impossible date": {"id": "20269999_999999"},
    "digits of another script": {"id": "٢٠٢٦٠١٠١_٠٣٠٠٠٠"},
}


def put_half_manifest(host: Sandbox, facts: dict[str, Any]) -> None:
    run = manifest(hours_ago(30), 50) | facts
    if run["result"] is None:
        del run["result"]
    (host.destination / f"runs/{run['id']}.json").write_text(json.dumps(run))


# ---------------------------------------------------------------- reading


def test_runs_are_in_order_of_their_sequence_whatever_the_clock_said(host: Sandbox) -> None:
    host.add_run("20360101_030000", 1)
    host.add_run("20260101_030000", 2)
    host.add_run("20250101_030000", 3)
    runs = json.loads(host.call("list", "--json").out)
    assert [run["sequence"] for run in runs] == [1, 2, 3]


def test_files_of_strangers_are_passed_over(host: Sandbox) -> None:
    for name, content in strangers().items():
        (host.destination / "runs" / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    (host.destination / "runs/20260101_030011.json").mkdir()
    host.add_run(hours_ago(1), 1)
    outcome = host.call("list")
    assert outcome.code == 0
    assert hours_ago(1) in outcome.out
    assert "empty.json is not a run manifest of ours and is left alone" in outcome.err
    assert "20260101_030001.json is damaged" in outcome.err
    assert "20260101_030005.json is damaged: its id is 20260101_030000" in outcome.err
    told = host.call("status")
    assert told.code == 1
    damaged = [name for name in strangers() if name.startswith("2026") and name[-6:] == "0.json"]
    for name in (*damaged, "20260101_030001.json", "20260101_030011.json"):
        assert f"{name} " in told.out.splitlines()[-1]
    for name in ("empty.json", "20260101_030007.json", "20260101_030010.json.partial"):
        assert name not in told.out


@pytest.mark.parametrize("command", ["list", "status"])
def test_json_stays_json_beside_files_of_strangers(host: Sandbox, command: str) -> None:
    (host.destination / "runs/20260101_030001.json").write_text("{ torn")
    host.add_run(hours_ago(1), 1)
    outcome = host.call(command, "--json")
    assert outcome.code == (1 if command == "status" else 0)
    assert json.loads(outcome.out)


@pytest.mark.parametrize("facts", HALF_MANIFESTS.values(), ids=HALF_MANIFESTS.keys())
def test_half_a_manifest_is_a_problem_in_status_and_does_not_stop_the_next_run(
    host: Sandbox, facts: dict[str, Any]
) -> None:
    host.add_run(hours_ago(2), 1)
    put_half_manifest(host, facts)
    assert host.call("list").code == 0
    told = host.call("status", "--json")
    if facts.get("id", "").isascii():
        assert told.code == 1
        (problem,) = json.loads(told.out)["problems"]
        assert "is damaged" in problem and "restore it from a copy, or remove it" in problem
    else:
        assert told.code == 0
    assert expected(host) == (["torrents"], 12)
    assert record(host).code == 0
    assert host.call("prune").code == 0


def test_a_name_that_is_not_utf8_stops_nothing(host: Sandbox) -> None:
    host.add_run(hours_ago(1), 1)
    Path(os.fsdecode(os.fsencode(host.destination) + b"/runs/\xff.json")).write_text("{")
    done = subprocess.run(
        [sys.executable, str(host.bundle / "host/tracker-backup"), "status"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


# ---------------------------------------------------------------- what the next run expects


def expected(host: Sandbox, scope: str = "full") -> tuple[list[str], int] | None:
    """Tables and bytes of the run that the next one is compared with."""
    found = host.package.host.Host.read(host.config)
    last = host.package.runs.newest_backup(host.package.runs.read_runs(found), scope=scope)
    return (list(last.tables), last.bytes) if last else None


def test_a_first_run_expects_nothing(host: Sandbox) -> None:
    assert expected(host) is None


def test_a_run_expects_what_the_last_good_one_had(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1, tables={"old": 1})
    host.add_run(hours_ago(2), 2, tables={"torrents": 1, "it's a table": 2, "ключ": 0})
    host.add_run(hours_ago(1), 3, result="failed", tables={})
    assert expected(host) == (["torrents", "it's a table", "ключ"], 12)


def test_a_run_expects_what_the_last_good_one_of_its_scope_had(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1, tables={"torrents": 1, "old": 1}, kinds=("database",))
    host.add_run(hours_ago(2), 2, tables={"torrents": 1}, scope="exclude-statistics")
    assert expected(host) == (["torrents", "old"], 6)
    assert expected(host, "exclude-statistics") == (["torrents"], 12)
    conf = host.deploy / "backup/backup.conf"
    conf.write_text(
        conf.read_text().replace("BACKUP_SCOPE='full'", "BACKUP_SCOPE='exclude-statistics'")
    )
    assert record(host).code == 0
    assert recorded(host)["scope"] == "exclude-statistics"


def test_list_names_the_scope(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1)
    host.add_run(hours_ago(2), 2, scope="exclude-statistics")
    first, second = host.call("list").out.splitlines()
    assert first.endswith(" full")
    assert second.endswith(" exclude-statistics")


def test_list_and_status_name_what_an_incomplete_run_lacks(host: Sandbox) -> None:
    host.add_run(hours_ago(2), 1)
    host.add_run(hours_ago(1), 2, result="incomplete", kinds=("database",), missing=["caddy"])
    assert host.call("list").out.splitlines()[1].endswith("full, without caddy")
    outcome = host.call("status", "--json")
    told = json.loads(outcome.out)
    assert (outcome.code, told["ok"], told["problems"]) == (
        1,
        False,
        ["the last run is incomplete, it lacks caddy"],
    )
    assert told["last_run"]["missing"] == ["caddy"]
    assert told["last_success"]["id"] == hours_ago(2)
    host.add_run(hours_ago(0), 3)
    assert host.call("status").code == 0


def test_latest_is_the_newest_success_and_an_id_may_be_an_incomplete_run(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1)
    host.add_run(hours_ago(2), 2, result="incomplete", kinds=("database",), missing=["caddy"])
    host.add_run(hours_ago(1), 3, result="failed")
    assert f"restore of {hours_ago(3)}" in host.call("restore", "latest", "--dry-run").out
    outcome = host.call("restore", hours_ago(2), "--dry-run")
    assert outcome.code == 0
    assert f"warning: {hours_ago(2)} is incomplete, it lacks caddy" in outcome.out
    assert "there is no successful run" in host.call("restore", hours_ago(1), "--dry-run").err


def test_a_run_expects_the_tables_of_an_incomplete_one(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1, tables={"old": 1})
    host.add_run(
        hours_ago(2), 2, result="incomplete", kinds=("database",), missing=["x"], tables={"new": 1}
    )
    assert expected(host) == (["new"], 6)


# ---------------------------------------------------------------- record


def record(host: Sandbox, run_id: str = "", **facts: Any) -> Any:
    """Records a run with every field."""
    run_id = run_id or hours_ago(0)
    known = {
        "id": run_id,
        "started": "2026-01-01T03:00:00Z",
        "quiesce": "stop",
        "window_seconds": 1.25,
        "warnings": ["of the host", "optional path missing: /data/x"],
        "found": {
            "tables": {"torrents": 3, "it's a table": 1},
            "milliseconds": {"check": 250},
            "tools": {"sqlite3": "3.46.1"},
            "paths": [".env"],
        },
        "files": [
            file("database", f"mysql/mysql_{run_id}.sql.gz", 7),
            file("config", f"config/config_{run_id}.tar.gz", 5),
        ],
        "result": "success",
        "code": 0,
        "reason": "",
        **facts,
    }
    return host.call("record", stdin=json.dumps(known))


def file(kind: str, path: str, size: int) -> dict[str, Any]:
    return {"kind": kind, "path": path, "bytes": size, "sha256": SHA256}


def recorded(host: Sandbox, run_id: str | None = None) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(
        (host.destination / f"runs/{run_id or hours_ago(0)}.json").read_text()
    )
    return run


def test_a_success_is_recorded_with_all_that_is_known_of_it(host: Sandbox) -> None:
    host.add_run(hours_ago(9), 41)
    assert record(host).code == 0
    run = recorded(host)
    assert (run["format"], run["id"], run["sequence"], run["environment"]) == (
        2,
        hours_ago(0),
        42,
        "production",
    )
    assert (run["result"], run["exit_code"], run["reason"]) == ("success", 0, "")
    assert (run["strategy"], run["quiesce"], run["scope"], run["window_seconds"]) == (
        "maintenance-window",
        "stop",
        "full",
        1.25,
    )
    assert run["files"] == [
        file("database", f"mysql/mysql_{hours_ago(0)}.sql.gz", 7),
        file("config", f"config/config_{hours_ago(0)}.tar.gz", 5),
    ]
    assert run["tables"] == {"torrents": 3, "it's a table": 1}
    assert run["durations"] == {"check": 0.25}
    assert run["warnings"] == ["of the host", "optional path missing: /data/x"]
    assert run["tools"] == {"sqlite3": "3.46.1"}
    assert run["images"] == {"tracker": "sha256:feed"}
    assert (run["driver"], run["missing"], run["paths"]) == ("mysql", [], [".env"])
    assert run["finished"].endswith("Z")


def test_owners_and_modes_of_mounted_directories_are_recorded(host: Sandbox) -> None:
    mounted = host.deploy / "storage/tracker/etc"
    mounted.chmod(0o2750)
    record(host)
    assert recorded(host)["directories"]["storage/tracker/etc"] == {
        "uid": mounted.stat().st_uid,
        "gid": mounted.stat().st_gid,
        "mode": "2750",
    }


def test_a_failure_is_recorded_without_files(host: Sandbox) -> None:
    reason = "ended by a signal = really"
    assert record(host, result="failed", code=143, reason=reason).code == 0
    run = recorded(host)
    assert (run["result"], run["exit_code"], run["reason"]) == ("failed", 143, reason)
    assert (run["files"], run["driver"]) == ([], "")


def test_a_failure_is_recorded_although_docker_and_staging_are_gone(host: Sandbox) -> None:
    (host.stub / "hooks/ps").write_text("leave(1)")
    shutil.rmtree(host.deploy / "storage/backup-staging", ignore_errors=True)
    assert record(host, result="failed", code=1, reason="Docker is away", found={}).code == 0
    assert recorded(host)["reason"] == "Docker is away"


def test_a_success_without_files_is_refused(host: Sandbox) -> None:
    assert record(host, files=[]).code == 1
    assert not list((host.destination / "runs").iterdir())


def test_the_sequence_counts_on_after_a_clock_that_jumped(host: Sandbox) -> None:
    host.add_run("20360101_030000", 7)
    host.add_run(hours_ago(5), 6)
    record(host)
    assert recorded(host)["sequence"] == 8


def test_a_run_manifest_is_0600_and_leaves_no_partial_file(host: Sandbox) -> None:
    record(host)
    (path,) = (host.destination / "runs").iterdir()
    assert mode(path) == "0600"


def test_a_reason_that_is_not_utf8_is_recorded(host: Sandbox) -> None:
    assert record(host, result="failed", code=1, reason="bad name: \udcff").code == 0
    assert recorded(host)["reason"].startswith("bad name: ")


def test_a_run_manifest_is_written_before_it_has_its_name(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    rename, fsync = Path.rename, os.fsync

    def spied_fsync(descriptor: int) -> None:
        order.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def spied_rename(path: Path, target: Path) -> Path:
        order.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(Path, "rename", spied_rename)
    record(host, run_id="20260101_030000")
    name = "20260101_030000.json"
    assert order == [f"fsync {name}.partial", f"rename {name}.partial {name}", "fsync runs"]


# ---------------------------------------------------------------- list and status


def test_list_of_no_runs_says_so(host: Sandbox) -> None:
    assert "no run yet" in host.call("list").out
    assert json.loads(host.call("list", "--json").out) == []


def test_list_shows_size_of_successes_and_reasons_of_failures(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1)
    host.add_run(hours_ago(2), 2, result="failed")
    first, second = host.call("list").out.splitlines()
    assert hours_ago(3) in first
    assert "success" in first
    assert "12 bytes" in first
    assert "failed" in second
    assert "disk full" in second


def test_list_and_status_change_nothing(host: Sandbox) -> None:
    host.add_run(hours_ago(3), 1)
    before = {
        path: path.lstat().st_mtime_ns
        for path in host.path.rglob("*")
        if path != host.stub / "calls"
    }
    host.call("list")
    host.call("status")
    assert {
        path: path.lstat().st_mtime_ns
        for path in host.path.rglob("*")
        if path != host.stub / "calls"
    } == before


def test_status_without_a_success_fails(host: Sandbox) -> None:
    host.add_run(hours_ago(1), 1, result="failed")
    outcome = host.call("status")
    assert outcome.code == 1
    assert "no successful backup" in outcome.out
    assert "disk full" in outcome.out


def test_status_of_a_fresh_success_is_well(host: Sandbox) -> None:
    host.add_run(hours_ago(1), 1)
    outcome = host.call("status")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "OK"


def test_a_failed_run_after_a_fresh_success_is_shown(host: Sandbox) -> None:
    host.add_run(hours_ago(2), 1)
    host.add_run(hours_ago(1), 2, result="failed")
    outcome = host.call("status")
    assert outcome.code == 1
    assert f"the last run, {hours_ago(1)}, failed with exit code 1: disk full" in outcome.out


@pytest.mark.parametrize(("hours", "code"), [(47.5, 0), (48.5, 1)])
def test_status_fails_when_the_last_success_is_older_than_twice_the_longest_interval(
    host: Sandbox, hours: float, code: int
) -> None:
    host.add_run(hours_ago(hours), 1)
    outcome = host.call("status")
    assert outcome.code == code
    assert ("hours old" in outcome.out) == bool(code)


def test_status_fails_when_the_last_success_lies_in_the_future(host: Sandbox) -> None:
    host.add_run(hours_ago(-10 * 365 * 24), 1)
    outcome = host.call("status")
    assert outcome.code == 1
    assert "hours in the future: the host's clock was wrong then, or is now" in outcome.out


def test_the_json_of_status_says_what_monitoring_needs(host: Sandbox) -> None:
    host.add_run(hours_ago(4), 1, result="failed")
    host.add_run(hours_ago(3), 2)
    outcome = host.call("status", "--json")
    status = json.loads(outcome.out)
    assert outcome.code == 0
    assert (status["environment"], status["ok"], status["problems"], status["schedule"]) == (
        "production",
        True,
        [],
        "0 3 * * *",
    )
    assert status["last_run"]["id"] == hours_ago(3)
    assert status["last_run"]["result"] == "success"
    assert status["last_success"]["id"] == hours_ago(3)
    assert 3 * 3600 <= status["age_seconds"] < 4 * 3600  # a suite is slow
    assert status["age_limit_seconds"] == 2 * 86400
    assert status["runs"] == 2
    assert status["bytes"] == 12
    assert status["free_bytes"] > 0


def test_status_tells_of_a_hold_and_of_what_is_unfinished(host: Sandbox) -> None:
    host.add_run(hours_ago(1), 1)
    (host.state / "hold").touch()
    (host.state / "window").touch()
    status = json.loads(host.call("status", "--json").out)
    assert (status["hold"], status["unfinished"]) == (True, ["window"])
    assert "ON HOLD" in host.call("status").out


DAYS, MONTHS, WEEKDAYS = (
    ",".join(map(str, numbers)) for numbers in (range(1, 32), range(1, 13), range(7))
)


@pytest.mark.parametrize(
    ("calendar", "after", "expected"),
    [
        (f"0 3 {DAYS} {MONTHS} {WEEKDAYS} both", "2026-01-01 02:59", "2026-01-01 03:00"),
        (f"0 3 {DAYS} {MONTHS} {WEEKDAYS} both", "2026-01-01 03:00", "2026-01-02 03:00"),
        (f"0,30 3,15 {DAYS} {MONTHS} {WEEKDAYS} both", "2026-12-31 15:30", "2027-01-01 03:00"),
        (f"0 3 {DAYS} {MONTHS} 0 both", "2026-11-21 12:00", "2026-11-22 03:00"),  # a Sunday
        (
            f"0 3 13 {MONTHS} 5 either",
            "2026-11-13 03:00",
            "2026-11-20 03:00",
        ),  # the 13th or a Friday
        (f"0 3 31 2,4,5 {WEEKDAYS} both", "2026-01-01 00:00", "2026-05-31 03:00"),
        (f"0 3 29 2 {WEEKDAYS} both", "2026-01-01 00:00", "2028-02-29 03:00"),
        (f"0 3 31 2 {WEEKDAYS} both", "2026-01-01 00:00", None),
    ],
)
def test_the_next_run_is_the_next_minute_of_the_calendar(
    host: Sandbox, calendar: str, after: str, expected: str | None
) -> None:
    found = host.package.status.next_run(calendar, datetime.datetime.fromisoformat(after))
    assert (found.isoformat(" ", "minutes") if found else None) == expected


def test_the_json_of_a_failing_status_is_whole_and_the_exit_code_1(host: Sandbox) -> None:
    outcome = host.call("status", "--json")
    assert outcome.code == 1
    status = json.loads(outcome.out)
    assert (status["ok"], status["last_run"], status["last_success"], status["age_seconds"]) == (
        False,
        None,
        None,
        None,
    )
    assert status["problems"]


def test_steps_of_the_same_name_add_up(host: Sandbox) -> None:
    run = host.package.run.Run(dry_run=False)
    answer = host.package.protocol.Answer
    run.note(answer(milliseconds={"check": 40000, "compress": 5000}, tools={"sqlite3": "3.46.1"}))
    run.note(answer(milliseconds={"check": 7}))
    assert run.found.milliseconds == {"check": 40007, "compress": 5000}
    assert run.found.tools == {"sqlite3": "3.46.1"}
