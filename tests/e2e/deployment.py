"""An installed deployment: tests run backups on it, look at them, and reach into a window."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.announce import CLIENTS, HttpAnnouncer, Load, UdpAnnouncer
from e2e.bundle import Bundle, Outcome
from e2e.host import Container, Host, wait_until
from e2e.stack import DATABASE, DEPLOY_DIR, SQLITE_FILE, Stack, mysql, sqlite, wait_for_tracker

DESTINATION = f"{DEPLOY_DIR}/storage/backup"
STAGING = f"{DEPLOY_DIR}/storage/backup-staging"
SCRIPT = "/usr/local/bin/maintenance-backup.sh"
CONFIG = "/etc/tracker-backup.conf"
LOG = "/var/log/tracker-backup.log"
RUN_SECONDS = 180

Run = dict[str, Any]  # a run manifest

# Where TRACKER_BACKUP_STOP_AT has a run stand still: see fault_points.py.
_POINTS = f"{STAGING}/.fault-points"
_BEFORE_CAPTURE = "beginning-the-capture"

# Stops the roles that capture just before they get their job, prints their process ids, and lets
# the run go on.
_HOLD_CAPTURE = f"""
mkdir -m 0700 {_POINTS} && touch {_POINTS}/hold
while ((SECONDS < 60)) && [[ ! -e {_POINTS}/reached ]]; do sleep 0.02; done
[[ -e {_POINTS}/reached ]] || exit 1
pkill -STOP --full 'backup[.]py (reader|client)$' && pgrep --full 'backup[.]py (reader|client)$'
code=$?
rm {_POINTS}/hold
exit $code
"""


@dataclass(frozen=True)
class Deployment:
    """A host with its stack and an installed bundle.

    `before` is the inventory from before the installation. `checked` and `installed` are how the
    first two playbook calls ended.
    """

    host: Host
    stack: Stack
    bundle: Bundle
    key: Path
    before: frozenset[str]
    checked: Outcome
    installed: Outcome

    @staticmethod
    def inventory(host: Host) -> frozenset[str]:
        """Every file, image, network and volume of a host, leaving out what changes by itself."""
        places = "/etc /usr/local /var /opt /root /run /tmp"
        moving = (
            "/var/lib/docker",
            "/var/lib/containerd",
            "/var/log/journal",
            "/var/lib/systemd",
            "/var/lib/logrotate",
            f"{DEPLOY_DIR}/storage/*/data",
            "/run/*",
            "/root/.ansible",
        )
        pruned = " -o ".join(f"-path '{path}'" for path in moving)
        files = host.sh(f"find {places} \\( {pruned} \\) -prune -o -print").splitlines()
        images = host.sh(
            "docker images --format 'image {{.Repository}}:{{.Tag}}'"
            "; docker network ls --format 'network {{.Name}}'"
            "; docker volume ls --format 'volume {{.Name}}'"
        )
        return frozenset(files + images.splitlines())

    @property
    def kind(self) -> str:
        """The folder of the database's backups, which is also the beginning of their names."""
        return "sqlite" if self.stack.driver == "sqlite3" else "mysql"

    def run(self, *options: str) -> Outcome:
        """A backup now, by hand."""
        done = self.host.run(SCRIPT, *options, check=False, seconds=RUN_SECONDS)
        return Outcome(done.returncode, done.stdout + done.stderr)

    @contextmanager
    def running(self) -> Iterator[BackgroundRun]:
        """A backup in the background, waited for when the block ends."""
        since = self.host.run("date", "+%s.%N").stdout.strip()
        process = self.host.spawn(
            "bash", "-c", f"echo $$; TRACKER_BACKUP_STOP_AT={_BEFORE_CAPTURE} exec {SCRIPT}"
        )
        assert process.stdout is not None
        run = BackgroundRun(self.host, process, process.stdout.readline().strip(), since)
        try:
            yield run
        finally:
            run.end()

    @contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """Other values in the host's configuration for as long as the block lasts."""
        files = f"{CONFIG} {DEPLOY_DIR}/backup/backup.conf"
        edits = "".join(f"s|^{key}=.*|{key}='{value}'|\n" for key, value in settings.items())
        try:
            self.host.sh(
                f"for file in {files}; do cp -p $file $file.original; done;"
                f" sed -i {shlex.quote(edits)} {files}"
            )
            yield
        finally:
            self.host.sh(f"for file in {files}; do mv $file.original $file; done")

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A directory on the host for as long as the block lasts."""
        directory = self.host.run("mktemp", "--directory").stdout.strip()
        try:
            yield directory
        finally:
            self.host.run("rm", "-rf", directory)

    @contextmanager
    def load(self) -> Iterator[tuple[Load, Load]]:
        """Announces by HTTP and by UDP for as long as the block lasts."""
        address = self.host.address
        with (
            Load([HttpAnnouncer(address) for _ in range(CLIENTS)]) as http,
            Load([UdpAnnouncer(address) for _ in range(CLIENTS)]) as udp,
        ):
            yield http, udp

    def runs(self) -> list[Run]:
        """The run manifests, as the operator's command shows them, oldest first."""
        listed: list[Run] = json.loads(self.host.run("tracker-backup", "list", "--json").stdout)
        return listed

    def last_run(self) -> Run:
        """The newest run manifest."""
        return self.runs()[-1]

    def file(self, run: Run, kind: str) -> str:
        """Path on the host of the file of a kind (`database` or `config`) of a run."""
        folder = self.kind if kind == "database" else "config"
        (path,) = (file["path"] for file in run["files"] if file["path"].startswith(f"{folder}/"))
        return f"{DESTINATION}/{path}"

    def published(self) -> list[str]:
        """Every file below the destination."""
        return self.host.sh(f"find {DESTINATION} -type f -printf '%P\\n' | sort").splitlines()

    def tracker(self) -> Container:
        """The tracker's container as it is now."""
        return self.host.containers()["tracker"]

    def wait_for_tracker(self) -> None:
        """Returns when announces are answered again."""
        wait_for_tracker(self.host)

    def query(self, statements: str) -> str:
        """Rows from the live database of the tracker, as its administrator."""
        if self.stack.driver == "mysql":
            return mysql(self.host, statements, DATABASE["mysql"])
        return sqlite(self.host, SQLITE_FILE, statements)


