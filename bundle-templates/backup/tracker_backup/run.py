"""A run: `back_up` is one from its lock to its copy elsewhere; the rest is in the same order."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from . import log
from .answers import (
    REASON_CHARACTERS,
    BadAnswer,
    Result,
    open_answer,
    printable,
    read_answer,
    read_result,
)
from .deployment import check_deployment, stack_facts
from .destination import IDENTITY, check_destination
from .docker import (
    BUILD_SECONDS,
    DOCKER_SECONDS,
    RUN_LABEL,
    WORK_SECONDS,
    check_docker,
    compose,
    docker,
    end,
    has_image,
    start,
    words,
)
from .fault_points import fault_point
from .files import remove_tree, write_durably
from .host import CONFIG, IN_SIDECAR, STATE, Host, Refused, utc_now
from .remote import push_or_tell, remembered
from .repository import uses_restic
from .restore import command_rollback
from .retention import prune
from .runs import Manifest, newest_success, read_runs, too_old
from .secrets import named_secrets, require_secrets
from .signals import Ended, signals
from .state import LockHeld
from .window import MARKER, STOP_INSTEAD, Stack, Tracker, Window, is_overdue, look, tracker_ids

FORMAT = 1
HOLD, RESTORE = STATE / "hold", STATE / "restore.json"
LOCK_SECONDS = float(os.environ.get("TRACKER_BACKUP_LOCK_SECONDS", "10"))
PREFLIGHT_SECONDS = float(os.environ.get("TRACKER_BACKUP_PREFLIGHT_SECONDS", "300"))
PAUSE_RETRY_SECONDS = float(os.environ.get("TRACKER_BACKUP_PAUSE_RETRY_SECONDS", "5"))
BACKUP_SH = "/usr/local/bin/backup.sh"
LOST_SECONDS = 5  # for Docker's client to hear that its step has ended
REASON_BYTES = 1 << 16
TIMED_OUT, KILLED = 124, 137


class Run:
    """What is known of this run, and what each of its steps needs."""

    def __init__(self, dry_run: bool, force: bool = False) -> None:
        self.dry_run, self.force = dry_run, force
        self.id = self.started = self.quiesce = ""
        self.lock: IO[str] | None = None  # held until the process ends
        self.work: Path | None = None  # its directory in staging
        self.answers = Path("/nonexistent")  # the same directory, through our own descriptor
        self.window: Window | None = None
        self.warnings: list[str] = []
        # From the moment when the destination is known to be ours until a run manifest is written.
        self.unrecorded = False
        self.host: Host

    def warn(self, text: str) -> None:
        log.log(f"WARNING: {text}")
        self.warnings.append(text)


# ---------------------------------------------------------------- the run


def back_up(run: Run) -> None:
    """The strategy maintenance-window."""
    host = run.host
    with Stack(host) as stack:
        begin(run)
        remove_leftover_containers(run)
        remove_leftover_files(run)
        require_docker(host)
        tracker, looked_at = find_tracker(run)
        require_deployment(run)
        if not require_image(run):
            return
        with BackupContainer(run, project_of(tracker)) as container:
            if run.quiesce == "pause":
                container.prove_pause()
            # If the tracker does not run, whoever stopped it, the capture copies its files.
            method = "online" if run.quiesce == "none" else "copy"
            takes_down = run.quiesce in ("stop", "pause")
            room = ["room"] if takes_down and not run.dry_run else []
            fault_point("preflight", host)
            container.step("preflight", PREFLIGHT_SECONDS, method, *room)
            if run.dry_run:
                log.log(
                    f"dry run: everything is ready; would now {run.quiesce} the tracker, capture, "
                    f"and publish to {host.destination}"
                )
                return
            if not run.quiesce.startswith("left-"):  # making the image can take half an hour
                tracker, looked_at = find_tracker(run)
            run.window = Window(host, run.id, run.quiesce, tracker, looked_at, stack)
            with run.window as window:
                limit = window.remaining(WORK_SECONDS)
                fault_point("beginning-the-capture", host)
                container.step("capture", limit, method)
            window.require_unchanged()
            fault_point("beginning-to-finish", host)
            container.step("finish", WORK_SECONDS)
            record_success(run)
        push(host)


def back_up_in_sidecar(run: Run) -> None:
    """The strategy sidecar, inside it: no Docker, no window, and the tracker is never touched."""
    begin(run)
    remove_leftover_files(run)
    require_deployment(run)
    with BackupContainer(run) as container:
        container.step("preflight", PREFLIGHT_SECONDS, "online")
        if run.dry_run:
            log.log(
                "dry run: everything is ready; would now capture online, and publish to "
                f"{run.host.destination}"
            )
            return
        container.step("capture", WORK_SECONDS, "online")
        container.step("finish", WORK_SECONDS)
        record_success(run)


def command_window(arguments: argparse.Namespace) -> int:
    """For maintenance-backup.sh: its comment has the options and the exit codes."""

    def work(run: Run) -> None:
        require_no_hold()
        roll_back_dead_restore(arguments)
        if arguments.recover and not MARKER.exists():
            return
        run.lock = take_lock(arguments.recover)
        if not run.lock and not is_overdue():
            return
        if RESTORE.exists():
            raise Refused(f"a restore died and is still to be rolled back: {RESTORE}", 4)
        if MARKER.exists() and (dead := Window.load()):
            dead.recover()
        if arguments.recover:
            return
        run.host = host = Host.read(CONFIG)
        require_settings(host, "maintenance-window", ("stop", "pause", "none"))
        run.quiesce = host.quiesce
        back_up(run)

    return supervise("maintenance-backup", Run(arguments.dry_run, arguments.force), work)


def command_in_sidecar(arguments: argparse.Namespace) -> int:
    """For `backup.sh now`."""

    def work(run: Run) -> None:
        require_no_hold()
        run.lock = take_lock(recover=False)
        if RESTORE.exists():
            raise Refused(f"a restore died and left {RESTORE}; the host rolls it back in a minute")
        run.host = host = Host.read(CONFIG)
        require_settings(host, "sidecar", ("none",))
        run.quiesce = host.quiesce
        back_up_in_sidecar(run)

    return supervise("sidecar-backup", Run(arguments.dry_run), work)


def supervise(name: str, run: Run, work: Callable[[Run], None]) -> int:
    """Does the work, cleans up after it, and logs the reason of a failure once."""
    log.name = name
    signals.catch()
    with log.LogFile():
        code, reason = 0, ""
        try:
            work(run)
        except (Refused, Ended) as failure:
            code, reason = failure.code, str(failure)
        except OSError as failure:
            code, reason = 1, str(failure)
        except Exception as failure:
            code, reason = 1, f"unexpected {failure!r}; where is in the lines above"
            traceback.print_exc()
        signals.ignore()
        end_run(run, code, " ".join(reason.split("\n")))
    return code


def end_run(run: Run, code: int, reason: str) -> None:
    """A failed run publishes nothing. One that was skipped leaves no run manifest either."""
    if run.unrecorded and code != 3:
        destination = run.host.destination
        try:
            # Delete the run manifest before the backup files. Otherwise a manifest could report
            # success for files that no longer exist.
            (destination / f"runs/{run.id}.json").unlink(missing_ok=True)
            for kind in ("sqlite", "mysql", "config"):
                for path in (destination / kind).glob(f"*_{run.id}.*"):
                    path.unlink()
            record(run, "failed", code, reason)
        except (Refused, OSError) as error:
            log.log(f"WARNING: the failed run could not be recorded: {error}")
    if run.work:
        remove_tree(run.work)
    if code == 3:
        log.log(f"WARNING: {reason}")
    elif code:
        log.log(f"ERROR: {f'run {run.id} failed, ' if run.id else ''}exit code {code}: {reason}")
    elif run.id and not run.dry_run:
        log.log(f"run {run.id} succeeded")


# ---------------------------------------------------------------- before the run


def require_no_hold() -> None:
    if HOLD.exists():
        raise Refused(f"held: nothing is done while {HOLD} is there", 3)


def roll_back_dead_restore(arguments: argparse.Namespace) -> None:
    if RESTORE.exists():
        try:
            command_rollback(arguments)
        except (Refused, OSError) as error:
            raise Refused(f"a restore that died could not be rolled back: {error}", 4) from error


def take_lock(recover: bool) -> IO[str] | None:
    """The open file that holds the lock; None for a recovery, if a run holds it. No child inherits
    it, because a free lock means that the run is dead.
    """
    path = STATE / "lock"
    if not IN_SIDECAR:
        STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not path.exists():
        raise Refused(f"{path} is not there; install the bundle again", 2)
    # For the sidecar, the state directory is read-only.
    file = path.open("r" if IN_SIDECAR else "a", encoding="ascii")
    if not recover:
        fault_point("taking-the-lock")
    deadline = time.monotonic() + (0 if recover else LOCK_SECONDS)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                if recover:
                    return None
                raise LockHeld(f"another run holds {path}; nothing was done", 75) from error
        time.sleep(0.1)
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise Refused("uninstalled while waiting for the lock; nothing was done", 2)
    return file


def require_settings(host: Host, strategy: str, quiesces: Sequence[str]) -> None:
    if host.strategy != strategy:
        raise Refused(f"{CONFIG}: STRATEGY='{host.strategy}'; this program runs {strategy}", 2)
    if host.quiesce not in quiesces:
        allowed = " ".join(quiesces)
        raise Refused(f"{CONFIG}: QUIESCE='{host.quiesce}'; allowed: {allowed}", 2)


# ---------------------------------------------------------------- before the window


def begin(run: Run) -> None:
    host = run.host
    fault_point("checking-the-destination", host)
    require_destination(host)
    while not run.id or any(host.destination.glob(f"*/*{run.id}*")):  # an id that is taken
        time.sleep(0.2 if run.id else 0)
        run.id = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    run.started, run.unrecorded = utc_now(), not run.dry_run
    log.log(f"run {run.id} begins: {host.strategy}, quiesce {run.quiesce}")


def require_destination(host: Host) -> None:
    """A server's file system can hang, and then only another process can be ended."""
    command = ["head", "--bytes=1", "--", str(host.destination / IDENTITY)]
    probe = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        probe.wait(DOCKER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Refused(
            f"checking the destination was not over after {DOCKER_SECONDS:.0f} s: "
            f"{host.destination} does not answer"
        ) from error
    finally:
        end(probe)
    check_destination(host)


def remove_leftover_containers(run: Run) -> None:
    fault_point("looking-for-what-dead-runs-left", run.host)
    command = f"ps --all --filter label={RUN_LABEL} --format"
    for line in docker(*words(command), "{{.ID}} {{.State}}").splitlines():
        leftover, _, state = line.partition(" ")
        run.warn(f"removing the container of a dead run: {leftover}")
        remove_container(leftover, paused=state == "paused")


def remove_container(name: str, paused: bool) -> None:
    if paused:  # with cgroup v1, a frozen process does not die of SIGKILL
        with contextlib.suppress(Refused):
            docker("unpause", name)
    docker("rm", "--force", name)


def remove_leftover_files(run: Run) -> None:
    """While we hold the lock, no other run is alive. So files that are named after another run are
    leftovers. A file that has its final name is never removed here.
    """
    host = run.host
    for leftover in (
        *host.staging.glob("[0-9]*_[0-9]*"),
        *(
            path
            for kind in ("sqlite", "mysql", "config", "runs")
            for path in (host.destination / kind).glob("*[0-9]_[0-9]*.partial")
        ),
    ):
        run.warn(f"removing what a dead run left: {leftover}")
        remove_tree(leftover)


def require_docker(host: Host) -> None:
    fault_point("checking-docker", host)
    require_secrets(host, named_secrets(host.configuration / "backup.conf"), {})
    check_docker(host, host.deploy_dir / "docker-compose.backup.yml")


def find_tracker(run: Run) -> tuple[Tracker | None, float]:
    """The tracker, and when Docker was asked for it. Raises Refused with code 3 if it does not run,
    unless the run is forced: then the quiesce is `left-` and its status.
    """
    looked_at = time.time()
    ids = tracker_ids(run.host)
    if len(ids) > 1:
        raise Refused(f"more than one container of the service tracker in {run.host.deploy_dir}")
    tracker = look(ids[0]) if ids else None
    if ids and not tracker:
        raise Refused(f"Docker does not inspect the tracker {ids[0]}")
    status = tracker.status if tracker else "missing"
    if status != "running":
        if not run.force:
            text = f"skipped: the tracker is {status}, not running; --force backs up anyway"
            raise Refused(text, 3)
        forced = "backing up because of --force, and not starting it afterwards"
        run.warn(f"the tracker is {status}; {forced}")
        run.quiesce = f"left-{status}"
    return tracker, looked_at


def require_deployment(run: Run) -> None:
    fault_point("checking-the-deployment", run.host)
    for warning in check_deployment(run.host):
        run.warn(warning)


def require_image(run: Run) -> bool:
    """Makes it, outside the window. False in a dry run that would have to."""
    host = run.host
    fault_point("looking-for-the-image", host)
    if has_image(host.image):
        return True
    if run.dry_run:
        log.log(f"the image {host.image} is missing and would be made; stopping here")
        return False
    run.warn(f"the image {host.image} is missing; {host.image_source}, before the window")
    build = ["build", "--tag", host.image, str(host.deploy_dir / "backup")]
    try:
        docker(
            *(build if host.image_source == "build" else ["pull", host.image]),
            seconds=BUILD_SECONDS,
        )
    except Refused as error:
        raise Refused(f"the image {host.image} could not be made: {error}") from error
    return True


def project_of(tracker: Tracker | None) -> str:
    """The name of its Compose project; empty if there is no tracker."""
    template = '{{index .Config.Labels "com.docker.compose.project"}}'
    command = words("inspect --type container --format")
    return docker(*command, template, tracker.id).strip() if tracker else ""


# ---------------------------------------------------------------- the container


class BackupContainer:
    """What does the steps of backup.sh: a container of the run, started before the window, because
    that would double a short window. In the sidecar, child processes do them.

    The container is root in the run's directory in staging: it can replace every name, that of the
    directory too. So the host opens the directory before there is a container, and reads the
    answers through this descriptor.
    """

    def __init__(self, run: Run, project: str = "") -> None:
        self.run, self.project = run, project
        self.name = f"tracker-backup-{run.id}"
        self.proving = False  # whether it may be paused, for the proof

    def __enter__(self) -> BackupContainer:
        run, host = self.run, self.run.host
        run.work = host.staging / run.id
        run.work.mkdir(mode=0o700)
        descriptor = os.open(run.work, os.O_RDONLY | os.O_DIRECTORY)
        run.answers = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        expect(host, run.work)
        if IN_SIDECAR:
            self.command = [os.environ.get("TRACKER_BACKUP_STEPS", BACKUP_SH)]
            return self
        stop = ["--env", "TRACKER_BACKUP_STOP_AT"]
        stop = stop if os.environ.get("TRACKER_BACKUP_STOP_AT") else []
        self.command = ["docker", "exec", *stop, self.name, BACKUP_SH]
        fault_point("starting-the-container", host)
        command = words(f"--profile backup run --detach --no-deps -T --name {self.name}")
        label = f"{RUN_LABEL}={run.id}"
        try:
            compose(host, *command, "--label", label, "backup", project=self.project)
        except BaseException as error:
            self.__exit__(type(error), error)
            if isinstance(error, Refused):
                raise Refused(f"the backup container could not be started: {error}") from error
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, *_: object) -> None:
        if error:
            signals.ignore()
        if not IN_SIDECAR:
            fault_point("removing-the-container", self.run.host)
            with contextlib.suppress(Refused), signals.held():
                remove_container(self.name, paused=self.proving)

    def prove_pause(self) -> None:
        """Pauses and unpauses it, before the tracker is touched. An engine that cannot pause (its
        cgroups have no freezer) is a configuration error.
        """
        fault_point("proving-pause", self.run.host)
        self.proving = True
        messages: dict[str, None] = {}
        # Docker fails for some seconds, too, when containerd was killed.
        for attempt in range(3):
            time.sleep(PAUSE_RETRY_SECONDS if attempt else 0)
            failed = False
            for call in ("pause", "unpause"):
                try:
                    docker(call, self.name)
                except Refused as error:
                    messages[str(error).partition(" failed: ")[2] or str(error)] = None
                    # A pause that failed before may have taken effect since.
                    failed = call == "unpause" or attempt == 0
                    if failed:
                        break
            if not failed:
                self.proving = False
                return
        message = printable(" ".join("; ".join(messages).split("\n")), REASON_CHARACTERS)
        label = f"label={RUN_LABEL}={self.run.id}"
        if not docker(*words("ps --quiet --filter"), label).strip():
            raise Refused(f"the backup container did not stay up ({message})")
        raise Refused(f"this Docker engine cannot pause containers ({message}): {STOP_INSTEAD}", 2)

    def step(self, name: str, limit: float, *arguments: str) -> None:
        """One step of backup.sh. Raises Refused with its reason. The step leaves its exit code in
        the file `ended` in staging, and the reason of a failure in `reason`.
        """
        if self.has_answer("ended"):
            remove_tree(self.run.answers / "ended")
        code = self.execute([*self.command, name, self.run.id, *arguments], limit)
        if self.has_answer("ended"):
            try:
                text = (read_answer(self.run.answers, "ended", REASON_BYTES) or "").rstrip("\n")
            except BadAnswer:
                text = ""
            if not re.fullmatch("[0-9]{1,3}", text):
                raise Refused(f"the {name} step left an exit code that is no number")
            code = int(text)
        if code in (TIMED_OUT, KILLED, -signal.SIGKILL):
            raise Refused(
                f"the {name} step was not over after its time limit of {limit:.0f} s, or its "
                "container was killed"
            )
        if code != 0:
            failure = f"the {name} step failed with exit code {code}"
            raise Refused(self.reason(failure), 2 if code == 2 else 1)

    def execute(self, command: list[str], limit: float) -> int:
        """The exit code. If a step ends while containerd is dead, Docker's client waits for ever.
        So the client is ended when the step has answered.
        """
        ended, ends = os.pipe()  # closed with the program: we go on at that moment
        try:
            process = start(command, pass_fds=[ends])
        finally:
            os.close(ends)
        deadline, patience = time.monotonic() + limit, LOST_SECONDS
        try:
            while process.poll() is None and patience > 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    return TIMED_OUT
                if select.select([ended], [], [], min(1, left))[0]:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                elif self.has_answer("ended"):
                    patience -= 1
            return process.returncode or 0
        finally:
            end(process)
            os.close(ended)

    def has_answer(self, name: str) -> bool:
        """Whether the container left something that has this name."""
        try:
            facts = (self.run.answers / name).lstat()
        except FileNotFoundError:
            return False
        return facts.st_size > 0 or not stat.S_ISREG(facts.st_mode)

    def reason(self, failure: str) -> str:
        """The beginning of what the step wrote down."""
        try:
            descriptor = open_answer(self.run.answers, "reason", sys.maxsize)
        except BadAnswer:
            return f"{failure}, and its reason is no regular file"
        text = ""
        if descriptor is not None:
            with open(descriptor, "rb") as file:
                text = file.read(REASON_BYTES).decode(errors="replace").strip().replace("\n", " ")
        return printable(text, REASON_CHARACTERS) or f"{failure}; its message is in the log"


