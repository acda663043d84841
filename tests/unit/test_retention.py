"""What retention removes, and what it must never remove."""

from __future__ import annotations

import datetime
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unit.sandbox import Sandbox, manifest

NOW = datetime.datetime.now(datetime.timezone.utc)


def run_id(moment: datetime.datetime) -> str:
    return moment.strftime("%Y%m%d_%H%M%S")


def days_ago(days: float) -> str:
    return run_id(NOW - datetime.timedelta(days=days))


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Runs in the order of their sequence, with gaps, clock jumps, failures, and runs that added
    one kind only.
    """
    ages = draw(st.lists(st.integers(-4000, 4000), unique=True, max_size=12))
    if draw(st.booleans()):
        ages.sort(reverse=True)
    sequence, runs = 0, []
    for age in ages:
        sequence += draw(st.integers(1, 3))
        result = draw(st.sampled_from(["success", "incomplete", "failed"]))
        kinds = (
            draw(st.sampled_from([("database", "config"), ("database",), ("config",)]))
            if result != "failed"
            else ()
        )
        run = manifest(days_ago(age / 10), sequence, result=result, kinds=kinds)
        if result == "incomplete":
            run["missing"] = ["caddy"]
        if draw(st.booleans()):
            use_mysql(run)
        runs.append(run)
    return runs


def use_mysql(run: dict[str, Any]) -> None:
    for file in run["files"]:
        if file["kind"] == "database":
            file["path"] = f"mysql/mysql_{run['id']}.sql.gz"


def expired(tool: ModuleType, runs: list[dict[str, Any]], *more: Any) -> Any:
    """What the program says of these run manifests."""
    decode = tool.documents.RunManifest.decode
    return tool.retention.expired([decode(json.dumps(run)) for run in runs], *more)


def newest_success(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Which `latest` is, and what is verified."""
    return next((run for run in reversed(runs) if run["result"] == "success"), None)


def driver_of(run: dict[str, Any]) -> str:
    return next((path.split("/")[0] for path in files_of(run, "database")), "")


def files_of(run: dict[str, Any], kind: str | None = None) -> set[str]:
    return {file["path"] for file in run["files"] if kind in (None, file["kind"])}


@given(runs=histories(), days=st.integers(1, 3650))
@settings(max_examples=300, deadline=None)
def test_retention_keeps_what_it_must(
    tool: ModuleType, runs: list[dict[str, Any]], days: int
) -> None:
    files, ids, _kept = expired(tool, runs, days)
    assert len(files) == len(set(files))
    assert len(ids) == len(set(ids))
    by_id = {run["id"]: run for run in runs}
    owner = {path: run for run in runs for path in files_of(run)}
    assert set(files) <= set(owner), "it removes what no run manifest names"
    assert set(ids) <= set(by_id)

    newest = runs[-1] if runs else None
    if newest is None or newest["result"] == "failed":
        assert (files, ids) == ([], []), "only a run's own backup makes older ones superfluous"
        return
    if newest["result"] == "incomplete":
        assert not any(path.startswith("config/") for path in files)
    limit = tool.runs.run_time(newest["id"]) - datetime.timedelta(days=days)
    assert not files_of(newest) & set(files)
    assert newest["id"] not in ids
    for path in files:
        assert tool.runs.run_time(owner[path]["id"]) < limit, "it removes what is inside the period"
    for identifier in ids:
        assert tool.runs.run_time(identifier) < limit
        assert files_of(by_id[identifier]) <= set(files), (
            "a run manifest goes, and files of it stay"
        )
    for kind in ("database", "config"):
        if not files_of(newest, kind):
            assert not {path for run in runs for path in files_of(run, kind)} & set(files), (
                "a kind that this run did not add to"
            )
    if success := newest_success(runs):
        assert not files_of(success) & set(files), "what `latest` restores is removed"
        assert success["id"] not in ids
    for directory in ("sqlite", "mysql", "config"):
        had = [path for path in owner if path.startswith(f"{directory}/")]
        assert not had or had[-1] not in files, "the last of a kind or of a driver is removed"
    complete = [run for run in runs if run["result"] == "success" and files_of(run, "config")]
    assert not complete or not files_of(complete[-1], "config") & set(files), (
        "the last complete configuration is removed"
    )