class BackgroundRun:
    """A backup that is under way."""

    def __init__(self, host: Host, process: subprocess.Popen[str], pid: str, since: str) -> None:
        self.pid = pid
        self.outcome: Outcome | None = None
        self._host = host
        self._process = process
        self._since = since
        self._held: list[str] = []

    def signal(self, name: str) -> None:
        """Sends a signal to the script alone."""
        self._host.run("kill", f"-{name}", self.pid)

    def wait(self) -> Outcome:
        """How it ended."""
        output, _ = self._process.communicate(timeout=RUN_SECONDS)
        self.outcome = Outcome(self._process.returncode, output)
        return self.outcome

    def wait_for_stop(self) -> None:
        """Returns when Docker has sent TERM to the tracker, which lets all of its grace pass."""
        asked = (
            f"docker events --since {self._since} --until $(date +%s.%N)"
            " --filter container=tracker --filter event=kill"
        )
        wait_until("the run to stop the tracker", lambda: bool(self._host.sh(asked)), 60)

    def wait_for_window(self) -> None:
        """Returns when the tracker is down."""
        wait_until(
            "the tracker to be stopped",
            lambda: self._host.containers()["tracker"].status == "exited",
            60,
        )

    def hold_capture(self) -> None:
        """Returns with the run in the middle of its capture, which stands until it is released."""
        self._held = self._host.sh(_HOLD_CAPTURE).split()
        assert not self._logged("window closed"), "the capture was over before it could be held"

    def release_capture(self) -> None:
        """Lets a held capture go on, if its containers are still there."""
        if self._held:
            self._host.run("kill", "-CONT", *self._held, check=False)
            self._held = []

    def end(self) -> None:
        """Leaves nothing of the run behind, however far a test came."""
        self.release_capture()
        if self.outcome is None:
            self._host.run("kill", self.pid, check=False)
            self.wait()
        self._host.run("rm", "-rf", _POINTS)

    def _logged(self, text: str) -> bool:
        """Whether this run (and no earlier one) has logged something."""
        return (
            self._host.run(
                "grep", "-qF", f"maintenance-backup[{self.pid}]: {text}", LOG, check=False
            ).returncode
            == 0
        )
