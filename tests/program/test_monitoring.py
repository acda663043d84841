"""Being told of runs of the real program: Debian's Prometheus with its node_exporter, and servers
that take notifications.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from unit.servers import Server, serving

from program.host import TEMPLATES, Host, wait_until

INTERVAL = 10  # seconds between two runs of the schedule: stale after twice that
MONITORING = TEMPLATES / "monitoring"


def append(path: Path, **settings: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{key}='{value}'\n" for key, value in settings.items())


def notify(host: Host, on: str, **urls: str) -> None:
    secrets = host.deploy / "backup/secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    append(host.deploy / "backup/backup.conf", NOTIFY_ON=on)
    for name, url in urls.items():
        (secrets / f"notify_{name}").write_text(url)
        key = f"NOTIFY_{name.upper()}_FILE"
        append(host.deploy / "backup/backup.conf", **{key: f"/run/secrets/notify_{name}"})
    host.set("NOTIFY_SECONDS", 0.5)


# ---------------------------------------------------------------- notifications


def test_a_run_pings_when_it_begins_and_when_it_ends_with_its_log(host: Host) -> None:
    with serving() as server:
        notify(host, "failure", ping_url=f"{server.url}/p", webhook_url=f"{server.url}/h")
        host.run().ends_with(0)
    assert server.paths == ["/p/start", "/p"]
    begin, end = server.requests
    assert begin.query == end.query
    assert b"succeeded" in end.body
    assert end.body.count(b"begins: maintenance-window") == 1


def test_a_run_that_fails_says_why_by_every_way(host: Host) -> None:
    host.on("examine", "refuse('malformed')")
    with serving() as server:
        notify(
            host,
            "failure",
            ping_url=f"{server.url}/p",
            webhook_url=f"{server.url}/h",
            ntfy_url=f"{server.url}/n",
        )
        host.run().ends_with(1)
    assert sorted(server.paths) == ["/h", "/n", "/p/1", "/p/start"]
    (hook,) = (json.loads(one.body) for one in server.requests if one.path == "/h")
    assert (hook["result"], hook["run"]) == ("failed", host.manifest()["id"])
    assert "malformed" in hook["reason"]
    assert "malformed" in hook["log"]


def test_a_run_without_settings_cannot_be_told_and_one_on_hold_is_told_as_skipped(
    host: Host,
) -> None:
    with serving() as server:
        notify(host, "failure", ping_url=f"{server.url}/p", webhook_url=f"{server.url}/h")
        (host.state / "hold").touch()
        host.run().ends_with(3)
        assert sorted(server.paths) == ["/h", "/p/3"]
        with host.locked():
            (host.state / "hold").unlink()
            host.run().ends_with(75)
        host.run("--dry-run").ends_with(0)
        assert len(server.requests) == 2
        host.config.unlink()
        host.run().ends_with(2)


@pytest.mark.parametrize("kind", ["down", "500", "a redirect", "silent"])
def test_a_server_that_does_not_work_fails_no_run(host: Host, kind: str) -> None:
    server = {
        "down": serving(),
        "500": serving(500),
        "a redirect": serving(302, location="http://127.0.0.1:1/"),
        "silent": serving(drip=30),
    }[kind]
    with server as found:
        notify(host, "always", ping_url=f"{found.url}/p", webhook_url=f"{found.url}/h")
        if kind != "down":
            check_told(host, found)
    if kind == "down":
        check_told(host, found)


def check_told(host: Host, server: Server) -> None:
    host.run().ends_with(0, "the webhook of backup.notify could not be sent")
    host.recorded("success", exit_code=0)
    said = host.tool("status").output
    assert "the ping of backup.notify could not be sent" in said
    assert server.url not in said


# ---------------------------------------------------------------- Prometheus


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Prometheus:
    """A real one with the rules of the bundle, and the exporter that it scrapes."""

    def __init__(self, host: Host) -> None:
        self.path, self.port, self.exporter_port = host.path / "prom", free_port(), free_port()
        self.textfiles = self.path / "textfiles"
        self.textfiles.mkdir(parents=True)
        (self.path / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(MONITORING / "tracker-backup.rules.yml")],
                    "scrape_configs": [
                        {
                            "job_name": "node",
                            "static_configs": [{"targets": [f"127.0.0.1:{self.exporter_port}"]}],
                        }
                    ],
                }
            )
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start(
            "prometheus",
            f"--config.file={self.path}/prometheus.yml",
            f"--storage.tsdb.path={self.path}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )
        self.exporter = self.start(
            "prometheus-node-exporter",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={self.textfiles}",
            f"--web.listen-address=127.0.0.1:{self.exporter_port}",
        )

    def start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        program = shutil.which(name)
        assert program, f"{name} is not there: run scripts/setup"
        with (self.path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([program, *options], stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def ask(self, what: str) -> Any:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}", timeout=10) as answer:
                found = json.load(answer)
        except OSError:  # it is starting
            return []
        assert found["status"] == "success", (what, found)
        return found["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        data = self.ask(f"query?query={quote(expression)}")
        return data["result"] if data else []

    def alert(self, name: str, state: str = "firing") -> bool:
        return bool(self.query(f'ALERTS{{alertname="{name}",alertstate="{state}"}}'))


@pytest.fixture
def prometheus(host: Host) -> Iterator[Prometheus]:
    made = Prometheus(host)
    append(host.config, METRICS_DIRECTORY=str(made.textfiles), VERSION="0.1.0")
    host.configure(LONGEST_INTERVAL_SECONDS=str(INTERVAL))
    try:
        yield made
    finally:
        made.end()


def test_backups_stop_and_the_alert_fires_until_a_run(host: Host, prometheus: Prometheus) -> None:
    host.run().ends_with(0)
    wait_until(lambda: prometheus.query("tracker_backup_info"), 60, "for a scrape")
    wait_until(lambda: prometheus.alert("TrackerBackupStale"), 60, "for the alert")
    wait_until(lambda: prometheus.alert("TrackerBackupMetricsOld"), 60, "for the other alert")
    for alert in prometheus.ask("alerts")["alerts"]:
        words = " ".join(alert["annotations"].values())
        assert "error" not in words, alert
        assert f"127.0.0.1:{prometheus.exporter_port}" in alert["annotations"]["summary"]
    host.on("examine", "refuse('malformed')")
    host.run().ends_with(1)
    wait_until(lambda: prometheus.alert("TrackerBackupFailed"), 30, "for the alert of a failure")
    assert prometheus.alert("TrackerBackupStale")
    host.off("examine")
    host.configure(LONGEST_INTERVAL_SECONDS="3600")  # a slow machine needs time to look
    host.run().ends_with(0)
    for name in ("TrackerBackupStale", "TrackerBackupFailed", "TrackerBackupMetricsOld"):
        end = time.monotonic() + 30
        while prometheus.alert(name):
            assert time.monotonic() < end, name
            time.sleep(0.2)


def test_every_query_of_the_dashboard_finds_something(host: Host, prometheus: Prometheus) -> None:
    host.run().ends_with(0)
    at = "2026-01-01T03:00:00Z"
    run = host.manifest()["id"]
    states = {
        "verified": {"format": 2, "run": run, "at": at, "succeeded": at, "seconds": 2.5},
        "remote": {"format": 2, "address": "", "repository": "", "pushed": [], "succeeded": at},
    }
    states["verified"]["problems"] = []
    for name, state in states.items():
        (host.state / f"{name}.json").write_text(json.dumps(state))
    (host.deploy / "backup/secrets").mkdir(exist_ok=True)
    append(
        host.deploy / "backup/backup.conf",
        RESTIC_REPOSITORY_FILE="/run/secrets/restic_repository",
    )
    host.tool("acknowledge").ends_with(0)
    wait_until(lambda: prometheus.query("tracker_backup_remote_pending_runs"), 60, "for a scrape")
    dashboard = json.loads((MONITORING / "tracker-backup.dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$environment", ".*")
            assert prometheus.query(expression), (panel["title"], expression)


def test_a_host_that_dies_silently_is_missed(host: Host, prometheus: Prometheus) -> None:
    """How long it is pending until it fires, the tests of the rules show."""
    host.run().ends_with(0)
    wait_until(lambda: prometheus.query("tracker_backup_info"), 60, "for a scrape")
    wait_until(lambda: not prometheus.alert("TrackerBackupAbsent", "pending"), 30)
    prometheus.exporter.kill()
    wait_until(lambda: prometheus.alert("TrackerBackupAbsent", "pending"), 60, "for absence")
