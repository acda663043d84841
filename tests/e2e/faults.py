"""What the fault tests share: strikes at a step or a Docker call, and pictures of hosts."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from e2e.bundle import Outcome
from e2e.deployment import DESTINATION, LOG, SCRIPT, STAGING, Deployment
from e2e.host import Host, wait_until
from e2e.stack import DATABASE, DEPLOY_DIR, mysql, sqlite, wait_for_tracker
from e2e.steps import MISSED, POINTS, PREPARE, STRIKE, step_named

STATE = "/var/lib/tracker-backup"
MARKER = f"{STATE}/window"
HOLD = f"{STATE}/hold"
STOP = {"QUIESCE": "stop", "STOP_TIMEOUT_SECONDS": "1"}
PAUSE = {"QUIESCE": "pause", "STOP_TIMEOUT_SECONDS": "1"}
KILL = "kill -9 $FAULT_PID"
DIE = f"{KILL}; exit 1"  # the call itself is not made any more
COMMAND_SECONDS = 300

CAPTURE = "step beginning the capture"  # in the window, just before the database is captured

# The capture stands still: the roles that do it, on every Docker host as seen from that host.
STOP_CAPTURE = "pkill -STOP --full 'backup[.]py (reader|client)$'"

_SHIM_DIRECTORY = "/root/shim"
_REAL_DOCKER = "/usr/bin/docker"

# FAULT_AT is a regular expression for the words of a call. FAULT_NTH says which matching call is
# struck. FAULT_PID is the script under test. The stack's containers ignore TERM, so stopping each
# would take ten seconds: the shim waits for one second only.
_SHIM = f"""#!/bin/bash
printf '%s\\n' "$*" >>"$FAULT_CALLS"
if [[ $1 == stop && $2 != -t ]]; then set -- stop -t 1 "${{@:2}}"; fi
strike=no
if [[ -n $FAULT_AT && "$*" =~ $FAULT_AT ]]; then
    printf 'x\\n' >>"$FAULT_CALLS.matched"
    if (($(wc -l <"$FAULT_CALLS.matched") == FAULT_NTH)); then strike=$FAULT_WHEN; fi
