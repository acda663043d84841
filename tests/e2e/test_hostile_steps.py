"""A taken-over container of the run answers the host: nothing of it is executed or followed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from e2e import faults
from e2e.aftermath import lost, next_run
from e2e.deployment import SCRIPT, Deployment
from e2e.faults import MARKER, PAUSE, tracker_started_again
from e2e.host import wait_until
from e2e.stack import wait_for_tracker
from e2e.steps import step_named, strike_at

PWNED = "/tmp/pwned"
SECRET = "/root/secret-of-the-host"
VICTIM = "/root/victim"
NO_NUMBER = "the capture step left an exit code that is no number"


@dataclass(frozen=True)
class Answer:
    """What the container does, in the run's directory in staging, and what the run says then."""

    name: str
    script: str
    said: str

    def __str__(self) -> str:
        return self.name


# In the container, `ended` is there only after the step. So a process waits for it there, and
# replaces it again and again, as a container does that somebody has taken over.
EVALUATED = f"BASH_VERSINFO[$(touch {PWNED})0]*0"
ANSWERS = (
    Answer(
        "an exit code that is an expression",
        f"printf '%s' {shlex.quote(EVALUATED)} >.new; mv -fT .new ended",
        NO_NUMBER,
    ),
    Answer("an exit code that is a link", f"ln -s {SECRET} .new; mv -fT .new ended", NO_NUMBER),
    Answer("an exit code that is a pipe", "mkfifo .new; mv -fT .new ended", NO_NUMBER),
    Answer(
        "a reason that is a link",
        f"ln -s {SECRET} .r; mv -fT .r reason; printf 1 >.new; mv -fT .new ended",
        "the capture step failed with exit code 1, and its reason is no regular file",
    ),
    Answer(
        "a reason with escape sequences",
        r"printf 'red \033[31m \342\200\256' >.r; mv -fT .r reason; "
        "printf 1 >.new; mv -fT .new ended",
        "red ?[31m ?",
    ),
    Answer(
        "a directory that is a link to one of the host",
        "d=$PWD; cd /; printf 1 >$d/ended; mv $d /staging/aside; ln -sT /root/victim.d $d",
        "the capture step failed with exit code 1",
    ),
)

# Runs on the host while the run stands still in the container, in the capture.
_PLANT = """
name=$(docker ps --filter label=tracker-backup.run --format '{{{{.Names}}}}')
docker exec --detach "$name" bash -c {script}
"""


@pytest.fixture(autouse=True)
def clean_host(deployment: Deployment) -> Iterator[None]:
    """Leaves nothing of these tests on the host."""
    yield
    deployment.host.sh(f"rm -rf {PWNED} {SECRET} {VICTIM} {VICTIM}.d")


@pytest.mark.only("sqlite3")
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_an_answer_of_a_taken_over_container_is_only_data(
    deployment: Deployment, answer: Answer
) -> None:
    host = deployment.host
    if not faults.backups(host):
        next_run(deployment, {})
    earlier, since, before = faults.backups(host), faults.log_lines(host), deployment.tracker()
    host.sh(
        f"rm -rf {PWNED}; echo a-secret-of-the-host | tee {SECRET} >{VICTIM}; "
        f"mkdir -p /root/victim.d; cp {SECRET} /root/victim.d/reason; echo 0 >/root/victim.d/kept"
    )
    # The planted process kills the step, so that the step's own answer does not come later.
    script = (
        "cd /staging/[0-9]*_[0-9]*; pkill -STOP --full '[b]ackup.sh capture' || "
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | "
        "grep -q '[b]ackup.sh capture' && kill -STOP ${p#/proc/}; done; "
        f"{answer.script}; sleep 60"
    )
    with tracker_started_again(deployment), deployment.configured(**PAUSE):
        struck = strike_at(
            host,
            step_named("capturing the database"),
            _PLANT.format(script=shlex.quote(script)) + "sleep 1",
        )
        log = faults.log_since(host, since)
        assert struck.outcome.code == 1, struck.outcome.output
        assert answer.said in log, log
        assert not host.exists(PWNED), "the host executed what the container wrote"
        assert "a-secret-of-the-host" not in log + struck.outcome.output
        assert "\x1b" not in log
        assert host.read(VICTIM).strip() == "a-secret-of-the-host"
        assert host.sh("ls -A /root/victim.d").split() == ["kept", "reason"]
        after = deployment.tracker()
        assert (after.id, after.status, after.started) == (before.id, "running", before.started)
        wait_for_tracker(host)
        assert not host.exists(MARKER)
        assert len(re.findall(r"\]: ERROR:", log)) == 1, log
    host.sh("rm -rf /opt/torrust/storage/backup-staging/aside")
    assert lost(host, earlier) == []
    next_run(deployment, earlier)


@pytest.mark.only("sqlite3")
def test_links_that_the_container_plants_are_not_written_through(deployment: Deployment) -> None:
    """Before the remote copy the container plants links where the host used to write."""
    host = deployment.host
    host.sh(f"echo kept >{VICTIM}")
    earlier = faults.backups(host)
    script = (
        f"cd /staging/[0-9]*_[0-9]*; for name in push push.output; do ln -s {VICTIM} $name; done"
    )
    planted = "test -L /opt/torrust/storage/backup-staging/[0-9]*_[0-9]*/push"
    with deployment.configured(QUIESCE="none"):
        struck = strike_at(
            host,
            step_named("publishing the configuration"),
            _PLANT.format(script=shlex.quote(script)) + f"sleep 1; {planted}",
        )
    struck.outcome.succeeded()
    assert host.read(VICTIM) == "kept\n"
    assert lost(host, earlier) == []


@pytest.mark.only("sqlite3")
def test_a_container_of_a_dead_run_that_is_paused_is_removed(deployment: Deployment) -> None:
    """The run died while it proved that the engine can pause."""
    host, earlier = deployment.host, faults.backups(deployment.host)
    kill = (
        "docker pause $(docker ps --quiet --filter label=tracker-backup.run) && "
        "kill -KILL $(cat /opt/torrust/storage/backup-staging/.fault-points/pid)"
    )
    with deployment.configured(**PAUSE):
        struck = strike_at(host, step_named("proving that Docker can pause"), kill)
        assert struck.outcome.code == 137
        assert host.sh("docker ps --quiet --filter status=paused").split()
        done = host.run(SCRIPT, check=False, seconds=180)
        assert done.returncode == 0, done.stdout
    wait_until("the container to be gone", lambda: faults.leftovers(host) == [], 30)
    assert lost(host, earlier) == []
