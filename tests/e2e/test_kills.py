"""SIGKILL for the script, its container, dockerd and containerd at every step of a run.

Each time the tracker comes back and nothing is lost. UPDATE_FAULTS=1 writes the tables of what was
seen into docs/faults.md. KILLS=200 kills at 200 random moments instead of ten. KILLS_SEED repeats
the same random moments.
"""

from __future__ import annotations

import os
import random
import re
import time

import pytest

from e2e import faults, page
from e2e.aftermath import becomes, lost, next_run
from e2e.deployment import Deployment
from e2e.faults import MARKER, PAUSE, STOP, recover, tracker_started_again
from e2e.host import Container, Host, wait_until
from e2e.page import Row
from e2e.stack import wait_for_tracker
from e2e.steps import KILL, STEPS, Step, Struck, strike_after, strike_at

BACK_SECONDS = 300
CRON_SECONDS = 60  # the recovery is called at once here, and by cron up to a minute later
ACTIONS = {"stop": STOP, "pause": PAUSE}

# Outside the window it makes no difference how the tracker is taken down. Before it has the lock,
# a run has not asked Docker for anything. So a Docker that dies then is not this run's business.
CASES = [
    (quiesce, victim, step)
    for quiesce in ACTIONS
    for victim in KILL
    for step in STEPS
    if (step.window or quiesce == "pause")
    and (step.container or victim != "its container")
    and (step is not STEPS[0] or victim == "the script")
]
# Docker itself may only die during a run, not just before or after it.
AT_RANDOM = {"the script": 8, "its container": 1, "containerd": 1}
# One case for each way to take the tracker down waits for cron's own recovery. The others call the
# recovery themselves, because cron needs up to a minute.
BY_CRON = ("the script", "capturing the database")


# By database and by how the tracker is taken down: the row of each kill, and the longest time
# without an answer to an announce.
SEEN: dict[tuple[str, str], dict[str, Row]] = {}
GAPS: dict[tuple[str, str], list[float]] = {}


def reason(killed: Struck, log: str) -> str:
    """The log line with the failure or the success; after a killed script, that of the recovery."""
    lines = log.splitlines()
    errors = [line for line in lines if "]: ERROR:" in line]
    assert len(errors) == (killed.outcome.code not in (0, 3, 137)), (
        f"the reason is logged once:\n{log}"
    )
    assert not re.search("exit code [0-9]+: unexpected", log), log
    for pattern in ("]: ERROR:", "skipped: ", "recovery: run", " succeeded", " begins"):
        if found := [line for line in lines if pattern in line]:
            return found[0]
    return ""


def brought_back(deployment: Deployment, before: Container, log: str) -> str:
    """What became of the tracker, and who did it."""
    after = deployment.tracker()
    assert (after.id, after.status) == (before.id, "running"), log
    if "recovery: run" in log:
        return "brought back by the recovery"
    if "window closed" in log or "Docker has died during this run" in log:
        return "brought back by the run"
    return becomes(before, after)


def answers(host: Host) -> bool:
    """Whether Docker is there."""
    return host.run("docker", "version", check=False).returncode == 0


def recovered(host: Host, killed: Struck, *, by_cron: bool = False) -> None:
    """Returns when the tracker answers again after a recovery, by cron or called as cron does."""
    wait_until("Docker to answer", lambda: answers(host), 60)
    if not by_cron:
        recover(host)
    left = BACK_SECONDS - CRON_SECONDS - (time.monotonic() - killed.moment)
    wait_until("the recovery", lambda: not host.exists(MARKER), left)
    wait_for_tracker(host, left)
    # A containerd that was killed takes systemd and Docker some seconds.
    wait_until(
        "Docker to reach containerd",
        lambda: host.run("docker", "top", "tracker", check=False).returncode == 0,
        60,
    )


