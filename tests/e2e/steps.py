"""The steps of a run, each with the fault point at which the program stands still.

The program stops there because TRACKER_BACKUP_STOP_AT names the point and the directory
.fault-points is in staging (see fault_points.py). Then a test does something to the run. All points
are in the program on the host. The roles in the containers do nothing meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from e2e.bundle import Outcome
from e2e.deployment import SCRIPT, STAGING
from e2e.host import Host

RUN_SECONDS = 240
HELD_SECONDS = 60
MISSED = 97  # the exit code that says that the run did not come to the step
_OVER = 99  # the same for a run that was over before it was struck

POINTS = f"{STAGING}/.fault-points"

PREPARE = f"""
rm -rf {POINTS}
mkdir -m 0700 {POINTS}
touch {POINTS}/hold
systemctl reset-failed docker.service containerd.service
"""

# Runs the fragment DO when the run has come to its step, with the run's process id in FAULT_PID.
# Then it lets the run go on. The fragment may let it go on by itself.
STRIKE = f"""
trap '[[ ! -e {POINTS}/hold ]] || rm -f {POINTS}/hold' EXIT
for ((n = 0; n < {HELD_SECONDS * 50}; n++)); do
    [[ ! -e {POINTS}/reached ]] || break
    ((n % 50 < 49)) || [[ ! -s {POINTS}/pid ]] || kill -0 "$(cat {POINTS}/pid)" || break
    sleep 0.02
done
[[ -e {POINTS}/reached ]] || {{ echo 'the run did not come to this step'; exit {MISSED}; }}
FAULT_PID=$(cat {POINTS}/pid)
[[ $UNDER_WAY != yes ]] || {{ rm {POINTS}/hold; sleep 0.3; }}
eval "$DO"
"""

# What is not there cannot be killed, and kill says so.
KILL = {
    "the script": f"kill -KILL $(cat {POINTS}/pid)",
    "its container": "kill -KILL $(docker inspect --format '{{.State.Pid}}' $(docker ps --quiet "
    "--filter label=tracker-backup.run))",
    "dockerd": "kill -KILL $(pidof dockerd)",
    "containerd": "kill -KILL $(pidof containerd)",
}


@dataclass(frozen=True)
class Step:
    """A step of a run, by the name that it has in docs/faults.md."""

    name: str
    window: bool = False
    """Whether the tracker may be down at it, so that it matters how it was taken down."""
    container: bool = True
    """Whether a container of the run is there."""
    under_way: bool = False
    """Whether to strike while the next command runs, and not before it."""
    point: str = ""
    """The name of its fault point; empty if it is the step's own name with hyphens."""

    @property
    def stop_at(self) -> str:
        """The value of TRACKER_BACKUP_STOP_AT."""
        return self.point or self.name.lower().replace(" ", "-")


STEPS = (
    Step("taking the lock", container=False),
    Step("checking the destination", container=False),
    Step("looking for what dead runs left", container=False),
    Step("checking Docker", container=False),
    Step("checking the deployment", container=False),
    Step("looking for the image", container=False),
    Step("starting the container", container=False),
    Step("proving that Docker can pause", point="proving-pause"),
    Step("preflight"),
    Step("syncing the marker", window=True),
    Step("renaming the marker", window=True),
    Step("taking the tracker down", window=True),
    Step(
        "taking the tracker down, under way",
        window=True,
        under_way=True,
        point="taking-the-tracker-down",
    ),
    Step("beginning the capture", window=True),
    Step("capturing the database", window=True),
    Step("bringing the tracker back", window=True),
    Step("removing the marker", window=True),
    Step("looking back at the window"),
    Step("beginning to finish"),
    Step("checking the database"),
    Step("compressing the database"),
    Step("archiving the configuration"),
    Step("removing the container"),
    Step("syncing the compressed database", container=False),
    Step("publishing the database", container=False),
    Step("publishing the configuration", container=False),
    Step("writing the run manifest", container=False),
    Step("removing old backups", container=False),
)


# Those of a restore. What happens before the first one touches nothing.
RESTORE_STEPS = tuple(
    Step(f"restore {name}", container=False)
    for name in (
        "prepared",
        "stopping",
        "stopped",
        "swapping",
        "between two renames",
        "between two targets",
        "swapped",
        "imported",
        "started",
    )
)


def step_named(name: str) -> Step:
    """The step that has a name."""
    (step,) = (step for step in (*STEPS, *RESTORE_STEPS) if step.name == name)
    return step


@dataclass
class Struck:
    """A run that met something: how it ended, and when, in seconds of the test's own clock."""

    outcome: Outcome = field(default_factory=lambda: Outcome(-1, ""))
    moment: float = 0
    live: bool = True
    """Whether it was still running then."""


def strike_at(host: Host, step: Step, do: str) -> Struck:
    """Runs a backup, runs a shell fragment at one of its steps, and waits for the run's end."""
    with _running(host, step.stop_at) as struck:
        host.run(
            "env",
            f"DO={do}",
            f"UNDER_WAY={'yes' if step.under_way else 'no'}",
            "bash",
            "-c",
            STRIKE,
            seconds=HELD_SECONDS * 2,
        )
        struck.moment = time.monotonic()
    return struck


def strike_after(host: Host, seconds: float, do: str) -> Struck:
    """Runs a backup and a shell fragment so many seconds after its begin, unless it is over."""
    with _running(host, "") as struck:
        waited = (
            f"until [[ -s {POINTS}/pid ]]; do sleep 0.01; done; sleep {seconds:.3f}; kill "
            f"-0 $(cat {POINTS}/pid) || exit {_OVER}; {do}"
        )
        struck.live = host.run("bash", "-c", waited, check=False).returncode != _OVER
        struck.moment = time.monotonic()
    return struck


@contextmanager
def _running(host: Host, at: str) -> Iterator[Struck]:
    host.run("bash", "-ec", PREPARE)
    words = "TRACKER_BACKUP_STEADY_SECONDS=1" + (f" TRACKER_BACKUP_STOP_AT={at}" if at else "")
    process = host.spawn("bash", "-c", f"echo $$ >{POINTS}/pid; export {words}; exec {SCRIPT}")
    struck = Struck()
    try:
        yield struck
    finally:
        output, _ = process.communicate(timeout=RUN_SECONDS)
        struck.outcome = Outcome(process.returncode, output)
        host.run("rm", "-rf", POINTS)
