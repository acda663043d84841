"""The alert rules, by promtool: each fires when it must, and not before and after."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from unit.sandbox import TESTS

MONITORING = TESTS.parent / "bundle-templates/monitoring"
RULES = MONITORING / "tracker-backup.rules.yml"
LABELS = '{instance="tracker:9100",job="node"}'
FILE = '{file="/var/lib/prometheus/node-exporter/tracker-backup.prom",' + LABELS[1:]
INTERVAL = f"tracker_backup_schedule_interval_seconds{LABELS}", "3600x9000"
TABLE = 'tracker_backup_table_rows{table="keys",' + LABELS[1:]
SIZE = 'tracker_backup_size_bytes{kind="database",' + LABELS[1:]

BY_THE_HOUR = {"TrackerBackupVerifyOverdue"}  # of which a test lasts for weeks
# There is one sample a minute, and time() begins at 0.
# By alert: its series, a minute at which it fires, and one at which it does not any more.
CASES: dict[str, tuple[dict[str, str], int, int]] = {
    "TrackerBackupStale": (
        {f"tracker_backup_last_success_timestamp_seconds{LABELS}": "60x129 7800x100"},
        125,
        131,
    ),
    "TrackerBackupFailed": ({f"tracker_backup_last_run_exit_code{LABELS}": "0x9 4x9 0x99"}, 15, 25),
    "TrackerBackupAbsent": ({f"tracker_backup_info{LABELS}": "1x9 _x60 1x99"}, 40, 75),
    "TrackerBackupMetricsOld": (
        {f"node_textfile_mtime_seconds{FILE}": "60x129 7800x100"},
        125,
        131,
    ),
    "TrackerBackupVerifyOverdue": (
        {
            f"tracker_backup_verify_last_success_timestamp_seconds{LABELS}": (
                f"0x{36 * 24} {36 * 24 * 3600}x9"
            )
        },
        36 * 24 - 1,
        36 * 24 + 2,
    ),
    "TrackerBackupProblems": ({f"tracker_backup_problems{LABELS}": "0x9 2x90 0x99"}, 90, 105),
    "TrackerBackupWindowLonger": (
        {f"tracker_backup_window_seconds{LABELS}": "20x99 41x9 20x99"},
        105,
        115,
    ),
    "TrackerBackupShrunk": ({TABLE: "1000x99 400x9 900x99", SIZE: "100x300"}, 105, 115),
    "TrackerBackupSpaceShort": (
        {
            f"tracker_backup_destination_free_bytes{LABELS}": "1000x9 500x9 1000x99",
            SIZE: "200x300",
        },
        15,
        25,
    ),
    "TrackerBackupRemotePending": (
        {f"tracker_backup_remote_pending_runs{LABELS}": "0x9 1x90 0x99"},
        90,
        105,
    ),
    "TrackerBackupRetentionSuspended": (
        {f"tracker_backup_retention_suspended{LABELS}": "0x9 1x9 0x99"},
        15,
        25,
    ),
    "TrackerBackupHoldForgotten": ({f"tracker_backup_hold{LABELS}": "0x9 1x800 0x99"}, 800, 815),
}
# Almost the same, where the alert must stay silent at every minute of the list.
SILENT: dict[str, tuple[str, dict[str, str], list[int]]] = {
    "a smaller file of another kind": (
        "TrackerBackupShrunk",
        {SIZE: "100x99 60x99", SIZE.replace("database", "config"): "10x300"},
        [105, 150],
    ),
    "a table that lost fewer than 100 rows": (
        "TrackerBackupShrunk",
        {TABLE: "100x99 1x99"},
        [105, 150],
    ),
    "a short window": (
        "TrackerBackupWindowLonger",
        {f"tracker_backup_window_seconds{LABELS}": "1x99 4x99"},
        [105],
    ),
    "problems for a moment": (
        "TrackerBackupProblems",
        {f"tracker_backup_problems{LABELS}": "0x9 2x30 0x99"},
        [15, 38, 90],
    ),
    "an exporter that is restarted": (
        "TrackerBackupAbsent",
        {f"tracker_backup_info{LABELS}": "1x9 _x10 1x99"},
        [15, 19, 30],
    ),
}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def promtool(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is not there: run scripts/setup"
    return subprocess.run(
        [program, *words], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def check(tmp_path: Path, series: dict[str, str], expected: dict[int, list[str]], name: str) -> str:
    """What promtool has against the alert of this name firing at these minutes alone."""
    unit = "h" if name in BY_THE_HOUR else "m"
    query = f'ALERTS{{alertname="{name}",alertstate="firing"}}'
    tests = [
        {
            "expr": f"group by (alertname) ({query})",
            "eval_time": f"{minute}{unit}",
            "exp_samples": [
                {"labels": f'{{alertname="{one}"}}', "value": 1} for one in sorted({*fires})
            ],
        }
        for minute, fires in expected.items()
    ]
    inputs = [
        {"series": name, "values": values}
        for name, values in {**series, **dict([INTERVAL])}.items()
    ]
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"1{unit}",
        "tests": [{"interval": f"1{unit}", "input_series": inputs, "promql_expr_test": tests}],
    }
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps(document))
    done = promtool("test", "rules", str(path))
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_each_alert_has_a_case_a_section_of_the_documentation_and_every_annotation() -> None:
    docs = (TESTS.parent / "docs/troubleshooting.md").read_text()
    assert {rule["alert"] for rule in alerts()} == set(CASES)
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert path == "docs/troubleshooting.md"
        assert anchor == rule["alert"].lower()
        assert f"### {rule['alert']}\n" in docs, rule["alert"]


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alert", CASES)
def test_each_alert_fires_and_is_silent_before_and_after(tmp_path: Path, alert: str) -> None:
    series, fires, silent = CASES[alert]
    expected: dict[int, list[str]] = {5: [], fires: [alert], silent: []}
    assert check(tmp_path, series, expected, alert) == ""
    # And the test would notice if it did not fire.
    assert check(tmp_path, series, {fires: []}, alert) != ""


@pytest.mark.parametrize("case", SILENT)
def test_what_is_almost_the_same_fires_nothing(tmp_path: Path, case: str) -> None:
    alert, series, minutes = SILENT[case]
    assert check(tmp_path, series, {minute: [] for minute in minutes}, alert) == ""


def test_the_dashboard_asks_for_metrics_that_there_are(host: Any) -> None:
    known = {f"tracker_backup_{name}" for name in host.package.metrics.HELP}
    dashboard = json.loads((MONITORING / "tracker-backup.dashboard.json").read_text())
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            asked |= set(re.findall(r"tracker_backup_\w+", target["expr"]))
    assert asked == known
