"""A host in a directory, with a stand-in of Docker, on which the programs run as processes."""

from __future__ import annotations

import compileall
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unit.sandbox import manifest

TESTS = Path(__file__).resolve().parent.parent
TEMPLATES = Path(os.environ.get("BUNDLE_TEMPLATES", TESTS.parent / "bundle-templates"))
IMAGE = "gen-backup-bundle/backup:0123456789ab"
TRACKER = "7e57"
STARTED = "2026-01-01T00:00:00Z"
SECONDS = 40  # the limit of one run


def install_programs(local: Path) -> Path:
    """What the installer puts below /usr/local. The package has its bytecode, for speed."""
    library = local / "lib/tracker-backup"
    (local / "bin").mkdir()
    shutil.copytree(TEMPLATES / "backup/tracker_backup", library / "tracker_backup")
    for source in (TEMPLATES / "host").iterdir():
        to_bin = source.name in ("tracker-backup", "maintenance-backup.sh")
        target = local / "bin" / source.name if to_bin else library / source.name
        target.write_bytes(source.read_bytes())
        target.chmod(0o755)
    compileall.compile_dir(str(library), quiet=1)
    return local


@dataclass
class Outcome:
    status: int
    output: str

    def ends_with(self, status: int, *texts: str) -> Outcome:
        """The run ended with this exit code and said each of the texts."""
        assert self.status == status, f"exit code {self.status}\n{self.output}"
        return self.says(*texts)

    def says(self, *texts: str) -> Outcome:
        for text in texts:
            assert text in self.output, f"the output lacks {text!r}:\n{self.output}"
        return self

    def lacks(self, *texts: str) -> Outcome:
        for text in texts:
            assert text not in self.output, f"the output has {text!r}:\n{self.output}"
        return self


