"""What is reported after a command: the sidecar's runs, and a verification that failed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from unit.sandbox import Sandbox
from unit.servers import Server, serving

RUNS = [f"2026010{day}_030000" for day in range(1, 6)]
JUST_NOW = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Reporter:
    def __init__(self, host: Sandbox, server: Server) -> None:
        self.host, self.server, self.package = host, server, host.package
        self.package.outbox.PAUSES = (0.0,)
        self.metrics = host.path / "textfiles"
        self.metrics.mkdir()
        (host.secrets / "notify_webhook_url").write_text(server.url)
        with (host.deploy / "backup/backup.conf").open("a") as file:
            file.write("NOTIFY_ON='recovery'\n")
            file.write("NOTIFY_WEBHOOK_URL_FILE='/run/secrets/notify_webhook_url'\n")
        with host.config.open("a") as file:
            file.write(f"METRICS_DIRECTORY='{self.metrics}'\n")

    def add_run(self, run: str, sequence: int, **facts: Any) -> None:
        self.host.add_run(run, sequence, **{"finished": JUST_NOW, **facts})

    def report(self, command: str, code: int = 0) -> list[dict[str, Any]]:
        """What the webhook is told."""
        before = len(self.server.requests)
        self.package.report.report_command(command, code)
        return [json.loads(one.body) for one in self.server.requests[before:]]

    @property
    def wrote_metrics(self) -> bool:
        path = self.metrics / "tracker-backup.prom"
        found = path.exists()
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def reporter(host: Sandbox) -> Iterator[Reporter]:
    with serving() as server:
        yield Reporter(host, server)


def test_each_run_of_the_sidecar_is_reported_once(reporter: Reporter) -> None:
    assert reporter.report("sidecar") == []
    assert not reporter.wrote_metrics
    reporter.add_run(RUNS[0], 1)
    assert reporter.report("sidecar") == []  # a success
    assert reporter.wrote_metrics
    reporter.add_run(RUNS[1], 2, result="failed", warnings=["a warning"])
    reporter.add_run(RUNS[2], 3)
    failed, recovered = reporter.report("sidecar")
    assert (failed["run"], failed["result"], failed["log"]) == (RUNS[1], "failed", "a warning")
    assert (recovered["run"], recovered["result"]) == (RUNS[2], "success")
    assert reporter.wrote_metrics
    assert reporter.report("sidecar") == []
    assert not reporter.wrote_metrics


def test_of_many_new_runs_the_last_three_are_reported(reporter: Reporter) -> None:
    for number, run in enumerate(RUNS, 1):
        reporter.add_run(run, number, result="failed")
    assert [one["run"] for one in reporter.report("sidecar")] == RUNS[-3:]


def test_runs_from_before_the_sidecar_are_no_news(reporter: Reporter) -> None:
    reporter.add_run(RUNS[0], 1, result="failed", finished="2026-01-01T03:00:09Z")
    assert reporter.report("sidecar") == []


def test_a_run_of_the_sidecar_whose_copy_failed_is_a_failure(reporter: Reporter) -> None:
    reporter.add_run(RUNS[0], 1)
    state = reporter.package.documents.RemoteState
    state("", "", [], error="no route to the server", tried=RUNS[0]).store()
    (told,) = reporter.report("sidecar", 1)
    assert (told["result"], told["reason"]) == ("failed", "no route to the server")


def test_a_verification_that_fails_is_told_and_ends_with_the_next_run(reporter: Reporter) -> None:
    state = reporter.package.documents.VerificationState
    reporter.add_run(RUNS[0], 1)
    reporter.report("sidecar")
    state(RUNS[0], "2026-01-02T05:30:00Z", ["config.tar.gz differs"]).store()
    (told,) = reporter.report("verify", 1)
    assert (told["result"], told["reason"]) == ("unverified", "config.tar.gz differs")
    assert reporter.report("verify", 0) == []
    assert reporter.report("sidecar") == []  # no run is told again
    reporter.add_run(RUNS[1], 2)
    (recovered,) = reporter.report("sidecar")
    assert recovered["result"] == "success"


def test_what_fails_here_fails_no_command(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_host: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(reporter.package.metrics, "write", fail)
    reporter.report("push")
    assert "a defect" in reporter.host.capsys.readouterr().err
