"""Making up for a run that was due while the host was off."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from unit.sandbox import Sandbox

HOUR = 3600


class Booted:
    """A host whose schedule is 03:00, as it is some time after a boot."""

    def __init__(self, host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.module = host, host.package.catch_up
        self.now = datetime.datetime(2026, 3, 10, 8, 0).timestamp()
        self.up, self.tracker = 600.0, 600.0  # seconds
        self.runs = 0
        self.flag = host.state / "catch-up"
        self.flag.touch()
        with host.config.open("a") as file:
            file.write("CATCH_UP_HOURS='12'\n")
        monkeypatch.setattr(self.module.time, "time", lambda: self.now)
        monkeypatch.setattr(self.module, "seconds_since_boot", lambda: self.up)
        monkeypatch.setattr(self.module, "stack_containers", lambda _host: [self.container()])
        monkeypatch.setattr(self.module, "command_run", self.command_run)

    def container(self) -> dict[str, Any]:
        began = datetime.datetime.fromtimestamp(self.now - self.tracker, datetime.timezone.utc)
        state = {"Status": "running", "StartedAt": f"{began:%Y-%m-%dT%H:%M:%S}.123456789Z"}
        labels = {"com.docker.compose.service": "tracker"}
        return {"State": state, "Config": {"Labels": labels}}

    def command_run(self, arguments: Any) -> int:
        assert not self.flag.exists()
        assert arguments.dry_run is False
        self.runs += 1
        return 0

    def at(self, hour: int, minute: int = 0) -> None:
        self.now = datetime.datetime(2026, 3, 10, hour, minute).timestamp()

    def made(self, hour: int, minute: int = 0, **facts: Any) -> None:
        """A run of this day."""
        began = datetime.datetime(2026, 3, 10, hour, minute).astimezone(datetime.timezone.utc)
        self.host.add_run(f"{began:%Y%m%d_%H%M%S}", 1, **facts)

    def call(self) -> int:
        """How many runs the line of cron has made up for."""
        before = self.runs
        assert self.host.call("catch-up").code == 0
        return self.runs - before


@pytest.fixture
def booted(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Booted:
    return Booted(host, monkeypatch)


def test_a_run_that_was_due_while_the_host_was_off_is_made_up_for_once(booted: Booted) -> None:
    assert booted.call() == 1
    assert not booted.flag.exists()


def test_it_waits_until_the_tracker_has_run_for_five_minutes(booted: Booted) -> None:
    booted.tracker = 299
    assert booted.call() == 0
    assert booted.flag.exists()
    booted.tracker = 300
    assert booted.call() == 1


def test_a_run_of_the_same_night_counts_however_it_ended(booted: Booted) -> None:
    booted.made(3, 0, result="failed")
    assert booted.call() == 0
    assert not booted.flag.exists()


def test_a_run_of_the_evening_before_does_not_count(booted: Booted) -> None:
    booted.made(0, 30)
    assert booted.call() == 1


def test_a_host_that_was_up_at_its_time_leaves_it_to_cron(booted: Booted) -> None:
    booted.up = 6 * HOUR
    assert booted.call() == 0
    assert not booted.flag.exists()


def test_after_too_many_hours_the_next_run_is_the_next_of_the_schedule(booted: Booted) -> None:
    booted.at(14, 59)
    assert booted.call() == 1
    booted.flag.touch()
    booted.at(15, 1)
    assert booted.call() == 0
    assert not booted.flag.exists()


def test_nothing_is_done_on_hold(booted: Booted) -> None:
    (booted.host.state / "hold").touch()
    assert booted.call() == 0
    assert booted.flag.exists()


def test_a_host_of_an_older_bundle_makes_up_for_nothing(booted: Booted) -> None:
    text = booted.host.config.read_text().replace("CATCH_UP_HOURS='12'\n", "")
    booted.host.config.write_text(text)
    assert booted.call() == 0


def test_a_stopped_tracker_is_waited_for(booted: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booted.module, "stack_containers", lambda _host: [])
    assert booted.call() == 0
    assert booted.flag.exists()
