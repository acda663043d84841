"""Being told, on a real host: Debian's Prometheus and its node_exporter, and servers that take
notifications. Part `monitoring` of scripts/test-faults, because the packages are installed first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from e2e.bundle import REPOSITORY, Bundle
from e2e.deployment import Deployment
from e2e.host import Host, wait_until
from e2e.stack import DEPLOY_DIR

pytestmark = [pytest.mark.only("sqlite3"), pytest.mark.slow]

TEXTFILES = "/var/lib/prometheus/node-exporter"
METRICS = f"{TEXTFILES}/tracker-backup.prom"
RULES = f"{DEPLOY_DIR}/storage/prometheus/etc/tracker-backup.rules.yml"
DASHBOARDS = f"{DEPLOY_DIR}/storage/grafana/provisioning/dashboards"
HOLD = "/var/lib/tracker-backup/hold"
PROMETHEUS = "http://127.0.0.1:9095"  # the stack's own has 9090
ASKED = "/tmp/asked"  # what the server below was asked, one request a line
INSTALL = (
    "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update"
    " && apt-get -qq install --yes --no-install-recommends prometheus prometheus-node-exporter"
    " && systemctl stop prometheus prometheus-node-exporter"
)
CONFIGURATION = f"""\
global: {{scrape_interval: 2s, evaluation_interval: 2s}}
rule_files: [{RULES}]
scrape_configs:
  - job_name: node
    static_configs: [{{targets: ["127.0.0.1:9100"]}}]