@given(runs=histories(), days=st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_retention_removes_everything_that_is_due(
    tool: ModuleType, runs: list[dict[str, Any]], days: int
) -> None:
    if not runs or runs[-1]["result"] == "failed":
        return
    success = newest_success(runs)
    last = {driver_of(run): f"driver {run['id']}" for run in runs}
    files, ids, kept = expired(tool, runs, days, [last.pop("sqlite", "")])
    assert kept.keys() <= {last.get("mysql")}
    limit = tool.runs.run_time(runs[-1]["id"]) - datetime.timedelta(days=days)
    due = {
        path
        for run in runs[:-1]
        if run is not success
        for kind in ("database", "config")
        for path in files_of(run, kind)
        if tool.runs.run_time(run["id"]) < limit and files_of(runs[-1], kind)
        if kind == "database" or runs[-1]["result"] == "success"
        if kind == "config" or f"driver {run['id']}" != last.get("mysql")
    }
    assert set(files) == due
    left = [run for run in runs if run["id"] not in ids]
    assert not (set(expired(tool, left, days)[0]) - set(files)), "a second time finds more"


def test_a_run_exactly_as_old_as_the_retention_stays(tool: ModuleType) -> None:
    runs = [
        manifest("20260101_030000", 1),
        manifest("20260101_030001", 2),
        manifest("20260108_030001", 3),
    ]
    assert expired(tool, runs, 7)[1] == ["20260101_030000"]


# ---------------------------------------------------------------- the command


def test_prune_removes_what_is_too_old_and_says_so(host: Sandbox) -> None:
    host.add_run(days_ago(9), 1)
    host.add_run(days_ago(8), 2, result="failed")
    for sequence in range(3, 11):
        host.add_run(days_ago(10 - sequence), sequence)
    before = host.files()
    outcome = host.call("prune")
    assert outcome.code == 0
    gone = {
        f"sqlite/sqlite_{days_ago(9)}.db.gz",
        f"config/config_{days_ago(9)}.tar.gz",
        f"runs/{days_ago(9)}.json",
        f"runs/{days_ago(8)}.json",
    }
    assert before - host.files() == gone
    for name in gone:
        assert name in outcome.out
    assert host.call("prune").out == ""


def test_a_large_backup_shrinks_under_another_name_before_it_is_removed(host: Sandbox) -> None:
    for sequence, age in enumerate(range(8, -1, -1), 1):
        host.add_run(days_ago(age), sequence)
    large = host.destination / f"sqlite/sqlite_{days_ago(8)}.db.gz"
    large.write_bytes(os.urandom(1 << 20))
    names, truncate = [], os.ftruncate

    def shrink(descriptor: int, size: int) -> None:
        names.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        truncate(descriptor, size)

    host.monkeypatch.setattr(host.package.publish, "SHRINK_BYTES", 1 << 18)
    host.monkeypatch.setattr(host.package.publish.os, "ftruncate", shrink)
    assert host.call("prune").code == 0
    assert set(names) == {f"{large}.partial"}
    assert len(names) >= 3
    assert not list(host.destination.rglob(f"*{days_ago(8)}*"))


def test_prune_goes_by_the_name_and_not_by_the_time_of_the_file(host: Sandbox) -> None:
    host.add_run(days_ago(20), 1)
    for sequence in range(2, 12):
        host.add_run(days_ago(11 - sequence), sequence)
    for path in host.destination.rglob("*"):
        os.utime(path, (0, 0))
    os.utime(host.destination / f"config/config_{days_ago(20)}.tar.gz")
    before = host.files()
    assert host.call("acknowledge").code == 0  # of the pause between the first and the second
    assert host.call("prune").code == 0
    assert {
        name.partition("/")[2][-22:-7]
        for name in before - host.files()
        if name.startswith("config/")
    } == {f"config_{days_ago(age)}.tar.gz"[-22:-7] for age in (20, 9, 8)}


def test_prune_removes_nothing_of_a_stranger(host: Sandbox) -> None:
    strangers = [
        f"sqlite/sqlite_{days_ago(100)}.db.gz",  # no run manifest names it
        "config/notes.txt",
        f"runs/{days_ago(99)}.txt",
        "README",
    ]
    for name in strangers:
        (host.destination / name).write_text("precious")
    host.add_run(days_ago(98), 1, environment="staging")
    (host.destination / f"runs/{days_ago(97)}.json").write_text("{ torn")
    for sequence in range(2, 14):
        host.add_run(days_ago(14 - sequence), sequence)
    assert host.call("prune").code == 0
    left = host.files()
    assert {
        *strangers,
        f"runs/{days_ago(98)}.json",
        f"config/config_{days_ago(98)}.tar.gz",
        f"runs/{days_ago(97)}.json",
    } <= left
    assert f"config/config_{days_ago(12)}.tar.gz" not in left


@pytest.mark.parametrize("days", ["0", "-1", "", "7 days", "1e3"])
def test_a_retention_that_is_no_number_of_days_removes_nothing(host: Sandbox, days: str) -> None:
    conf = host.deploy / "backup/backup.conf"
    conf.write_text(
        conf.read_text().replace("BACKUP_RETENTION_DAYS='7'", f"BACKUP_RETENTION_DAYS='{days}'")
    )
    host.add_run(days_ago(100), 1)
    host.add_run(days_ago(1), 2)
    before = host.files()
    outcome = host.call("prune")
    assert outcome.code == 2
    assert "BACKUP_RETENTION_DAYS" in outcome.err
    assert host.files() == before


def test_a_retention_that_is_not_configured_removes_nothing(host: Sandbox) -> None:
    conf = host.deploy / "backup/backup.conf"
    conf.write_text(conf.read_text().replace("BACKUP_RETENTION_DAYS=", "BACKUP_RETENTION_DAY="))
    host.add_run(days_ago(100), 1)
    host.add_run(days_ago(1), 2)
    before = host.files()
    outcome = host.call("prune")
    assert outcome.code == 2
    assert "BACKUP_RETENTION_DAYS" in outcome.err
    assert host.files() == before


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(runs=histories())
def test_prune_on_disk_keeps_a_whole_newest_backup_and_every_stranger(
    host: Sandbox, runs: list[dict[str, Any]]
) -> None:
    for path in [
        *host.destination.rglob("*.*z"),
        *host.destination.glob("runs/*.json"),
        host.state / "retention.json",
    ]:
        path.unlink(missing_ok=True)
    stranger = host.destination / f"sqlite/sqlite_{days_ago(399.95)}.db.gz"
    stranger.write_text("precious")
    for run in runs:
        host.add_run(
            run["id"],
            run["sequence"],
            **{key: run[key] for key in ("result", "files", "missing") if key in run},
        )
    before = host.files()
    assert host.call("prune").code == 0
    removed = before - host.files()
    assert stranger.exists()
    if any(run["id"] > run_id(NOW + datetime.timedelta(minutes=5)) for run in runs):
        assert not removed, "retention while a run lies in the future"
    for directory in ("sqlite", "mysql", "config"):
        had = [path for run in runs for path in files_of(run) if path.startswith(directory)]
        assert not had or had[-1] not in removed, "the newest of a kind is removed"


# ---------------------------------------------------------------- suspension


def prunable(host: Sandbox) -> None:
    for sequence in range(1, 14):
        host.add_run(days_ago(14 - sequence), sequence, tables={"torrents": 1000, "keys": 10})


def test_a_run_in_the_future_suspends_retention_until_it_is_acknowledged(host: Sandbox) -> None:
    prunable(host)
    host.add_run(days_ago(-3650), 14)
    host.add_run(days_ago(0), 15)
    before = host.files()
    outcome = host.call("prune")
    assert "suspended" in outcome.out
    assert days_ago(-3650) in outcome.out
    assert host.files() == before
    assert host.call("acknowledge").code == 0
    host.add_run(days_ago(-0.0001), 16)
    host.call("prune")
    left = host.files()
    assert f"runs/{days_ago(-3650)}.json" in left
    assert f"runs/{days_ago(1)}.json" in left
    assert f"runs/{days_ago(13)}.json" not in left


def test_half_the_rows_lost_suspend_retention_and_stay_pending_after_the_next_run(
    host: Sandbox,
) -> None:
    prunable(host)
    host.add_run(days_ago(0.5), 14, tables={"torrents": 499, "keys": 10})
    before = host.files()
    assert "torrents" in host.call("prune").out
    host.add_run(days_ago(0.2), 15, tables={"torrents": 499, "keys": 10})
    assert "suspended" in host.call("prune").out
    assert before <= host.files()
    assert host.call("acknowledge").code == 0
    assert "suspended" not in host.call("prune").out
    assert not before <= host.files()


def test_a_table_that_is_gone_suspends_retention(host: Sandbox) -> None:
    prunable(host)
    host.add_run(days_ago(0.5), 14, tables={"torrents": 1000})
    before = host.files()
    assert "keys" in host.call("prune").out
    assert host.files() == before


def test_a_few_rows_less_do_not_suspend_retention(host: Sandbox) -> None:
    prunable(host)
    host.add_run(days_ago(0.5), 14, tables={"torrents": 500, "keys": 0})
    assert "suspended" not in host.call("prune").out


@pytest.mark.parametrize(
    ("before", "now", "suspicious"),
    [
        (199, 99, True),
        (198, 99, False),
        (199, 100, False),
        (100, 0, True),
        (99, 0, False),
        (10**9, 10**9 // 2 - 1, True),
        (10**9, 10**9 // 2, False),
        (3, None, True),
        (0, None, True),
        (0, 0, False),
    ],
)
def test_a_table_is_suspicious_when_gone_or_with_less_than_half_and_100_rows_fewer(
    host: Sandbox, before: int, now: int | None, suspicious: bool
) -> None:
    host.add_run(days_ago(0.5), 1, tables={"torrents": before})
    host.add_run(days_ago(0.4), 2, tables={} if now is None else {"torrents": now})
    assert ("suspended" in host.call("prune").out) == suspicious


def test_a_table_that_loses_a_little_in_each_run_is_suspicious_in_the_end(host: Sandbox) -> None:
    """Half of the rows in each of ten runs, from 100000 to 98. No loss alone is suspicious."""
    rows = [100_000]
    while rows[-1] > 100:
        rows.append((rows[-1] + 1) // 2)
    for sequence, count in enumerate(rows):
        host.add_run(days_ago(10.5 - sequence), sequence + 1, tables={"torrents": count})
    before = host.files()
    assert f"has 25000 rows in {days_ago(8.5)} and had 100000" in host.call("prune").out
    assert host.files() == before


def test_a_loss_is_told_once_and_acknowledged_for_good(host: Sandbox) -> None:
    """The runs after it are compared with it, and not with the large ones before it."""
    host.add_run(days_ago(6), 1, tables={"torrents": 1000, "keys": 1000})
    for sequence in range(2, 6):
        host.add_run(days_ago(6 - sequence), sequence, tables={"torrents": 400, "keys": 1000})
    assert len(host.call("acknowledge").changes) == 1
    assert "suspended" not in host.call("prune").out
    host.add_run(days_ago(0.5), 6, tables={"torrents": 199, "keys": 1000})
    assert f"had 400 in {days_ago(1)}" in host.call("prune").out


def test_many_reasons_are_one_line_of_the_log(host: Sandbox) -> None:
    tables = {f"table {number}": 1000 for number in range(90)}
    host.add_run(days_ago(2), 1, tables=tables)
    host.add_run(days_ago(1), 2, tables=dict.fromkeys(tables, 0))
    (line,) = host.call("prune").out.splitlines()
    assert "table 0 has 0 rows" in line and "(and 89 more reasons)" in line
    shown = host.call("status").out.splitlines()
    assert len([one for one in shown if one.startswith("  suspended")]) == 11
    assert len(json.loads(host.call("status", "--json").out)["retention_suspended"]) == 90


def test_the_oldest_acknowledgements_are_forgotten_first(host: Sandbox) -> None:
    keys = [f"verify {10**5 - number}" for number in range(10_001)]  # the newest is the least
    (host.state / "retention.json").write_text(
        json.dumps({"format": 1, "acknowledged": keys, "pending": {}})
    )
    host.add_run(days_ago(2), 1, tables={"a": 1000})
    host.add_run(days_ago(1), 2, tables={"a": 0})
    host.call("acknowledge")
    state = json.loads((host.state / "retention.json").read_text())
    assert state["acknowledged"] == [*keys[1:], f"rows {days_ago(1)} a"]


def test_leaving_statistics_out_is_not_taken_for_lost_rows(host: Sandbox) -> None:
    prunable(host)
    host.add_run(
        days_ago(0.5), 14, tables={"torrents": 300, "keys": 10}, scope="exclude-statistics"
    )
    assert "suspended" not in host.call("prune").out
    host.add_run(days_ago(0.4), 15, tables={"torrents": 1000, "keys": 10})
    assert "suspended" not in host.call("prune").out
    host.add_run(days_ago(0.3), 16, tables={"torrents": 1, "keys": 10}, scope="exclude-statistics")
    assert (
        f"the table torrents has 1 rows in {days_ago(0.3)} and had 300 in {days_ago(0.5)}"
        in host.call("prune").out
    )


def test_retention_removes_both_dumps_of_a_run(host: Sandbox) -> None:
    prunable(host)
    dumps = [f"mysql/mysql_{days_ago(20)}.sql.gz", f"mysql/mysql_{days_ago(20)}.torrents.sql.gz"]
    files = [{"kind": "database", "path": path, "bytes": 6, "sha256": "00" * 32} for path in dumps]
    host.add_run(days_ago(20), 0, files=files, scope="exclude-statistics")
    (host.destination / "mysql").mkdir(exist_ok=True)
    for path in dumps:
        (host.destination / path).write_text("packed")
    # An acknowledgement lets go of what retention keeps: here the last backup of MySQL.
    assert host.call("acknowledge").code == 0  # of the pause after it
    assert host.call("prune").code == 0
    assert not {*dumps, f"runs/{days_ago(20)}.json"} & host.files()


def test_nothing_to_acknowledge_is_said(host: Sandbox) -> None:
    outcome = host.call("acknowledge")
    assert (outcome.code, outcome.changes) == (0, [])


def test_an_incomplete_run_removes_old_databases_and_no_configuration(host: Sandbox) -> None:
    prunable(host)
    host.add_run(
        days_ago(0),
        14,
        result="incomplete",
        kinds=("database", "config"),
        missing=["caddy"],
        tables={"torrents": 1000, "keys": 10},
    )
    before = host.files()
    assert host.call("prune").code == 0
    assert {name.partition("/")[0] for name in before - host.files()} == {"sqlite"}
    host.add_run(days_ago(-0.0001), 15, tables={"torrents": 1000, "keys": 10})
    assert host.call("prune").code == 0
    assert f"config/config_{days_ago(8)}.tar.gz" not in host.files()
    assert f"runs/{days_ago(8)}.json" not in host.files()


def test_the_newest_success_stays_whole_while_every_run_since_is_incomplete(host: Sandbox) -> None:
    for sequence in range(1, 20):
        run = {} if sequence < 4 else {"result": "incomplete", "missing": ["caddy"]}
        kinds = ("database", "config")
        host.add_run(days_ago(20 - sequence), sequence, kinds=kinds, **run)
    assert host.call("prune").code == 0
    left = host.files()
    assert f"sqlite/sqlite_{days_ago(18)}.db.gz" not in left
    success = f"sqlite/sqlite_{days_ago(17)}.db.gz"
    assert {success, f"config/config_{days_ago(17)}.tar.gz"} <= left
    assert f"restore of {days_ago(17)}" in host.call("restore", "latest", "--dry-run").out


def test_changing_tables_cannot_keep_an_acknowledgement_from_being_written(host: Sandbox) -> None:
    """A service fills its database with other tables before each run."""
    for sequence in range(1, 14):
        tables = {f"{sequence} {number}": 1 for number in range(9_000)}
        host.add_run(days_ago(14 - sequence), sequence, tables=tables)
    assert "suspended" in host.call("prune").out
    assert host.call("acknowledge").code == 0
    assert "suspended" not in host.call("prune").out
    (host.state / "retention.json").write_text(
        json.dumps({"format": 1, "acknowledged": ["old"] * 50_000, "pending": {}})
    )
    assert host.call("acknowledge").code == 0
    state = json.loads((host.state / "retention.json").read_text())
    assert len(state["acknowledged"]) < 30_000
    assert "suspended" not in host.call("prune").out


def test_the_rows_of_an_incomplete_run_count(host: Sandbox) -> None:
    prunable(host)
    facts: dict[str, Any] = {"result": "incomplete", "kinds": ("database",), "missing": ["caddy"]}
    host.add_run(days_ago(0.5), 14, tables={"torrents": 9, "keys": 10}, **facts)
    assert "torrents has 9 rows" in host.call("prune").out


def test_the_last_backup_of_another_driver_is_kept_until_it_is_acknowledged(host: Sandbox) -> None:
    last = days_ago(9)
    for sequence in range(1, 14):
        run = manifest(days_ago(14 - sequence), sequence)
        if sequence > 4:
            use_mysql(run)
        host.add_run(run["id"], sequence, files=run["files"])
    drivers = [run["driver"] for run in json.loads(host.call("list", "--json").out)]
    assert drivers == ["sqlite"] * 4 + ["mysql"] * 9
    outcome = host.call("prune")
    kept = f"{days_ago(10)} is the last backup of sqlite"
    assert f"warning: {kept} and is kept until `tracker-backup acknowledge`" in outcome.out
    left = {name for name in host.files() if name.startswith("sqlite/")}
    assert left == {f"sqlite/sqlite_{days_ago(10)}.db.gz"}
    assert f"config/config_{days_ago(10)}.tar.gz" not in host.files()
    assert f"runs/{days_ago(10)}.json" in host.files()
    assert f"mysql/mysql_{last}.sql.gz" not in host.files()
    status = host.call("status")
    assert (status.code, f"kept        {kept}" in status.out) == (0, True)
    assert f"changed: acknowledged: {kept}" in host.call("acknowledge").out
    assert host.call("prune").code == 0
    assert not {name for name in host.files() if days_ago(10) in name}


def test_an_old_driver_within_the_period_is_not_to_be_acknowledged(host: Sandbox) -> None:
    host.add_run(days_ago(2), 1)
    run = manifest(days_ago(1), 2)
    use_mysql(run)
    host.add_run(days_ago(1), 2, files=run["files"], tables={})
    assert host.call("prune").out == ""
    assert "not suspended" in host.call("acknowledge").out


def test_the_leftovers_of_dead_runs_go_by_the_time_in_their_name(host: Sandbox) -> None:
    prunable(host)
    names = [f"sqlite_{days_ago(age)}.db.gz" for age in (9, 8.5, 6)] + ["notes.txt"]
    (host.destination / "leftover").mkdir()
    for name in names:
        (host.destination / "leftover" / name).write_text("whole")
    (host.state / "retention.json").write_text("")
    assert host.call("prune").code == 0
    left = {name for name in host.files() if name.startswith("leftover/")}
    assert left == {f"leftover/{name}" for name in names}, "retention is suspended"
    assert host.call("acknowledge").code == 0
    assert host.call("prune").code == 0
    left = {name for name in host.files() if name.startswith("leftover/")}
    assert left == {f"leftover/{name}" for name in names[2:]}


# ---------------------------------------------------------------- a damaged state


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"acknowledged": []}', "{ torn"])
def test_retention_stays_suspended_while_its_state_is_damaged(host: Sandbox, content: str) -> None:
    prunable(host)
    path = host.state / "retention.json"
    path.write_text(content)
    before = host.files()
    outcome = host.call("prune")
    assert outcome.code == 0
    assert f"retention is suspended, nothing is removed: {path} is damaged" in outcome.out
    assert (host.files(), path.read_text()) == (before, content)
    assert host.call("status").code == 1
    assert f"changed: acknowledged: {path} is damaged" in host.call("acknowledge").out
    assert json.loads(path.read_text()) == {"format": 1, "acknowledged": [], "pending": {}}
    assert "suspended" not in host.call("prune").out
    assert host.files() < before
    assert host.call("status").code == 0


def test_a_state_of_retention_in_a_newer_format_is_not_written_over(host: Sandbox) -> None:
    prunable(host)
    path = host.state / "retention.json"
    path.write_text('{"format": 2, "acknowledged": [], "held": true}')
    before, content = host.files(), path.read_text()
    for command, code in (("prune", 0), ("acknowledge", 1), ("status", 1)):
        outcome = host.call(command)
        assert outcome.code == code
        assert f"{path} is of format 2, this program knows 1: install a newer bundle" in (
            outcome.out + outcome.err
        )
    assert (host.files(), path.read_text()) == (before, content)


def test_retention_is_suspended_while_the_result_of_the_verification_is_damaged(
    host: Sandbox,
) -> None:
    prunable(host)
    path = host.state / "verified.json"
    path.write_text("")
    before = host.files()
    assert "suspended" in host.call("prune").out
    assert "is still suspended" in host.call("acknowledge").out
    assert host.files() == before
    path.write_text(
        json.dumps({"run": days_ago(1), "at": "2026-01-01T00:00:00Z", "problems": ["torn"]})
    )
    assert f"verifying {days_ago(1)} failed: torn" in host.call("prune").out
    path.unlink()
    assert "suspended" in host.call("prune").out, "a failed verification is remembered"
    assert host.call("acknowledge").code == 0
    assert "suspended" not in host.call("prune").out


# ---------------------------------------------------------------- over the years


@dataclass(frozen=True)
class Night:
    """What happens between two prunings: a run, and whether somebody acknowledges before it."""

    hours: int  # since the run before, by the host's clock: negative when it was set back
    success: bool
    kinds: tuple[str, ...]
    rows: int
    acknowledged: bool


NIGHTS = st.builds(
    Night,
    hours=st.one_of(st.just(24), st.integers(1, 100), st.integers(-90_000, 90_000).filter(bool)),
    success=st.sampled_from([True, True, True, False]),
    kinds=st.sampled_from(
        [("database", "config"), ("database", "config"), ("database",), ("config",)]
    ),
    rows=st.sampled_from([1000, 1000, 900, 499, 0]),
    acknowledged=st.booleans(),
)
STRANGERS = (
    "config/notes.txt",
    "sqlite/sqlite_20010101_000000.db.gz",
    "runs/20010101_000000.txt",
    "runs/20010102_000000.json",
    "README",
)


@given(nights=st.lists(NIGHTS, min_size=2, max_size=14), days=st.sampled_from([1, 7, 400]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_over_the_years_the_good_backups_stay(
    host: Sandbox, nights: list[Night], days: int
) -> None:
    """Runs, gaps, clock jumps, failures, lost rows and strangers' files, with a pruning after each
    run as in real life.
    """
    host.empty_destination()
    conf = host.deploy / "backup/backup.conf"
    conf.write_text(
        re.sub("BACKUP_RETENTION_DAYS='.*'", f"BACKUP_RETENTION_DAYS='{days}'", conf.read_text())
    )
    for name in STRANGERS:
        (host.destination / name).write_text("precious")
    clock = NOW - datetime.timedelta(days=30)
    runs: list[dict[str, Any]] = []
    acknowledged: set[str] = set()
    for sequence, night in enumerate(nights, 1):
        clock += datetime.timedelta(hours=night.hours, seconds=1)
        if night.acknowledged:
            assert host.call("acknowledge").code == 0
            acknowledged = {run["id"] for run in runs}
        runs.append(
            host.add_run(
                run_id(clock),
                sequence,
                result="success" if night.success else "failed",
                kinds=night.kinds if night.success else (),
                tables={"torrents": night.rows} if night.success else {},
            )
        )
        before = host.files()
        outcome = host.call("prune")
        assert outcome.code == 0, outcome.err
        gone = before - host.files()

        assert set(STRANGERS) <= host.files()
        for kind in ("database", "config"):
            newest = next((run for run in reversed(runs) if files_of(run, kind)), None)
            assert newest is None or files_of(newest, kind) <= host.files(), (
                f"the newest {kind} is gone"
            )
        limit = clock - datetime.timedelta(days=days)
        inside = {path for run in runs if moment(run) >= limit for path in files_of(run)}
        assert not gone & inside, "it removes what is inside the period"
        there = [run for run in runs if f"runs/{run['id']}.json" in before]
        if any(
            moment(run) > NOW + datetime.timedelta(hours=1)
            for run in there
            if run["id"] not in acknowledged
        ):
            assert not gone, "a run lies in the future"
        good = [run for run in there if files_of(run, "database")]
        if (
            len(good) > 1
            and good[-1]["id"] not in acknowledged
            and 2 * good[-1]["tables"]["torrents"] < good[-2]["tables"]["torrents"]
        ):
            assert not gone, "the database lost its rows"
        if gone:
            assert runs[-1]["result"] == "success"
            assert {name.partition("/")[0] for name in gone} <= {
                "runs",
                *({"database": "sqlite", "config": "config"}[kind] for kind in night.kinds),
            }


def moment(run: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.strptime(run["id"], "%Y%m%d_%H%M%S").replace(
        tzinfo=datetime.timezone.utc
    )


def test_a_table_that_is_gone_suspends_until_acknowledged_and_then_for_good(host: Sandbox) -> None:
    """An empty table counts, too."""
    host.add_run(days_ago(0.4), 1, tables={"torrents": 3, "empty": 0})
    host.add_run(days_ago(0.3), 2, tables={"torrents": 3})
    reason = f"the table empty is gone in {days_ago(0.3)}; it had 0 rows in {days_ago(0.4)}"
    assert reason in host.call("prune").out
    assert reason in host.call("acknowledge").out
    host.add_run(days_ago(0.2), 3, tables={"torrents": 3})
    outcome = host.call("prune")
    assert outcome.code == 0
    assert "suspended" not in outcome.out
    assert "not suspended" in host.call("acknowledge").out