fi
if [[ $strike == before ]]; then eval "$FAULT_DO"; fi
if [[ $strike != after ]]; then exec {_REAL_DOCKER} "$@"; fi
{_REAL_DOCKER} "$@"
status=$?
eval "$FAULT_DO"
exit $status
"""

_PICTURE = """
find . {excluded} -o -printf '%p|%y|%U:%G|%#m|%l\\n' | sort
find . {excluded} -o -type f {unhashed} -print0 | sort -z | xargs -0 sha256sum
"""
_NOT_IN_THE_PICTURE = (
    *(
        "./storage/backup",
        "./storage/backup-staging",
        "./storage/tracker/log/*",
        "./storage/mysql/data/*",
        "./storage/prometheus/data",
    ),
    *("./storage/caddy/data/caddy/locks", "*/last_clean.json"),
)


@dataclass(frozen=True)
class Struck:
    """How a command ended that met a fault, and the Docker calls that it had made until then."""

    outcome: Outcome
    calls: tuple[str, ...]

    @property
    def code(self) -> int:
        """Its exit code; 137 when it was killed."""
        return self.outcome.code

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.outcome.output


def strike(
    host: Host,
    *command: str,
    at: str = "",
    do: str = KILL,
    when: str = "before",
    nth: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Struck:
    """Runs a command to its end; runs the shell fragment `do` at one of its Docker calls.

    The call is the `nth` one that matches `at`; `when` is `before` or `after` it. For a run, `at`
    can also be `step NAME`, one of `steps.STEPS`.
    """
    with striking(
        host, *command, at=at, do=do, when=when, nth=nth, environment=environment
    ) as wait:
        return wait()


@contextmanager
def striking(
    host: Host,
    *command: str,
    at: str = "",
    do: str = KILL,
    when: str = "before",
    nth: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], Struck]]:
    """As `strike`, in the background; what it gives waits for the end."""
    calls, shim = "/tmp/docker-calls", f"{_SHIM_DIRECTORY}/docker"
    host.run(
        "bash",
        "-c",
        f"rm -f {calls} {calls}.matched; mkdir -p {_SHIM_DIRECTORY}; "
        f"cat >{shim}; chmod 0755 {shim}",
        stdin=_SHIM,
    )
    step = step_named(at.removeprefix("step ")) if at.startswith("step ") else None
    exported = {
        "FAULT_AT": "" if step else at,
        "FAULT_DO": do,
        "FAULT_WHEN": when,
        "FAULT_NTH": str(nth),
        "FAULT_CALLS": calls,
    }
    exported |= {"TRACKER_BACKUP_STEADY_SECONDS": "1"} | dict(environment or {})
    says_pid, striker = "", None
    if step:
        exported["TRACKER_BACKUP_STOP_AT"] = step.stop_at
        host.run("bash", "-ec", PREPARE)
        says_pid = f"echo $$ >{POINTS}/pid; "
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in exported.items())
    process = host.spawn(
        "bash",
        "-c",
        f'{says_pid}export {words} FAULT_PID=$$ PATH={_SHIM_DIRECTORY}:$PATH; exec "$@"',
        "struck",
        *command,
    )
    if step:
        striker = host.spawn("env", f"DO={do}", "UNDER_WAY=no", "bash", "-c", STRIKE)

    def wait() -> Struck:
        output, _ = process.communicate(timeout=COMMAND_SECONDS)
        if striker:
            said, _ = striker.communicate(timeout=COMMAND_SECONDS)
            assert striker.returncode != MISSED, said + output
        made = host.run("cat", calls, check=False).stdout.splitlines()
        return Struck(Outcome(process.returncode, output), tuple(made))

    try:
        yield wait
    finally:
        for one in (process, striker):
            if one and one.poll() is None:
                try:
                    one.communicate(timeout=COMMAND_SECONDS)
                except subprocess.TimeoutExpired:
                    one.kill()
                    one.communicate()
        if step:
            host.run("rm", "-rf", POINTS, check=False)


def picture(host: Host, *, databases: bool = True) -> dict[str, str]:
    """Every path of the deploy directory with its type, owner, mode, link target and SHA-256.

    Files that running services keep changing are left out.

    `databases` False leaves out the content of SQLite files, which is compared row by row.
    """
    excluded = (
        "\\( "
        + " -o ".join(f"-path {shlex.quote(path)}" for path in _NOT_IN_THE_PICTURE)
        + " \\) -prune"
    )
    unhashed = "" if databases else "! -name '*.db'"
    lines = host.sh(
        f"cd {DEPLOY_DIR} && {_PICTURE.format(excluded=excluded, unhashed=unhashed)}"
    ).splitlines()
    seen: dict[str, str] = {}
    for line in lines:
        if "|" in line:
            path, _, facts = line.partition("|")
            if path.endswith(".db"):
                facts = facts.replace(
                    "|02770|", "|0770|"
                )  # the tracker sets the bit at its start, and loses it when it writes
            seen[path] = facts
        else:
            digest, _, path = line.partition("  ")
            seen[path] += f"|{digest}"
    return seen


def rows(deployment: Deployment) -> str:
    """Every row of the tracker's tables except those that announces add; MySQL's objects too."""
    found = deployment.query(
        "SELECT info_hash, completed FROM torrents WHERE info_hash LIKE '00000000%' ORDER BY 1;"
        "SELECT * FROM whitelist ORDER BY 1; SELECT * FROM `keys` ORDER BY 1;"
    )
    if deployment.stack.driver == "mysql":
        found += deployment.query(
            "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = "
            f"'{DATABASE['mysql']}';"
            "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = "
            f"'{DATABASE['mysql']}' ORDER BY 1;"
        )
    return found


def backups(host: Host) -> dict[str, str]:
    """SHA-256 of every file of ours at the destination, partial ones left out."""
    lines = host.sh(
        f"cd {DESTINATION} && find sqlite mysql config runs -type f ! -name '*.partial' -print0 | "
        "sort -z | xargs -0 --no-run-if-empty sha256sum"
    ).splitlines()
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def not_whole(host: Host) -> list[str]:
    """Files under a final name at the destination that cannot be read to their end."""
    script = f"""
    cd {DESTINATION} && find sqlite mysql config runs -type f | while read -r file; do
        case $file in
            *.gz) gzip --test "$file" 2>/dev/null || echo "$file" ;;
            *.zst) zstd -q --test "$file" 2>/dev/null || echo "$file" ;;
            runs/*.json) python3 -m json.tool "$file" >/dev/null 2>&1 || echo "$file" ;;
            *) ;;
        esac
    done"""
    return host.sh(script).splitlines()


def recover(host: Host) -> Outcome:
    """The recovery, as cron calls it every minute."""
    done = host.run(SCRIPT, "--recover", check=False, seconds=COMMAND_SECONDS)
    return Outcome(done.returncode, done.stdout + done.stderr)


def log_since(host: Host, line: int) -> str:
    """The log from a line on."""
    return host.run("tail", "-n", f"+{line + 1}", LOG, check=False).stdout


def log_lines(host: Host) -> int:
    """How many lines the log has."""
    return int(host.sh(f"cat {LOG} 2>/dev/null | wc -l"))


def leftovers(host: Host) -> list[str]:
    """Containers of ours and what lies in staging; empty when nothing runs."""
    script = (
        f"docker ps --all --filter name=^tracker-backup- --format '{{{{.Names}}}}'; ls -A {STAGING}"
    )
    return [name for name in host.sh(script).split() if name != "before-restore"]


def wait_for_cron(host: Host, since: int, text: str) -> str:
    """Returns the log's new lines when cron's own recovery has written a text into them."""
    wait_until(f"cron to log {text!r}", lambda: text in log_since(host, since), 100)
    return log_since(host, since)


def has_recovery_in_cron(host: Host) -> bool:
    """Whether the bundle's cron file calls the recovery by itself."""
    return "--recover" in host.read("/etc/cron.d/tracker-backup")


@contextmanager
def tracker_started_again(deployment: Deployment) -> Iterator[None]:
    """After the block the tracker runs, and no marker or hold is left, whatever the test did."""
    try:
        yield
    finally:
        host = deployment.host
        host.sh(
            f"rm -f {HOLD} {MARKER}; docker ps --all --quiet --filter label=tracker-backup.run | "
            "xargs --no-run-if-empty docker rm --force",
            check=False,
        )
        # A Docker that was killed does not start the stack's other containers again, either.
        down = [
            name
            for name, one in host.containers().items()
            if one.status not in ("running", "restarting")
        ]
        if down or "tracker" not in host.containers():
            host.run("docker", "unpause", "tracker", check=False)
            host.run("docker", "start", *down, "tracker", check=False)
            host.run(
                "docker",
                "compose",
                "--project-directory",
                DEPLOY_DIR,
                "up",
                "--detach",
                "--no-recreate",
                check=False,
            )
        wait_for_tracker(host)


__all__ = ["mysql", "sqlite"]
