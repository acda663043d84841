"""Notifications, sent to real HTTP servers: what arrives, and what happens when it cannot."""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unit.sandbox import Sandbox
from unit.servers import Server, serving

RUN = "20260101_030000"
SECONDS = 0.5  # the limit of one answer in these tests


class Notifier:
    """A host whose section `backup.notify` is set."""

    def __init__(self, host: Sandbox) -> None:
        self.host = host
        self.notify = host.package.notify
        host.package.outbox.SECONDS = SECONDS
        host.package.outbox.COMMAND_SECONDS = 2 * SECONDS
        host.package.outbox.PAUSES = (0.0, 0.05, 0.05)

    def set(self, on: str = "failure", **secrets: str) -> None:
        path = self.host.deploy / "backup/backup.conf"
        lines = [line for line in path.read_text().splitlines() if "NOTIFY" not in line]
        lines.append(f"NOTIFY_ON='{on}'")
        for name, value in secrets.items():
            (self.host.secrets / f"notify_{name}").write_text(value)
            lines.append(f"NOTIFY_{name.upper()}_FILE='/run/secrets/notify_{name}'")
        path.write_text("".join(f"{line}\n" for line in lines))

    def tell(self, result: str = "success", **facts: Any) -> None:
        code = facts.pop("code", 0 if result == "success" else 1)
        event = {"run": RUN, "reason": "", "log": "a line\n"} | facts
        host = self.host.package.host.Host.read(self.host.config)
        self.notify.tell(host, self.notify.Event(result=result, code=code, **event))

    def start(self) -> None:
        self.notify.tell_start(self.host.package.host.Host.read(self.host.config), RUN)

    @property
    def unsent(self) -> dict[str, str]:
        unsent: dict[str, str] = self.notify.Notices.load().unsent
        return unsent


@pytest.fixture
def notifier(host: Sandbox) -> Notifier:
    return Notifier(host)


# ---------------------------------------------------------------- what arrives


def test_a_ping_at_the_begin_and_at_the_end_with_one_rid_for_the_run(notifier: Notifier) -> None:
    with serving() as server:
        notifier.set(ping_url=f"{server.url}/uuid")
        notifier.start()
        notifier.tell()
        notifier.start()
        notifier.tell("failed", code=4, reason="no disk")
        notifier.tell("failed", code=0)
        assert server.paths == ["/uuid/start", "/uuid", "/uuid/start", "/uuid/4", "/uuid/fail"]
        (rid,) = {request.query["rid"] for request in server.requests}
        assert len(rid) == 36
        assert server.requests[1].body == b"a line\n"
        notifier.tell(run="20260102_030000")
        assert server.requests[-1].query["rid"] != rid


def test_a_ping_keeps_the_query_of_its_address(notifier: Notifier) -> None:
    with serving() as server:
        notifier.set(ping_url=f"{server.url}/uuid?create=1")
        notifier.start()
        assert server.requests[0].path == "/uuid/start"
        assert server.requests[0].query["create"] == "1"


def test_a_webhook_and_a_command_get_the_same_json(notifier: Notifier, tmp_path: Path) -> None:
    script = "import pathlib,sys; pathlib.Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())"
    with serving() as server:
        notifier.set(
            webhook_url=f"{server.url}/hook?token=1",
            command=f"{sys.executable}\n-c\n{script}\n{tmp_path}/a file\n",
        )
        notifier.tell("incomplete", reason="it lacks ü")
    (request,) = server.requests
    assert (request.path, request.query) == ("/hook", {"token": "1"})
    assert request.headers["Content-Type"] == "application/json"
    told = json.loads(request.body)
    told.pop("host")
    assert told == {
        "environment": "production",
        "run": RUN,
        "result": "incomplete",
        "exit_code": 1,
        "reason": "it lacks ü",
        "log": "a line\n",
    }
    assert (tmp_path / "a file").read_bytes() == request.body


def test_an_ntfy_server_gets_a_short_message_and_the_login(notifier: Notifier) -> None:
    with serving() as server:
        place = server.url.removeprefix("http://")
        notifier.set(ntfy_url=f"http://me:p%40ss@{place}/topic")
        notifier.tell("failed", reason="ü" * 9000)
    (request,) = server.requests
    assert request.path == "/topic"
    assert request.query == {"title": "Backup of production: failed", "priority": "high"}
    assert len(request.body) <= 4000
    assert request.body.decode(errors="ignore").startswith("üüü")
    token = base64.b64encode(b"me:p@ss").decode()
    assert request.headers["Authorization"] == f"Basic {token}"
    assert "me" not in request.headers["Host"]


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("failure", ["failed", "incomplete"]),
        ("always", ["success", "failed", "incomplete", "success", "success"]),
        ("recovery", ["failed", "incomplete", "success"]),
    ],
)
def test_notify_on_decides_what_is_told(notifier: Notifier, on: str, expected: list[str]) -> None:
    with serving() as pings, serving() as hooks:
        notifier.set(on, ping_url=f"{pings.url}/p", webhook_url=f"{hooks.url}/h")
        for result in ("success", "failed", "incomplete", "success", "success"):
            notifier.tell(result)
        told = [json.loads(request.body)["result"] for request in hooks.requests]
        assert told == expected
        assert pings.paths == ["/p", "/p/1", "/p/1", "/p", "/p"]


