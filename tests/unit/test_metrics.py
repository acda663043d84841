"""The file for Prometheus, by promtool, and the files for the stack's Prometheus and Grafana."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from unit.sandbox import Sandbox, mode
from unit.test_alerts import promtool

RUN = "20260101_030000"
BEGAN = "1767236400"  # of it, in seconds since 1970
NAMES = {
    *("info", "schedule_interval_seconds", "last_success_timestamp_seconds", "hold", "problems"),
    *("last_run_timestamp_seconds", "last_run_exit_code", "phase_duration_seconds", "runs"),
    *("window_seconds", "size_bytes", "database_size_bytes", "table_rows", "retention_suspended"),
    *("verify_last_success_timestamp_seconds", "verify_duration_seconds", "remote_pending_runs"),
    *("remote_last_success_timestamp_seconds", "destination_free_bytes"),
}


class Exporter:
    """A host whose metrics go to a directory."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.host = sandbox
        self.directory = sandbox.path / "node-exporter"
        self.directory.mkdir()
        self.file = self.directory / "tracker-backup.prom"

    def set(self, directory: Path) -> None:
        bundle = self.host.bundle / "host/tracker-backup.conf"
        with bundle.open("a") as file:
            file.write(f"METRICS_DIRECTORY='{directory}'\nVERSION='0.1.0'\n")
        self.host.sign()

    def report(self, **facts: Any) -> None:
        """As at the end of a run."""
        told = {"run": RUN, "result": "success", "code": 0, "reason": ""} | facts
        self.host.package.notify.tell_end(**told)
        self.host.package.report.report_command("window", told["code"])

    @property
    def samples(self) -> dict[str, str]:
        """Values by name with labels; promtool has nothing against the file."""
        text = self.file.read_text()
        checked = promtool("check", "metrics", stdin=text)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        assert text.endswith("\n")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return dict(line.rsplit(" ", 1) for line in lines)

    def value(self, name: str, labels: str = "") -> str:
        return self.samples[f"tracker_backup_{name}{labels}"]


@pytest.fixture
def exporter(sandbox: Sandbox) -> Exporter:
    made = Exporter(sandbox)
    made.set(made.directory)
    sandbox.installed()
    return made


def test_without_a_directory_nothing_is_written(host: Sandbox) -> None:
    Exporter(host).report()
    assert not list(host.path.rglob("*.prom"))


def test_the_metrics_of_a_backup_that_was_verified_and_copied(exporter: Exporter) -> None:
    host, package = exporter.host, exporter.host.package
    host.add_run(RUN, 1, durations={"check": 0.25}, database_bytes=4096)
    package.documents.VerificationState(
        RUN, "2026-01-04T05:30:00Z", [], "2026-01-04T05:30:00Z", 12.5
    ).store()
    with (host.deploy / "backup/backup.conf").open("a") as file:
        file.write("RESTIC_REPOSITORY_FILE='/run/secrets/restic_repository'\n")
    package.documents.RemoteState(
        address="", repository="", pushed=[], succeeded="2026-01-01T03:00:00Z"
    ).store()
    exporter.report()
    assert mode(exporter.file) == "0644"
    names = [re.split("[ {]", name)[0] for name in exporter.samples]
    assert set(names) == {f"tracker_backup_{name}" for name in NAMES}
    assert exporter.value("last_success_timestamp_seconds") == BEGAN
    assert exporter.value("last_run_timestamp_seconds") == BEGAN
    assert exporter.value("last_run_exit_code") == "0"
    assert exporter.value("phase_duration_seconds", '{phase="check"}') == "0.25"
    assert exporter.value("window_seconds") == "1.5"
    assert exporter.value("size_bytes", '{kind="config"}') == "6"
    assert exporter.value("database_size_bytes") == "4096"
    assert exporter.value("table_rows", '{table="torrents"}') == "3"
    assert exporter.value("runs", '{result="success"}') == "1"
    assert exporter.value("runs", '{result="failed"}') == "0"
    assert exporter.value("verify_last_success_timestamp_seconds") == "1767504600"
    assert exporter.value("verify_duration_seconds") == "12.5"
    assert exporter.value("remote_last_success_timestamp_seconds") == BEGAN
    assert exporter.value("remote_pending_runs") == "1"
    assert exporter.value("schedule_interval_seconds") == "86400"
    (info,) = [name for name in exporter.samples if "_info" in name]
    assert 'version="0.1.0",environment="production",strategy="maintenance-window"' in info


def test_no_backup_yet(exporter: Exporter) -> None:
    exporter.report(run="", result="failed", code=1, reason="no disk")
    assert exporter.value("last_success_timestamp_seconds") == "0"
    assert float(exporter.value("problems")) >= 1


def test_a_run_that_failed_before_it_had_a_manifest_is_the_last_one(exporter: Exporter) -> None:
    exporter.host.add_run(RUN, 1)
    exporter.report(run="", result="failed", code=2, reason="the destination is not there")
    assert exporter.value("last_run_exit_code") == "2"
    assert time.time() - float(exporter.value("last_run_timestamp_seconds")) < 60
    assert exporter.value("last_success_timestamp_seconds") == BEGAN


