"""A power cut or a boot in the window, and a power cut of the destination's disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e import disk, faults, page
from e2e.aftermath import becomes, lost, next_run, reason
from e2e.deployment import DESTINATION, SCRIPT, Deployment
from e2e.faults import CAPTURE, MARKER, PAUSE, STOP, striking, tracker_started_again
from e2e.host import wait_until
from e2e.page import Row
from e2e.stack import wait_for_tracker
from e2e.steps import Step, step_named, strike_at

ACTIONS = {"stop": STOP, "pause": PAUSE}
DOWN = {"stop": "exited", "pause": "paused"}
PUBLISHING = tuple(
    Step(name, point=step_named(step).stop_at)
    for name, step in (
        ("when the database is compressed", "syncing the compressed database"),
        ("before the database is published", "publishing the database"),
        ("before the configuration is published", "publishing the configuration"),
        ("before the run manifest is written", "writing the run manifest"),
        ("before old backups are removed", "removing old backups"),
    )
)

# With a file just written that nobody has synced.
POWER_GONE = f"echo unsynced >{DESTINATION}/unsynced; {disk.without_power(DESTINATION)}"

SEEN: dict[str, Row] = {}


@pytest.mark.parametrize("quiesce", ACTIONS)
@pytest.mark.parametrize("way", ["power_cut", "reboot"])
def test_the_tracker_is_back_after_a_boot_inside_the_window(
    deployment: Deployment, quiesce: str, way: str
) -> None:
    host, earlier, since, before = (
        deployment.host,
        faults.backups(deployment.host),
        faults.log_lines(deployment.host),
        deployment.tracker(),
    )
    with tracker_started_again(deployment), deployment.configured(**ACTIONS[quiesce]):
        with striking(host, SCRIPT, at=CAPTURE, do="sleep 1000"):
            wait_until(
                "the window",
                lambda: host.exists(MARKER) and deployment.tracker().status == DOWN[quiesce],
                60,
            )
            getattr(host, way)()
        wait_until("cron's recovery", lambda: not host.exists(MARKER), 100)
        wait_for_tracker(host)
        after = deployment.tracker()
        assert (after.id, after.status) == (before.id, "running")
        others = (one for name, one in host.containers().items() if "backup" not in name)
        wait_until(
            "every other container", lambda: all(one.status == "running" for one in others), 60
        )
        assert lost(host, earlier) == []
    line = reason(faults.log_since(host, since), "recovery: run .* left a window open")
    name = (
        f"{way.replace('_', ' ')} in the window, tracker "
        f"{DOWN[quiesce].replace('exited', 'stopped')}"
    )
    ended = re.search(
        r"failed, exit code (\d+)", line
    )  # a boot may leave the run the time to say so
    SEEN[name] = Row(
        name,
        int(ended[1]) if ended else 137,
        line,
        becomes(before, after),
        next_run(deployment, earlier),
    )


@contextmanager
def losing_disk(deployment: Deployment) -> Iterator[None]:
    """Mounts a disk of its own at the destination for as long as the block lasts."""
    host = deployment.host
    host.sh(disk.ext4(DESTINATION))
    try:
        yield
    finally:
        host.sh(disk.gone(DESTINATION))


def back_on(deployment: Deployment) -> None:
    """Gives the disk its power back; it lost what was not synced, or the test proves nothing."""
    deployment.host.sh(disk.with_power_again(DESTINATION))
    assert not deployment.host.exists(f"{DESTINATION}/unsynced")


def test_a_backup_is_whole_after_a_power_cut_just_after_success(deployment: Deployment) -> None:
    host = deployment.host
    with losing_disk(deployment):
        with deployment.configured(QUIESCE="none"):
            deployment.run().succeeded()
            earlier, before, since = (
                faults.backups(host),
                deployment.tracker(),
                faults.log_lines(host),
            )
            host.sh(f"{SCRIPT} && {{ {POWER_GONE}; }}")
        back_on(deployment)
        assert lost(host, earlier) == []
        run = deployment.last_run()
        assert run["result"] == "success" and len(faults.backups(host)) == len(earlier) + 3
        host.run("tracker-backup", "verify", run["id"], seconds=300)
        line = reason(faults.log_since(host, since), "succeeded")
        name = "power cut of the destination just after success"
        SEEN[name] = Row(
            name,
            0,
            line,
            becomes(before, deployment.tracker()),
            next_run(deployment, faults.backups(host)),
        )


@pytest.mark.parametrize("step", PUBLISHING, ids=lambda step: str(step.name))
def test_no_backup_is_lost_when_the_power_goes_while_one_is_published(
    deployment: Deployment, step: Step
) -> None:
    host = deployment.host
    with losing_disk(deployment):
        with deployment.configured(QUIESCE="none"):
            deployment.run().succeeded()
            earlier, before, since = (
                faults.backups(host),
                deployment.tracker(),
                faults.log_lines(host),
            )
            struck = strike_at(host, step, POWER_GONE)
        back_on(deployment)
        assert lost(host, earlier) == []
        assert struck.outcome.code == (0 if "old backups" in step.name else 1), (
            struck.outcome.output
        )
        line = reason(faults.log_since(host, since), "succeeded|failed")
        name = f"power cut of the destination {step.name}"
        SEEN[name] = Row(
            name,
            struck.outcome.code,
            line,
            becomes(before, deployment.tracker()),
            next_run(deployment, earlier),
        )


def test_zz_the_table(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not run this time stays on the page as it is."""
    section = f"power, {deployment.stack.driver}"
    seen = page.rows(section) | {name: str(row) for name, row in SEEN.items()}
    page.show(section, page.HEAD + "".join(f"{row}\n" for row in seen.values()), capsys)
    SEEN.clear()