def test_a_body_has_at_most_100_kb_and_keeps_the_end_of_the_log(notifier: Notifier) -> None:
    log = '"\\\t雪' * 100_000 + "the end"
    with serving() as server:
        notifier.set("always", ping_url=f"{server.url}/p", webhook_url=f"{server.url}/h")
        notifier.tell(log=log)
    for request in server.requests:
        assert 50_000 < len(request.body) <= 100_000
        assert request.body.rstrip(b'"}').endswith(b"the end")
    bodies = {request.path: request.body for request in server.requests}
    assert json.loads(bodies["/h"])["log"].endswith("the end")


def test_no_body_holds_a_secret(notifier: Notifier) -> None:
    secrets = {
        "db_password": "hunter2 &c",
        "restic_environment": "AWS_SECRET_ACCESS_KEY=s3cr3t\nAWS_ACCESS_KEY_ID=th3-id\n",
        "restic_repository": "rest:https://user:r3st-pass@example.org/",
    }
    for name, value in secrets.items():
        (notifier.host.secrets / name).write_text(value)
    said = "hunter2 &c, s3cr3t, th3-id, r3st-pass"
    with serving() as server:
        url = f"{server.url}/t0ken"
        notifier.set("always", ping_url=url, webhook_url=url, ntfy_url=url)
        notifier.tell("failed", reason=f"{said} {url}", log=f"{said} {url}\n")
    assert len(server.requests) == 3
    for request in server.requests:
        for word in ("hunter2", "s3cr3t", "th3-id", "r3st-pass", "t0ken"):
            assert word.encode() not in request.body, request
        assert b"***" in request.body


# ---------------------------------------------------------------- what cannot be sent


def problem(notifier: Notifier, url: str) -> str:
    """Why a ping could not be sent, and that neither the state nor the status shows its address."""
    notifier.set(ping_url=f"{url}/t0ken")
    notifier.tell()
    status = notifier.host.call("status")
    assert "the ping of backup.notify could not be sent" in status.out
    assert "t0ken" not in status.out + status.err + str(notifier.unsent)
    return notifier.unsent["ping"]


def test_a_server_that_answers_500_is_asked_three_times(notifier: Notifier) -> None:
    with serving(500) as server:
        assert problem(notifier, server.url) == "the server answered 500"
        assert len(server.requests) == 3


def test_a_server_that_answers_at_the_third_time_is_enough(notifier: Notifier) -> None:
    with serving(500, 503, 200) as server:
        notifier.set(ping_url=server.url)
        notifier.tell()
        assert len(server.requests) == 3
    assert notifier.unsent == {}


def test_a_server_that_is_down(notifier: Notifier) -> None:
    with serving() as server:
        url = server.url
    assert problem(notifier, url) == "Connection refused"


def test_a_name_that_nobody_knows(notifier: Notifier) -> None:
    assert problem(notifier, "http://nowhere.invalid") != ""


def test_a_redirect_is_not_followed(notifier: Notifier) -> None:
    with serving() as other:
        for code in (301, 302, 303, 307, 308):
            with serving(code, location=f"{other.url}/elsewhere") as server:
                assert "a redirect" in problem(notifier, server.url)
        assert other.requests == []


@pytest.mark.parametrize("drip", [30.0, SECONDS / 5], ids=["silent", "a byte now and then"])
def test_a_slow_server_does_not_hold_us_up(notifier: Notifier, drip: float) -> None:
    with serving(drip=drip) as server:
        began = time.monotonic()
        assert "no answer within" in problem(notifier, server.url)
        assert time.monotonic() - began < 3 * SECONDS + 3


def test_a_command_that_fails_or_hangs(notifier: Notifier) -> None:
    for command, why in {
        "/bin/false": "the program ended with exit code 1",
        "/nowhere/apprise": "No such file or directory",
        "/bin/sleep\n60": "was not over after",
    }.items():
        notifier.set(command=command)
        notifier.tell("failed")
        assert why in notifier.unsent["command"]


def test_what_could_not_be_sent_is_shown_until_it_is_sent_again(notifier: Notifier) -> None:
    def unsent(server: Server, result: str, *ways: str) -> None:
        notifier.set(ping_url=server.url, webhook_url=server.url)
        notifier.tell(result)
        assert set(notifier.unsent) == set(ways)

    with serving(500) as broken, serving() as good:
        unsent(broken, "failed", "ping", "webhook")
        unsent(good, "success", "webhook")  # which is not sent after a success
        unsent(good, "failed")


def test_a_missing_secret_is_reported_and_fails_nothing(notifier: Notifier) -> None:
    notifier.set(ping_url="http://127.0.0.1:1/")
    (notifier.host.secrets / "notify_ping_url").unlink()
    notifier.tell()
    assert "notify_ping_url" in notifier.unsent["notification"]


def test_the_same_failure_outside_a_run_is_told_once(notifier: Notifier) -> None:
    with serving() as server:
        notifier.set(webhook_url=server.url)
        for reason in ("Docker is down", "Docker is down", "another"):
            notifier.tell("failed", run="", code=4, reason=reason)
        assert len(server.requests) == 2