@pytest.mark.parametrize(
    ("quiesce", "victim", "step"),
    CASES,
    ids=[f"{quiesce}: {victim}, {step.name}" for quiesce, victim, step in CASES],
)
def test_a_kill_at_a_step_loses_nothing(
    deployment: Deployment, quiesce: str, victim: str, step: Step
) -> None:
    host = deployment.host
    if not faults.backups(host):
        next_run(deployment, {})
    earlier, since, before = faults.backups(host), faults.log_lines(host), deployment.tracker()
    with tracker_started_again(deployment):
        with deployment.configured(**ACTIONS[quiesce]), deployment.load() as loads:
            killed = strike_at(host, step, KILL[victim])
            recovered(host, killed, by_cron=(victim, step.name) == BY_CRON)
        assert (killed.outcome.code == 137) == (victim == "the script"), killed.outcome.output
        gap = max(load.longest_gap for load in loads)
        assert gap < BACK_SECONDS - CRON_SECONDS
        log = faults.log_since(host, since)
        tracker = brought_back(deployment, before, log)
        assert lost(host, earlier) == []
        name, key = row_name(victim, step), (deployment.stack.driver, quiesce)
        row = Row(
            name, killed.outcome.code, reason(killed, log), tracker, next_run(deployment, earlier)
        )
    SEEN.setdefault(key, {})[name] = row
    GAPS.setdefault(key, []).append(gap)


def test_kills_at_random_moments_lose_nothing(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tenth killed run is followed by one that is left alone.

    A run that ended before it was killed does not count.
    """
    host, kills = deployment.host, int(os.environ.get("KILLS", "10"))
    seed = int(os.environ.get("KILLS_SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    next_run(deployment, {})
    with tracker_started_again(deployment), deployment.load() as loads:
        lengths = {quiesce: _length(deployment, quiesce) for quiesce in ACTIONS}
        codes: list[int] = []
        for attempt in range(1, kills * 3):
            quiesce, victim = (
                chance.choice(list(ACTIONS)),
                chance.choices(list(AT_RANDOM), list(AT_RANDOM.values()))[0],
            )
            moment = chance.uniform(0, lengths[quiesce])
            what = f"seed {seed}, attempt {attempt}: {victim} after {moment:.3f} s, {quiesce}"
            print(what)
            earlier, before = faults.backups(host), deployment.tracker()
            with deployment.configured(**ACTIONS[quiesce]):
                killed = strike_after(host, moment, KILL[victim])
                recovered(host, killed)
            after = deployment.tracker()
            assert (after.id, after.status) == (before.id, "running"), what
            assert lost(host, earlier) == [], what
            if not killed.live:
                lengths[quiesce] = moment
                continue
            codes.append(killed.outcome.code)
            if len(codes) == kills:
                break
            if len(codes) % 10 == 0:
                next_run(deployment, earlier)
                lengths = {quiesce: _length(deployment, quiesce) for quiesce in ACTIONS}
        assert len(codes) == kills
        next_run(deployment, {})
    gap = max(load.longest_gap for load in loads)
    assert gap < BACK_SECONDS - CRON_SECONDS
    ends = ", ".join(f"{codes.count(code)} with {code}" for code in sorted(set(codes)))
    text = (
        f"`KILLS={kills} KILLS_SEED={seed} pytest tests/e2e/test_kills.py -k 'random and "
        f"{deployment.stack.driver}'`: of {kills} runs that were struck "
        f"{ends} ended; none of the backups was lost, and announces went unanswered for {gap:.0f} "
        "s at most.\n"
    )
    page.show(f"random kills, {deployment.stack.driver}", text, capsys)


def _length(deployment: Deployment, quiesce: str) -> float:
    """Seconds of a run that is left alone."""
    begun = time.monotonic()
    with deployment.configured(**ACTIONS[quiesce]):
        deployment.run().succeeded()
    return time.monotonic() - begun


def row_name(victim: str, step: Step) -> str:
    """The first cell of a kill's row."""
    return f"{victim}: {step.name}"


@pytest.mark.parametrize("quiesce", ACTIONS)
def test_zz_the_tables(
    deployment: Deployment, quiesce: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints what was seen; what was not run this time stays on the page as it is."""
    key, name = (deployment.stack.driver, quiesce), f"kills, {deployment.stack.driver}, {quiesce}"
    if key not in SEEN:
        pytest.skip("nothing was killed this time")
    known = page.rows(name) | {name: str(row) for name, row in SEEN[key].items()}
    order = [row_name(victim, step) for taken_down, victim, step in CASES if taken_down == quiesce]
    rows = {name: known[name] for name in order if name in known}
    table = page.HEAD + "".join(f"{row}\n" for row in rows.values())
    gaps = [*GAPS[key], *(page.seconds(name) if rows.keys() != SEEN[key].keys() else [])]
    gap = (
        f"\nOf {len(rows)} kills, the longest time without an answer to an announce: "
        f"{max(gaps):.0f} s.\n"
    )
    page.show(name, table + gap, capsys)