"""
# It speaks as much of healthchecks.io's and ntfy's protocols as a client needs: 200 to a POST.
SERVER = """\
import http.server, json, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
        if self.path.startswith("/slow"):
            time.sleep(60)
        code = {"/down": 500, "/moved": 302}.get(self.path.partition("?")[0][:6].rstrip("/"), 200)
        with open("/tmp/asked", "a") as file:
            file.write(json.dumps({"path": self.path, "body": body}) + "\\n")
        self.send_response(code)
        self.send_header("Location", "http://127.0.0.1:8099/elsewhere")
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
"""
HERE = "http://127.0.0.1:8099"


def section(**notify: str) -> dict[str, Any]:
    """A schedule that is late after two minutes. No run is started by it: see `watched`."""
    return {
        "schedule": "* * * * *",
        "verify_schedule": None,
        "metrics": {},
        "notify": {"on": "recovery", "ping_url": f"{HERE}/ping", **notify},
    }


class Watched:
    """The host with another bundle, Prometheus and a server for notifications."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.host = deployment, deployment.host
        self.folder = deployment.bundle.directory.parent / "monitoring"

    def install(self, backup: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        stack, key = self.deployment.stack, self.deployment.key
        environment = stack.environment(key, backup)
        bundle = Bundle.generate(environment, self.folder / "bundle", self.host.address)
        bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
        # Runs are started by the tests alone. A file with a dot is none of cron's.
        self.host.sh("mv /etc/cron.d/tracker-backup /etc/cron.d/tracker-backup.off")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that Prometheus answers with."""
        address = f"{PROMETHEUS}/api/v1/query?query={quote(expression)}"
        answer = json.loads(self.host.run("curl", "--silent", "--show-error", address).stdout)
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def alert(self, name: str, state: str = "firing") -> bool:
        return bool(self.query(f'ALERTS{{alertname="{name}",alertstate="{state}"}}'))

    def asked(self) -> list[dict[str, str]]:
        """What arrived since the last time."""
        text = self.host.sh(f"touch {ASKED}; cat {ASKED}; : >{ASKED}")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def watched(deployment: Deployment) -> Iterator[Watched]:
    made = Watched(deployment)
    host = deployment.host
    host.sh(INSTALL, seconds=600)
    host.unpack(
        {
            "etc/prometheus/prometheus.yml": CONFIGURATION,
            "etc/default/prometheus": 'ARGS="--web.listen-address=127.0.0.1:9095"\n',
            "root/server.py": SERVER,
        }
    )
    made.install(section())
    host.sh("systemctl start prometheus prometheus-node-exporter")
    host.sh("systemd-run --quiet --unit=e2e-notified python3 /root/server.py")
    try:
        yield made
    finally:
        host.sh("systemctl stop prometheus prometheus-node-exporter e2e-notified", check=False)
        host.sh(f"rm -f {HOLD} /etc/cron.d/tracker-backup.off")
        deployment.bundle.playbook("install-backup", "-e", "backup_on_install=false").succeeded()
        host.sh("apt-get -qq purge --yes prometheus prometheus-node-exporter", seconds=300)


def test_a_run_writes_metrics_that_prometheus_scrapes(watched: Watched) -> None:
    watched.deployment.run().succeeded()
    assert watched.host.run("stat", "--format=%a", METRICS).stdout == "644\n"
    text = watched.host.read(METRICS)
    checked = watched.host.run("promtool", "check", "metrics", stdin=text)
    assert checked.stdout + checked.stderr == ""
    wait_until("Prometheus to scrape", lambda: bool(watched.query("tracker_backup_info")), 60)
    (rows,) = watched.query('tracker_backup_table_rows{table="torrents"}')
    run = watched.deployment.last_run()
    assert rows["value"][1] == str(run["tables"]["torrents"])


def test_the_ping_and_nobody_else_hears_of_a_good_run(watched: Watched) -> None:
    watched.asked()
    watched.deployment.run().succeeded()
    start, end = watched.asked()
    assert start["path"].startswith("/ping/start?rid=")
    assert end["path"] == start["path"].replace("/start", "")
    assert "window" in end["body"]
    assert "succeeded" in end["body"]


def test_backups_stop_and_the_stale_alert_fires_until_a_run(watched: Watched) -> None:
    watched.deployment.run().succeeded()
    wait_until("no alert", lambda: not watched.alert("TrackerBackupStale"), 60)
    watched.host.run("touch", HOLD)
    watched.deployment.run()
    wait_until("the alert of a failure", lambda: watched.alert("TrackerBackupFailed"), 60)
    wait_until("the alert of a stale backup", lambda: watched.alert("TrackerBackupStale"), 240)
    wait_until(
        "hold to be seen", lambda: watched.alert("TrackerBackupHoldForgotten", "pending"), 30
    )
    address = f"{PROMETHEUS}/api/v1/alerts"
    told = json.loads(watched.host.run("curl", "--silent", address).stdout)["data"]["alerts"]
    for alert in told:
        words = " ".join(alert["annotations"].values())
        assert "error" not in words, alert
        assert "127.0.0.1:9100" in alert["annotations"]["summary"]
    watched.host.run("rm", HOLD)
    watched.deployment.run().succeeded()
    wait_until("the first to end", lambda: not watched.alert("TrackerBackupStale"), 60)
    wait_until("the other to end", lambda: not watched.alert("TrackerBackupFailed"), 60)


def test_every_query_of_the_dashboard_finds_something(watched: Watched) -> None:
    host = watched.host
    assert host.run("tracker-backup", "verify", check=False, seconds=600).returncode == 0
    placed = json.loads(host.read(f"{DASHBOARDS}/tracker-backup/tracker-backup.json"))
    wait_until(
        "the verification's metrics",
        lambda: bool(watched.query("tracker_backup_verify_duration_seconds")),
        60,
    )
    for panel in placed["panels"]:
        for target in panel["targets"]:
            found = watched.query(target["expr"].replace("$environment", ".*"))
            # This host has no restic repository.
            assert bool(found) != ("remote" in target["expr"]), target["expr"]


def test_a_host_whose_exporter_dies_is_missed(watched: Watched) -> None:
    """How long it is pending until it fires, the tests of the rules show."""
    watched.host.sh("systemctl stop prometheus-node-exporter")
    try:
        wait_until("absence", lambda: watched.alert("TrackerBackupAbsent", "pending"), 120)
    finally:
        watched.host.sh("systemctl start prometheus-node-exporter")
    wait_until("it to end", lambda: not watched.alert("TrackerBackupAbsent", "pending"), 60)


def test_each_notification_arrives_once_and_its_absence_fails_no_run(watched: Watched) -> None:
    script = "#!/bin/sh\ncat >>/tmp/told; echo >>/tmp/told\n"
    watched.host.unpack({"usr/local/bin/tell": script}, modes={"usr/local/bin/tell": 0o755})
    backup = section(webhook_url=f"{HERE}/hook", ntfy_url=f"{HERE}/topic")
    backup["notify"] |= {"command": ["/usr/local/bin/tell"]}
    watched.install(backup)
    watched.asked()
    watched.host.run("touch", HOLD)
    watched.deployment.run()
    asked = watched.asked()
    assert sorted(one["path"].partition("?")[0] for one in asked) == ["/hook", "/ping/3", "/topic"]
    (hook,) = (json.loads(one["body"]) for one in asked if one["path"] == "/hook")
    assert (hook["result"], hook["exit_code"]) == ("skipped", 3)
    assert json.loads(watched.host.read("/tmp/told")) == hook
    watched.host.run("rm", HOLD)
    watched.deployment.run().succeeded()
    recovered = [one["path"].partition("?")[0] for one in watched.asked()]
    assert sorted(recovered) == ["/hook", "/ping", "/ping/start", "/topic"]

    for address, why in {
        "/down": "the server answered 500",
        "/moved": "a redirect",
        "/slow": "no answer within",
    }.items():
        watched.install({**section(), "notify": {"on": "always", "webhook_url": HERE + address}})
        watched.deployment.run().succeeded()
        told = watched.host.run("tracker-backup", "status", check=False).stdout
        assert "the webhook of backup.notify could not be sent" in told
        assert why in told
        assert HERE + address not in told
    watched.host.sh("systemctl stop e2e-notified")
    watched.deployment.run().succeeded()
    assert "Connection refused" in watched.host.run("tracker-backup", "status", check=False).stdout
    watched.host.sh("systemd-run --quiet --unit=e2e-notified python3 /root/server.py")


def test_the_operators_files_stay_as_they_are_and_ours_go(watched: Watched) -> None:
    host = watched.host
    operators = f"{DEPLOY_DIR}/storage/prometheus/etc/prometheus.yml"
    before = host.run("sha256sum", operators).stdout
    assert host.exists(RULES)
    watched.install({"schedule": "0 3 * * *"})
    for path in (RULES, METRICS, f"{DASHBOARDS}/tracker-backup.yml"):
        assert not host.exists(path), path
    assert host.run("sha256sum", operators).stdout == before


def missed_run(host: Host) -> None:
    """The schedule names this minute, which has begun, and cron knows nothing of it."""
    minute, hour = host.run("date", "+%-M %-H").stdout.split()
    days = ",".join(map(str, range(1, 32)))
    calendar = f"{minute} {hour} {days} 1,2,3,4,5,6,7,8,9,10,11,12 0,1,2,3,4,5,6 both"
    host.sh(f"""sed -i "s|^CALENDAR=.*|CALENDAR='{calendar}'|" /etc/tracker-backup.conf""")


def test_a_missed_run_is_made_up_for_after_a_boot(watched: Watched) -> None:
    host, deployment = watched.host, watched.deployment
    deployment.run().succeeded()
    watched.install({"schedule": "0 3 * * *", "catch_up_hours": 12})
    host.sh("mv /etc/cron.d/tracker-backup.off /etc/cron.d/tracker-backup")
    runs = len(deployment.runs())
    time.sleep(61)  # so that a minute lies between the last run and the boot
    missed_run(host)
    host.reboot()
    deployment.wait_for_tracker()
    wait_until("cron to see the boot", lambda: host.exists("/var/lib/tracker-backup/catch-up"), 90)
    assert len(deployment.runs()) == runs
    wait_until("the run", lambda: len(deployment.runs()) > runs, 420)
    assert not host.exists("/var/lib/tracker-backup/catch-up")
    assert "making up for it" in host.read("/var/log/tracker-backup.log")


def test_the_rules_in_the_bundle_are_those_of_the_repository(watched: Watched) -> None:
    source = Path(REPOSITORY, "bundle-templates/monitoring/tracker-backup.rules.yml")
    bundled = watched.folder / "bundle/monitoring/tracker-backup.rules.yml"
    assert bundled.read_text() == source.read_text()