def test_hold_and_a_run_that_did_not_begin(exporter: Exporter) -> None:
    (exporter.host.state / "hold").touch()
    exporter.report(run="", result="skipped", code=3, reason="held")
    assert exporter.value("hold") == "1"
    exporter.report(code=75, reason="another run holds the lock")
    assert exporter.value("last_run_exit_code") == "3"


@pytest.mark.parametrize("name", ['"', "\\", 'a"}\\n{b="', "雪"])
def test_the_names_of_tables_cannot_break_the_file(exporter: Exporter, name: str) -> None:
    exporter.host.add_run(RUN, 1, tables={name: 5, "torrents": 3})
    exporter.report()
    assert exporter.value("table_rows", '{table="torrents"}') == "3"
    assert len([one for one in exporter.samples if "table_rows" in one]) == 2


def test_a_service_that_makes_many_tables_makes_few_series(exporter: Exporter) -> None:
    exporter.host.add_run(RUN, 1, tables={f"t{number}": 1 for number in range(1000)})
    exporter.report()
    assert len([one for one in exporter.samples if "table_rows" in one]) == 100


def test_the_file_is_replaced_and_no_link_is_followed(exporter: Exporter, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in ("tracker-backup.prom", "tracker-backup.prom.partial"):
        (exporter.directory / name).symlink_to(victim)
    exporter.report()
    assert victim.read_text() == "kept"
    assert [path.name for path in exporter.directory.iterdir()] == ["tracker-backup.prom"]
    assert not exporter.file.is_symlink()


def test_a_directory_that_is_not_there_is_a_warning(exporter: Exporter) -> None:
    exporter.directory.rmdir()
    exporter.host.capsys.readouterr()
    exporter.report()
    assert "could not be written: " in exporter.host.capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "push", "restore", "acknowledge"])
def test_other_commands_write_it_too(exporter: Exporter, command: str) -> None:
    exporter.host.call(command)
    assert exporter.file.exists()


def test_status_and_list_write_nothing(exporter: Exporter) -> None:
    for command in ("status", "list"):
        exporter.host.call(command)
    assert not exporter.file.exists()


# ---------------------------------------------------------------- rules and dashboard


RULES = "storage/prometheus/etc/tracker-backup.rules.yml"
DASHBOARDS = "storage/grafana/provisioning/dashboards"
PLACES = {
    RULES,
    f"{DASHBOARDS}/tracker-backup.yml",
    f"{DASHBOARDS}/tracker-backup/tracker-backup.json",
}


@pytest.fixture
def stack(sandbox: Sandbox) -> Exporter:
    """A stack with Prometheus and Grafana, where nothing is installed yet."""
    (sandbox.deploy / "storage/prometheus/etc").mkdir(parents=True)
    (sandbox.deploy / DASHBOARDS).mkdir(parents=True)
    (sandbox.deploy / DASHBOARDS / "operators.yml").write_text("theirs\n")
    made = Exporter(sandbox)
    made.set(made.directory)
    return made


def placed(host: Sandbox) -> set[str]:
    found = (path for path in (host.deploy / "storage").rglob("*tracker-backup*.*"))
    return {str(path.relative_to(host.deploy)) for path in found if path.is_file()} - {
        "storage/backup/.tracker-backup.json"
    }


def test_rules_and_dashboard_are_installed_once_and_removed(stack: Exporter) -> None:
    host = stack.host
    assert host.install().code == 0
    assert placed(host) == PLACES
    assert {mode(host.deploy / place) for place in PLACES} == {"0644"}
    assert mode(host.deploy / DASHBOARDS / "tracker-backup") == "0755"
    assert host.install().changes == []
    stack.report()
    assert host.call("uninstall").code == 0
    assert placed(host) == set()
    assert [path.name for path in (host.deploy / DASHBOARDS).iterdir()] == ["operators.yml"]
    assert not stack.file.exists()


def test_without_metrics_they_are_removed_again(stack: Exporter) -> None:
    host = stack.host
    host.install()
    stack.report()
    host.make_bundle()
    assert host.install().code == 0
    assert placed(host) == set()
    assert not stack.file.exists()


def test_a_stack_without_these_services_gets_none(exporter: Exporter) -> None:
    assert placed(exporter.host) == set()
    assert not (exporter.host.deploy / "storage/grafana").exists()


@pytest.mark.parametrize(
    "link", ["storage/prometheus/etc", DASHBOARDS, f"{DASHBOARDS}/tracker-backup", RULES]
)
def test_no_link_that_a_service_planted_is_followed(stack: Exporter, link: str) -> None:
    host = stack.host
    victim = host.path / "victim"
    path = host.deploy / link
    if path.is_dir():
        path.rename(host.path / "moved")
    if link == RULES:
        victim.write_text("kept")
    else:
        victim.mkdir()
    path.symlink_to(victim)
    outcome = host.install()
    assert outcome.code == 0
    if link == RULES:
        assert victim.read_text() == "kept"
        assert not path.is_symlink()
    else:
        assert list(victim.iterdir()) == []
        assert "was left alone" in outcome.out
    assert host.call("uninstall").code == 0
    assert victim.exists()
