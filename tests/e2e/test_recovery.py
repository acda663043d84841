"""Whatever dies in the window, the tracker comes back, unless somebody changed it meanwhile."""

from __future__ import annotations

import re
import shlex

import pytest

from e2e import faults
from e2e.bundle import Outcome
from e2e.deployment import SCRIPT, Deployment
from e2e.faults import (
    CAPTURE,
    DIE,
    HOLD,
    KILL,
    MARKER,
    PAUSE,
    STATE,
    STOP,
    recover,
    strike,
    striking,
    tracker_started_again,
)
from e2e.host import Container, wait_until
from e2e.stack import DEPLOY_DIR, wait_for_tracker

ACTIONS = {"stop": STOP, "pause": PAUSE}
DOWN = {"stop": "exited", "pause": "paused"}
ROLES = {"sqlite3": 1, "mysql": 2}  # that are there in the window: the reader, and a client
# Cron calls the recovery every minute. The hold keeps it away while a test plays the operator.
HELD = f"touch {HOLD}; {KILL}; exit 1"


def dead_run(deployment: Deployment, quiesce: str, do: str = DIE) -> Container:
    """Kills a run that has just opened its window; returns the tracker as it was before."""
    before = deployment.tracker()
    with deployment.configured(**ACTIONS[quiesce]):
        killed = strike(deployment.host, SCRIPT, at=CAPTURE, do=do)
    assert killed.code == 137, killed.output
    assert deployment.host.exists(MARKER)
    return before


def recovered(deployment: Deployment, since: int, *, by_hand: bool = False) -> str:
    """The log after the recovery, by cron or, if `by_hand`, called as cron does."""
    host = deployment.host
    if by_hand or not faults.has_recovery_in_cron(host):
        recover(host)
    wait_until("the recovery to remove the marker", lambda: not host.exists(MARKER), 100)
    return faults.log_since(host, since)


def is_back(deployment: Deployment, before: Container, quiesce: str) -> None:
    """The same container runs again; one that was only frozen goes on where it was."""
    wait_for_tracker(deployment.host)
    after = deployment.tracker()
    assert (after.id, after.status) == (before.id, "running")
    if quiesce == "stop":
        assert after.started != before.started


def next_run_succeeds(deployment: Deployment, earlier: dict[str, str]) -> None:
    """A run after the fault succeeds and cleans up; no earlier backup has changed."""
    with deployment.configured(QUIESCE="none" if deployment.stack.driver == "mysql" else "pause"):
        deployment.run().succeeded()
    assert faults.leftovers(deployment.host) == []
    assert faults.not_whole(deployment.host) == []
    now = faults.backups(deployment.host)
    assert {path: now.get(path) for path in earlier} == earlier


@pytest.mark.parametrize("quiesce", ACTIONS)
def test_a_run_that_was_killed_in_its_window_is_recovered(
    deployment: Deployment, quiesce: str
) -> None:
    host, earlier, since = (
        deployment.host,
        faults.backups(deployment.host),
        faults.log_lines(deployment.host),
    )
    with tracker_started_again(deployment):
        # The call that was under way goes on without the script: it must not keep the lock.
        blocking = ("pgrep", "--full", "^systemd-inhibit .*tracker-backup")
        before = dead_run(deployment, quiesce, f"{shlex.join(blocking)} >/root/blocking; {KILL}")
        assert host.read("/root/blocking").split(), "the shutdown was not blocked in the window"
        host.run("flock", "--nonblock", f"{STATE}/lock", "true")
        # Cron's own recovery comes within a minute: once is enough to wait for it.
        log = recovered(
            deployment, since, by_hand=(deployment.stack.driver, quiesce) != ("sqlite3", "stop")
        )
        assert re.search(rf"recovery: run \d+_\d+ left a window open \({quiesce}\)", log)
        assert "the tracker runs again" in log
        is_back(deployment, before, quiesce)
        wait_until(
            "the shutdown to be allowed again",
            lambda: host.run(*blocking, check=False).returncode != 0,
            10,
        )
        left = host.sh("docker ps --quiet --filter label=tracker-backup.run").split()
        assert len(left) == ROLES[deployment.stack.driver], "the next run removes them"
        next_run_succeeds(deployment, earlier)


@pytest.mark.only("sqlite3")
def test_a_paused_tracker_that_died_with_docker_is_started(deployment: Deployment) -> None:
    host, since = deployment.host, faults.log_lines(deployment.host)
    with tracker_started_again(deployment):
        before = dead_run(deployment, "pause", HELD)
        host.sh("kill -KILL $(pidof dockerd)")
        wait_until(
            "Docker to be there again",
            lambda: host.run("docker", "version", check=False).returncode == 0,
            60,
        )
        left = deployment.tracker().status
        assert left in ("exited", "paused", "running")
        host.run("rm", HOLD)
        recovered(deployment, since, by_hand=True)
        is_back(deployment, before, "stop" if left == "exited" else "pause")