def expect(host: Host, work: Path) -> None:
    """Leaves in the run's staging what the last good run of this scope teaches: the tables it had,
    the bytes that it took.
    """
    last = newest_success(read_runs(host), host.scope) or {}
    tables = "".join(f"{table}\n" for table in last.get("tables", {}))
    (work / "expected-tables").write_text(tables, encoding="utf-8")
    size = sum(file["bytes"] for file in last.get("files", []))
    (work / "expected-bytes").write_text(f"{size}\n" if size else "", encoding="ascii")


# ---------------------------------------------------------------- after the window


def record_success(run: Run) -> None:
    record(run, "success", 0, "")
    run.unrecorded = False
    try:
        prune(run.host)
    except (Refused, OSError) as error:
        run.warn(f"old backups could not be removed: {error}")


def record(run: Run, result: str, code: int, reason: str) -> None:
    """Writes the run manifest. A backup exists when its run manifest exists."""
    host, success = run.host, result == "success"
    try:
        found = read_result(run.answers, run.id)
    except BadAnswer as error:
        if success:
            raise
        found = Result(warnings=[str(error)])
    images, directories = stack_facts(host) if success else ({}, {})
    sequences = [int(one["sequence"]) for one in read_runs(host)]
    manifest: Manifest = {
        "format": FORMAT,
        "id": run.id,
        "sequence": max([remembered()["sequence"], *sequences]) + 1,
        "environment": host.environment,
        "started": run.started,
        "finished": utc_now(),
        "result": result,
        "exit_code": code,
        "reason": printable(reason, REASON_CHARACTERS),
        "strategy": host.strategy,
        "quiesce": run.quiesce,
        "scope": host.scope,
        "files": found.files if success else [],
        "paths": found.paths,
        "tables": found.tables,
        "window_seconds": run.window.seconds if run.window else 0.0,
        "durations": found.durations,
        "directories": directories,
        "images": images,
        "warnings": run.warnings + found.warnings,
        "tools": found.tools,
    }
    if success and not manifest["files"]:
        raise Refused("a successful run without files: nothing was recorded")
    fault_point("writing-the-run-manifest", host)
    path = host.destination / f"runs/{run.id}.json"
    write_durably(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def push(host: Host) -> None:
    """Makes the remote copy. If it fails, the backup is published all the same, and the next run
    copies it.
    """
    if uses_restic(host):
        try:
            push_or_tell(host)
        except Refused as error:
            raise Refused(f"the backup was published, but {error}") from error


def command_check(_: argparse.Namespace) -> int:
    """For the sidecar's health: whether the last success is recent."""
    host = Host.read(CONFIG)
    if problem := too_old(host, read_runs(host))[1]:
        raise Refused(problem)
    return 0