@dataclass
class Process:
    """A run in the background, in a session of its own, as cron starts one."""

    popen: subprocess.Popen[bytes]
    output: Path

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def signal_group(self, number: int) -> None:
        """As a terminal does it: to the program and to all that it started in its group."""
        os.killpg(self.popen.pid, number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def finish(self) -> Outcome:
        try:
            status = self.popen.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.signal_group(signal.SIGKILL)
            status = self.popen.wait()
        text = self.output.read_text(errors="surrogateescape")
        return Outcome(status if status >= 0 else 128 - status, text)


def wait_until(true: Callable[[], object], seconds: float = 10, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain {what}"
        time.sleep(0.02)


@dataclass
class Host:
    """A deploy directory, a destination, a configuration and a running tracker."""

    path: Path
    local: Path  # where the programs are; see install_programs
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root, self.stub = self.path / "root", self.path / "stub"
        self.deploy, self.destination = self.path / "deploy", self.path / "destination"
        self.staging = self.deploy / "storage/backup-staging"
        self.state = self.root / "var/lib/tracker-backup"
        self.log = self.root / "var/log/tracker-backup.log"
        self.config = self.root / "etc/tracker-backup.conf"
        self.marker, self.lock_file = self.state / "window", self.state / "lock"
        for directory in (
            self.log.parent,
            self.config.parent,
            self.deploy / "backup",
            self.deploy / "storage/tracker/etc",
            self.deploy / "storage/tracker/lib/database",
            *(self.destination / name for name in ("sqlite", "mysql", "config", "runs")),
            *(self.stub / name for name in ("hooks", "tracker", "containers", "clients", "bin")),
        ):
            directory.mkdir(parents=True)
        for directory in (self.staging, self.state):
            directory.mkdir(mode=0o700, parents=True)
        self.write_files()
        self.environment |= {
            "PATH": f"{self.stub / 'bin'}:{TESTS / 'program/stubs'}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "STUB": str(self.stub),
            "STUB_DEPLOY": str(self.deploy),
            "STUB_DESTINATION": str(self.destination),
            "TRACKER_BACKUP_ROOT": str(self.root),
            "TRACKER_BACKUP_CONFIG": str(self.config),
            "TRACKER_BACKUP_STATE_DIR": str(self.state),
            "TRACKER_BACKUP_LOG": str(self.log),
            "TRACKER_BACKUP_LIBRARY": str(self.local / "lib/tracker-backup"),
            "TRACKER_BACKUP_TOOL": str(self.local / "bin/tracker-backup"),
            "TRACKER_BACKUP_DOCKER_PID_FILE": str(self.stub / "docker.pid"),
            "TRACKER_BACKUP_LOCK_SECONDS": "1",
            "TRACKER_BACKUP_STEADY_SECONDS": "0",
            "TRACKER_BACKUP_PAUSE_RETRY_SECONDS": "0",
        }

    def write_files(self) -> None:
        for path, text in {
            self.root / "etc/machine-id": "5ca1ab1e\n",
            self.destination / ".tracker-backup.json": json.dumps(
                {"environment": "production", "machine_id": "5ca1ab1e"}
            ),
            self.deploy / "docker-compose.yml": "services: {}\n",
            self.deploy / "docker-compose.backup.yml": "services: {}\n",
            self.deploy / ".env": "SECRET=1\n",
            self.deploy / "storage/tracker/etc/tracker.toml": "[core.database]\n"
            'driver = "sqlite3"\npath = "/var/lib/torrust/tracker/database/tracker.db"\n',
            self.deploy / "storage/tracker/lib/database/tracker.db": "live\n",
            self.deploy / "backup/backup-paths.txt": "/data/.env\n",
            self.stub / "calls": "",
            self.stub / "images": IMAGE + "\n",
            self.stub / "compose-version": "2.24.4\n",
            self.stub / "tracker/id": TRACKER,
            self.stub / "tracker/directory": str(self.deploy),
            self.stub / "tracker/status": "running",
            self.stub / "tracker/started": STARTED,
            self.stub / "tracker/finished": "0001-01-01T00:00:00Z",
            self.stub / "tracker/exit_code": "0",
        }.items():
            path.write_text(text)
        write_settings(
            self.config,
            ENVIRONMENT="production",
            DEPLOY_DIR=str(self.deploy),
            DESTINATION=str(self.destination),
            STRATEGY="maintenance-window",
            QUIESCE="stop",
            STOP_TIMEOUT_SECONDS="1",
            WINDOW_TIMEOUT_SECONDS="30",
            SCHEDULE="0 3 * * *",
            LONGEST_INTERVAL_SECONDS="86400",
            CALENDAR="0 3 1,2 1 0 both",
            IMAGE=IMAGE,
            IMAGE_SOURCE="build",
        )
        write_settings(
            self.deploy / "backup/backup.conf",
            BACKUP_MODE="single",
            BACKUP_RETENTION_DAYS="7",
            BACKUP_PATHS_FILE="/etc/backup/backup-paths.txt",
            BACKUP_COMPRESSION="gzip",
            BACKUP_SCOPE="full",
            BACKUP_ALLOW_WRITER_STALL="false",
            DB_TYPE="sqlite",
            DB_PATH="/data/storage/tracker/lib/database/tracker.db",
        )

    def end(self) -> None:
        """Ends what a test left running, by the ids that it wrote down."""
        for process in self.processes:
            if process.alive:
                process.signal_group(signal.SIGKILL)
                process.popen.wait()
        for hanging in self.hanging():
            with suppress(ProcessLookupError):
                os.kill(hanging, signal.SIGKILL)

    # ------------------------------------------------------------ setting up

    def configure(self, **settings: str) -> None:
        """Other values in the host's configuration."""
        change_settings(self.config, settings)

    def configure_backup(self, **settings: str) -> None:
        """Other values in backup.conf."""
        change_settings(self.deploy / "backup/backup.conf", settings)

    def on(self, event: str, text: str) -> None:
        """What else happens at a call of Docker or at a job; see fake_docker.py."""
        (self.stub / "hooks" / event).write_text(text)

    def off(self, *events: str) -> None:
        for event in events:
            (self.stub / "hooks" / event).unlink()

    def tracker(self, fact: str) -> str:
        return (self.stub / "tracker" / fact).read_text()

    def set_tracker(self, **facts: str) -> None:
        for fact, value in facts.items():
            (self.stub / "tracker" / fact).write_text(value)

    def remove_tracker(self) -> None:
        (self.stub / "tracker/removed").touch()

    def add_container(self, name: str, status: str = "running", work: str = "") -> None:
        """A container of a run."""
        run = name.removeprefix("tracker-backup-")
        facts = f"{status}\n{work}\ntracker-backup.run={run}\n"
        (self.stub / "containers" / name).write_text(facts)

    def add_run(self, run_id: str, sequence: int, **facts: Any) -> dict[str, Any]:
        """An earlier run: its run manifest, and the files that it names."""
        run = manifest(run_id, sequence, **facts)
        (self.destination / f"runs/{run_id}.json").write_text(json.dumps(run))
        for file in run["files"]:
            (self.destination / file["path"]).write_text("backup")
        return run

    def set(self, name: str, value: float | str) -> None:
        """One of the program's own limits: `LOCK_SECONDS` sets TRACKER_BACKUP_LOCK_SECONDS."""
        self.environment[f"TRACKER_BACKUP_{name}"] = str(value)

    def stop_at(self, point: str) -> Path:
        """The next run stands still at this fault point until the returned file is removed."""
        self.set("STOP_AT", point)
        directory = self.staging / ".fault-points"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        (directory / "hold").touch()
        return directory / "hold"

    # ------------------------------------------------------------ running

    def command(self, *arguments: str) -> list[str]:
        return ["/bin/bash", str(self.local / "bin/maintenance-backup.sh"), *arguments]

    def start(self, *arguments: str, command: list[str] | None = None) -> Process:
        """A run in the background."""
        output = self.path / f"output.{len(self.processes)}"
        with output.open("wb") as file:
            popen = subprocess.Popen(
                command or self.command(*arguments),
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(popen, output)
        self.processes.append(process)
        return process

    def install(self) -> None:
        """What a bundle puts beside the program, as far as status looks for it."""
        for name in ("tracker-backup", "maintenance-backup.sh"):
            path = self.root / "usr/local/bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)
        for name, text in {
            "etc/cron.d/tracker-backup": "* * * * * root cd $STATE && true >cron; true\n",
            "var/lib/tracker-backup/cron": "",
            "var/lib/tracker-backup/lock": "",
            "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000000 kB\n",
        }.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, *arguments: str) -> Outcome:
        """A run by hand, to its end."""
        return self.start(*arguments).finish()

    def tool(self, *arguments: str) -> Outcome:
        """`tracker-backup ARGUMENTS`"""
        program = self.environment["TRACKER_BACKUP_TOOL"]
        return self.start(command=["/usr/bin/python3", program, *arguments]).finish()

    def hanging(self) -> list[int]:
        """The processes in which a hook called `hang()`."""
        path = self.stub / "hanging"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def start_until_hanging(self, *arguments: str) -> Process:
        """A run in the background, until a call hangs."""
        before = len(self.hanging())
        process = self.start(*arguments)
        wait_until(
            lambda: len(self.hanging()) > before or not process.alive, 30, "for a call to hang"
        )
        assert process.alive, process.finish().output
        return process

    def touched(self, name: str) -> bool:
        """Whether a hook called `touch(name)`."""
        return (self.stub / name).exists()

    def wait_for(self, name: str) -> None:
        wait_until(lambda: self.touched(name), what=f"for {name}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else holds the lock."""
        with self.lock_file.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def lock_is_free(self) -> bool:
        with self.lock_file.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def has_lock_open(self, process: Process) -> bool:
        with suppress(OSError):
            for link in Path(f"/proc/{process.popen.pid}/fd").iterdir():
                if link.exists() and link.samefile(self.lock_file):
                    return True
        return False

    # ------------------------------------------------------------ looking

    @property
    def calls(self) -> list[str]:
        """What Docker was asked (`docker ...`) and which jobs were done (`job NAME {...}`)."""
        return (self.stub / "calls").read_text().splitlines()

    def forget_calls(self) -> None:
        (self.stub / "calls").write_text("")

    def was_called(self, pattern: str) -> None:
        assert any(re.search(pattern, call) for call in self.calls), (pattern, self.calls)

    def never_called(self, pattern: str) -> None:
        found = [call for call in self.calls if re.search(pattern, call)]
        assert not found, f"was called: {found}"

    def calls_in_order(self, *patterns: str) -> None:
        """Each matches a call later than the one before."""
        calls = iter(self.calls)
        for pattern in patterns:
            assert any(re.search(pattern, call) for call in calls), (
                f"not called, or not in this order: {pattern}",
                self.calls,
            )

    def tracker_is(self, status: str) -> None:
        assert self.tracker("status") == status, (self.tracker("status"), self.calls)

    def tracker_was_left_alone(self) -> None:
        """It was neither stopped, paused, started nor unpaused. Our own container is no tracker."""
        self.never_called(
            r"^docker (stop|pause|start|unpause|restart|kill) (?!.*\btracker-backup-)"
        )

    def published(self) -> list[str]:
        """The files in the destination but the run manifests, relative to it."""
        return sorted(
            str(path.relative_to(self.destination))
            for name in ("sqlite", "mysql", "config")
            for path in (self.destination / name).rglob("*")
            if not path.is_dir()
        )

    def nothing_was_published(self) -> None:
        assert self.published() == []

    def run_files(self) -> list[Path]:
        return sorted((self.destination / "runs").iterdir())

    def manifest(self) -> dict[str, Any]:
        """The one run manifest."""
        (path,) = self.run_files()
        manifest: dict[str, Any] = json.loads(path.read_text())
        assert manifest["id"] == path.stem
        return manifest

    def recorded(self, result: str, **facts: Any) -> dict[str, Any]:
        """The one run manifest has this result and these facts; a pattern matches text."""
        manifest = self.manifest()
        assert manifest["result"] == result, manifest
        for key, value in facts.items():
            if isinstance(value, re.Pattern):
                assert value.search(str(manifest[key])), manifest
            else:
                assert manifest[key] == value, manifest
        return manifest

    def warned(self, pattern: str) -> None:
        """A warning in the one run manifest."""
        warnings = self.manifest()["warnings"]
        assert any(re.search(pattern, warning) for warning in warnings), warnings

    def calls_between(self, first: str, last: str) -> list[str]:
        """The calls after one that matches `first`, before one that matches `last`."""
        calls = self.calls
        begin = next(i for i, call in enumerate(calls) if re.search(first, call))
        end = next(i for i, call in enumerate(calls) if i > begin and re.search(last, call))
        return calls[begin + 1 : end]

    def nothing_was_recorded(self) -> None:
        assert self.run_files() == []

    def nothing_is_left(self) -> None:
        """Neither staging nor a container."""
        assert sorted(self.staging.rglob("*")) == []
        assert sorted((self.stub / "containers").iterdir()) == []

    def failed_safely(self) -> None:
        """The tracker runs and nothing was published or left."""
        self.tracker_is("running")
        self.nothing_was_published()
        self.nothing_is_left()
        assert not self.marker.exists()


def write_settings(path: Path, **settings: str) -> None:
    path.write_text("".join(f"{key}='{value}'\n" for key, value in settings.items()))


def change_settings(path: Path, settings: dict[str, str]) -> None:
    text = path.read_text()
    for key, value in settings.items():
        text, times = re.subn(f"(?m)^{key}=.*$", f"{key}='{value}'", text)
        assert times == 1, key
    path.write_text(text)