@pytest.mark.only("sqlite3")
def test_a_hold_suspends_runs_and_recovery(deployment: Deployment) -> None:
    host, since = deployment.host, faults.log_lines(deployment.host)
    with tracker_started_again(deployment):
        before = dead_run(deployment, "stop", HELD)
        refused, left = deployment.run(), recover(host)
        assert (refused.code, left.code) == (3, 3), refused.output + left.output
        assert f"held: nothing is done while {HOLD} is there" in refused.output
        assert deployment.tracker().status == "exited"
        assert host.exists(MARKER)
        host.run("rm", HOLD)
        recovered(deployment, since, by_hand=True)
        is_back(deployment, before, "stop")


@pytest.mark.only("sqlite3")
def test_the_next_run_recovers_by_itself_and_then_backs_up(deployment: Deployment) -> None:
    host = deployment.host
    with tracker_started_again(deployment):
        dead_run(deployment, "stop", HELD)
        host.run("rm", HOLD)
        with deployment.configured(QUIESCE="pause"):
            done = deployment.run().succeeded()
        assert "left a window open (stop)" in done.output
        assert "removing the container of a dead run" in done.output
        assert deployment.last_run()["result"] == "success"
        assert faults.leftovers(host) == []


@pytest.mark.parametrize("quiesce", ACTIONS)
def test_recovery_keeps_out_of_the_window_of_a_live_run(
    deployment: Deployment, quiesce: str
) -> None:
    host = deployment.host
    with (
        deployment.configured(**ACTIONS[quiesce]),
        striking(
            host,
            SCRIPT,
            at=CAPTURE,
            do="touch /tmp/held; while [ -e /tmp/held ]; do sleep 0.1; done",
        ) as wait,
    ):
        wait_until("the window", lambda: host.exists("/tmp/held"), 60)
        assert deployment.tracker().status == DOWN[quiesce]
        assert recover(host) == Outcome(0, "")
        assert deployment.tracker().status == DOWN[quiesce]
        host.run("rm", "/tmp/held")
        done = wait()
    assert done.code == 0, done.output
    assert deployment.last_run()["result"] == "success"
    wait_for_tracker(host)


@pytest.mark.only("sqlite3")
@pytest.mark.parametrize("quiesce", ACTIONS)
def test_recovery_does_not_wait_for_a_run_that_hangs_beyond_its_deadline(
    deployment: Deployment, quiesce: str
) -> None:
    host, before = deployment.host, deployment.tracker()
    hanging = (
        "echo $FAULT_PID >/tmp/hanging; kill -STOP $FAULT_PID; while [ -e /tmp/hanging ]; "
        "do sleep 0.2; done"
    )
    with (
        tracker_started_again(deployment),
        deployment.configured(**ACTIONS[quiesce]),
        striking(host, SCRIPT, at=CAPTURE, do=hanging) as wait,
    ):
        wait_until("the run to hang", lambda: host.exists("/tmp/hanging"), 60)
        try:
            assert recover(host) == Outcome(0, ""), (
                "before the deadline the window is the run's own"
            )
            host.run("sed", "-i", 's/"deadline": [0-9]*/"deadline": 1/', MARKER)
            recover(host)
            wait_until("the recovery", lambda: not host.exists(MARKER), 100)
            is_back(deployment, before, quiesce)
        finally:
            host.sh("kill -CONT $(cat /tmp/hanging); rm /tmp/hanging")
        done = wait()
    assert done.code == 1, done.output
    assert deployment.last_run()["files"] == []
    assert deployment.tracker().status == "running"
    assert faults.leftovers(host) == []


@pytest.mark.only("sqlite3")
def test_recovery_without_a_marker_takes_no_lock(deployment: Deployment) -> None:
    holder = deployment.host.spawn("flock", f"{STATE}/lock", "sleep", "3")
    wait_until(
        "the lock to be held",
        lambda: (
            deployment.host.run(
                "flock", "--nonblock", f"{STATE}/lock", "true", check=False
            ).returncode
            != 0
        ),
        10,
    )
    assert recover(deployment.host) == Outcome(0, "")
    assert holder.poll() is None
    holder.communicate()


@pytest.mark.only("sqlite3")
def test_recovery_reads_nothing_in_the_deploy_directory(deployment: Deployment) -> None:
    host, since = deployment.host, faults.log_lines(deployment.host)
    with tracker_started_again(deployment):
        before = dead_run(deployment, "stop", HELD)
        host.sh(
            f"rm {HOLD}; mv {DEPLOY_DIR}/.env /root/env.kept; mv {DEPLOY_DIR}/docker-compose.yml "
            "/root/compose.kept"
        )
        try:
            recovered(deployment, since, by_hand=True)
            is_back(deployment, before, "stop")
        finally:
            host.sh(
                f"mv /root/env.kept {DEPLOY_DIR}/.env; mv /root/compose.kept "
                f"{DEPLOY_DIR}/docker-compose.yml"
            )
