"""The steps of a run, each known by a command that it calls on the host or in its container: what happens at a step happens there for certain.

Real commands are called, through a small script of their name that comes first on PATH. It stands still before the command that is looked for
until that has happened which is to happen there.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from e2e.bundle import Outcome
from e2e.deployment import SCRIPT, STAGING
from e2e.host import Host

RUN_SECONDS = 240
HELD_SECONDS = 60
_OVER = 99  # the exit code that says that the run was over before it was struck

# Below staging, where both the host and the container look.
_STEPS = ".steps"
_ON_HOST = f"{STAGING}/{_STEPS}"
_COMMANDS = "cp docker flock mariadb-dump mawk mv pigz rm sqlite3 sync tar tracker-backup"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHIM = f"""#!/bin/bash
steps=${{0%/*/*}} name=${{0##*/}} PATH=${{PATH#*:}}
words="$name $*"
if [[ -e $steps/at && $words =~ $(<"$steps/at") ]] && mkdir "$steps/struck" 2>/dev/null; then
    while [[ -e $steps/hold ]] && ((SECONDS < {HELD_SECONDS})); do sleep 0.02; done
fi
if [[ $words == 'docker exec '* ]]; then set -- exec --env PATH=/staging/{_STEPS}/bin:{_PATH} "${{@:2}}"; fi
exec "$name" "$@"
"""

_PREPARE = f"""
mkdir -p {_ON_HOST}/bin && cd {_ON_HOST} && cat >bin/shim && chmod 0755 bin/shim
for name in {_COMMANDS}; do ln bin/shim bin/$name; done
[[ -z $AT ]] || printf '%s' "$AT" >at
touch hold
systemctl reset-failed docker.service containerd.service
"""

_STRIKE = f"""
for ((n = 0; n < {HELD_SECONDS * 50}; n++)); do [[ ! -e {_ON_HOST}/struck ]] || break; sleep 0.02; done
[[ -e {_ON_HOST}/struck ]] || {{ echo 'the run did not come to this step'; exit 1; }}
[[ $UNDER_WAY == no ]] || {{ rm {_ON_HOST}/hold; sleep 0.3; }}
eval "$DO"
code=$?
rm -f {_ON_HOST}/hold
exit $code
"""

# What is not there cannot be killed, and kill says so.
KILL = {
    "the script": f"kill -KILL $(cat {_ON_HOST}/pid)",
    "its container": "kill -KILL $(docker inspect --format '{{.State.Pid}}' $(docker ps --quiet "
    "--filter label=tracker-backup.run))",
    "dockerd": "kill -KILL $(pidof dockerd)",
    "containerd": "kill -KILL $(pidof containerd)",
}


@dataclass(frozen=True)
class Step:
    """A step of a run; the command that it is known by is a regular expression."""

    name: str
    command: str
    window: bool = False
    """Whether the tracker may be down at it, so that it matters how it was taken down."""
    container: bool = True
    """Whether the run's container is there."""
    under_way: bool = False
    """Whether to strike while the command runs, and not before it."""


@dataclass
class Struck:
    """A run that met something: how it ended, and when that was, in seconds of the test's own clock."""

    outcome: Outcome = field(default_factory=lambda: Outcome(-1, ""))
    moment: float = 0
    live: bool = True
    """Whether it was still running then."""


def strike_at(host: Host, step: Step, do: str) -> Struck:
    """Runs a backup, does something (a shell fragment) at a step of it, and waits for the end of what is left of the run."""
    with _running(host, step.command) as struck:
        host.run(
            "env",
            f"DO={do}",
            f"UNDER_WAY={'yes' if step.under_way else 'no'}",
            "bash",
            "-c",
            _STRIKE,
            seconds=HELD_SECONDS * 2,
        )
        struck.moment = time.monotonic()
    return struck


def strike_after(host: Host, seconds: float, do: str) -> Struck:
    """Runs a backup and does something so many seconds after its begin, wherever it is then; nothing when it is over."""
    with _running(host, "") as struck:
        waited = (
            f"until [[ -s {_ON_HOST}/pid ]]; do sleep 0.01; done; sleep {seconds:.3f}; kill "
            f"-0 $(cat {_ON_HOST}/pid) || exit {_OVER}; {do}"
        )
        struck.live = host.run("bash", "-c", waited, check=False).returncode != _OVER
        struck.moment = time.monotonic()
    return struck


@contextmanager
def _running(host: Host, at: str) -> Iterator[Struck]:
    host.run("env", f"AT={at}", "bash", "-ec", _PREPARE, stdin=_SHIM)
    exported = {
        "TRACKER_BACKUP_TOOL": f"{_ON_HOST}/bin/tracker-backup",
        "TRACKER_BACKUP_STEADY_SECONDS": "1",
    }
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in exported.items())
    process = host.spawn(
        "bash",
        "-c",
        f"echo $$ >{_ON_HOST}/pid; export {words} PATH={_ON_HOST}/bin:$PATH; exec {SCRIPT}",
    )
    struck = Struck()
    try:
        yield struck
    finally:
        output, _ = process.communicate(timeout=RUN_SECONDS)
        struck.outcome = Outcome(process.returncode, output)
        host.run("rm", "-rf", _ON_HOST)
