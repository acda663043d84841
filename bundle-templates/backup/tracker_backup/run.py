"""A run: `back_up` is one from its lock to its copy elsewhere; the rest is in the same order."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from . import log
from .deployment import check_deployment, stack_facts
from .destination import failure_of, require_destination
from .docker import (
    RUN_LABEL,
    WORK_SECONDS,
    check_docker,
    compose,
    docker,
    has_image,
    make_image,
    read_only_mounts,
    remove_dead_containers,
    words,
)
from .documents import SUBDIRECTORIES, BackupFile, RunManifest, StackFacts
from .drivers import DRIVERS, driver_of
from .drivers.driver import Driver
from .fault_points import fault_point
from .files import remove_tree, write_durably
from .host import CONFIG, IN_SIDECAR, STATE, Host, Refused, utc_now
from .jobs import docker_root
from .notify import tell_end, tell_start
from .priority import lower_priority
from .protocol import REASON_CHARACTERS, SUFFIX, Answer, printable, shown
from .publish import Source, backup_path, clear_leftovers, publish, remove_in_steps
from .reach import unchanged_reach
from .remote import next_sequence, push_or_tell
from .repository import uses_restic
from .restore import command_rollback
from .retention import prune
from .roles import MEMBERS, Role, RoleSettings, hand_over
from .runs import newest_backup, read_runs, too_old
from .secrets import named_secrets, require_secrets
from .settings import Line, read_path_list
from .signals import Ended, signals
from .space import Space, require_space
from .state import LockHeld, acquire, refuse_while_unfinished
from .tables import compare_tables
from .tracker import Stack, Tracker, look, tracker_ids
from .window import MARKER, Window, is_overdue, recover

HOLD, RESTORE = STATE / "hold", STATE / "restore.json"
LOCK_SECONDS = float(os.environ.get("TRACKER_BACKUP_LOCK_SECONDS", "10"))
PREFLIGHT_SECONDS = float(os.environ.get("TRACKER_BACKUP_PREFLIGHT_SECONDS", "300"))
PAUSE_RETRY_SECONDS = float(os.environ.get("TRACKER_BACKUP_PAUSE_RETRY_SECONDS", "5"))
RUN_SECONDS = float(os.environ.get("TRACKER_BACKUP_RUN_SECONDS", str(WORK_SECONDS)))
MEMBER_SECONDS = 900  # for one database of another service
BYTES_PER_SECOND = 1 << 20  # that a role works through at least, after the first MEMBER_SECONDS
STALL_LIMIT_SECONDS = 5  # drivers of SQLite commonly give up after this time
SPARE_BYTES = 16 << 20
PROBE = ".probe-{}"  # and the run's id: what is written to see whether it can be
SIZES = ("database_bytes", "config_disk_bytes")  # that the reader has to answer
SPARSE_BYTES = 1 << 30  # that holes may add to the archive
DUMP_SPARE_BYTES = 1 << 30  # of a dump beside eight times what the server says of its tables
RESULTS = {0: "success", 3: "skipped"}  # by exit code
RULES = {
    "BACKUP_MODE": "single",
    "BACKUP_COMPRESSION": "gzip zstd",
    "BACKUP_SCOPE": "full exclude-statistics",
    "BACKUP_ALLOW_WRITER_STALL": "true false",
    "BACKUP_PATHS_FILE": "",
    "DB_TYPE": " ".join(DRIVERS),
}
MEMBER = {"member.db" + suffix: "database.db" + suffix for suffix in ("", "-journal", "-wal")}


NOTHING = StackFacts("1970-01-01T00:00:00Z", {}, {}, "", [])  # known of the stack


class Run:
    """What is known of this run, and what each of its steps needs."""

    def __init__(self, dry_run: bool, force: bool = False) -> None:
        self.dry_run, self.force = dry_run, force
        self.id = self.started = self.quiesce = ""
        self.lock: IO[str] | None = None  # held until the process ends
        self.window: Window | None = None
        self.warnings: list[str] = []
        self.found = Answer()  # what the roles found, put together
        self.files: list[BackupFile] = []
        self.arguments: dict[str, Any] = {}  # of the driver, for the role that captures
        # From the moment when the destination is known to be ours until a run manifest is written.
        self.unrecorded = False
        self.killed = False  # Docker had to kill the tracker
        self.host: Host
        self.facts = NOTHING
        self.last: RunManifest | None = None  # the last good run of this scope

    def warn(self, text: str) -> None:
        log.log(f"WARNING: {text}")
        self.warnings.append(text)

    def note(self, answer: Answer) -> Answer:
        """Takes over what belongs into the run manifest."""
        for warning in answer.warnings:
            self.warn(warning)
        for name, took in answer.milliseconds.items():  # several roles have a step of this name
            self.found.milliseconds[name] = self.found.milliseconds.get(name, 0) + took
        self.found.tools.update(answer.tools)
        return answer

    @property
    def incomplete(self) -> str:
        """Why this run is incomplete; empty if it is not."""
        missing = ", ".join(self.found.missing)
        return f"not in the configuration archive, see the warnings: {missing}" if missing else ""


# ---------------------------------------------------------------- the run


def back_up(run: Run) -> None:
    """The strategy maintenance-window."""
    host = run.host
    begin(run)
    with Stack(host, restarts=not run.dry_run) as stack:
        remove_leftover_containers(run)
        remove_leftover_files(run)
        require_docker(host)
        tracker, looked_at = find_tracker(run)
        require_deployment(run)
        if not require_image(run):
            return
        with capturing(run, project_of(tracker)) as (reader, source):
            if run.quiesce == "pause":
                prove_pause(run, reader)
            # If the tracker does not run, whoever stopped it, the capture copies its files.
            method = "online" if run.quiesce == "none" else "copy"
            sizes = preflight(run, reader, source, method)
            if run.dry_run:
                log.log(
                    f"dry run: everything is ready; would now {run.quiesce} the tracker, capture, "
                    f"and publish to {host.destination}"
                )
                return
            if source is reader and run.quiesce in ("stop", "pause"):
                reader.ask("preallocate", PREFLIGHT_SECONDS, **run.arguments)
            if not run.quiesce.startswith("left-"):  # making the image can take half an hour
                tracker, looked_at = find_tracker(run)
            run.window = Window(host, run.id, run.quiesce, tracker, looked_at, stack)
            with same_reach(run, tracker), run.window as window:
                limit = window.remaining(work_seconds(sizes["database_bytes"]))
                fault_point("beginning-the-capture", host)
                captured = capture(run, source, method, sizes, limit)
            window.require_unchanged()
            note_stop(run, window)
            finish(run, reader, source, sizes, captured)
        record_success(run)
        push(host)
    require_complete(run)


def back_up_in_sidecar(run: Run) -> None:
    """The strategy sidecar, inside it: no Docker, no window, and the tracker is never touched."""
    begin(run)
    remove_leftover_files(run)
    require_deployment(run)
    with capturing(run) as (reader, source):
        sizes = preflight(run, reader, source, "online")
        if run.dry_run:
            log.log(
                "dry run: everything is ready; would now capture online, and publish to "
                f"{run.host.destination}"
            )
            return
        seconds = work_seconds(sizes["database_bytes"])
        captured = capture(run, source, "online", sizes, seconds)
        finish(run, reader, source, sizes, captured)
    record_success(run)
    require_complete(run)


def command_window(arguments: argparse.Namespace) -> int:
    """For maintenance-backup.sh: its comment has the options and the exit codes."""

    def work(run: Run) -> None:
        require_no_hold()
        if not run.dry_run:
            roll_back_dead_restore(arguments)
        if arguments.recover and not MARKER.exists():
            return
        run.lock = take_lock(arguments.recover)
        if not run.lock and not is_overdue():
            return
        if run.dry_run:
            refuse_while_unfinished()
        if RESTORE.exists():
            raise Refused(f"a restore died and is still to be rolled back: {RESTORE}", 4)
        recover()
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
    with contextlib.nullcontext() if run.dry_run else log.LogFile():
        code, reason = 0, ""
        try:
            try:
                work(run)
            finally:
                signals.ignore()  # a signal in between is still caught here
        except (Refused, Ended) as failure:
            code, reason = failure.code, str(failure)
        except OSError as failure:
            code, reason = 1, str(failure)
        except Exception as failure:
            code, reason = 1, f"unexpected {failure!r}; where is in the lines above"
            for line in traceback.format_exc().splitlines():
                log.log(line)
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
            for kind in SUBDIRECTORIES:
                for path in (destination / kind).glob(f"*_{run.id}.*"):
                    path.unlink()
            record(run, "failed", code, reason)
        except (Refused, OSError) as error:
            log.log(f"WARNING: the failed run could not be recorded: {error}")
    if run.id:
        remove_tree(run.host.staging / run.id)
    if code == 3:
        log.log(f"WARNING: {reason}")
    elif code:
        how = "failed"
        if run.files and not run.unrecorded:
            how = "is incomplete" if run.incomplete else "was published, and then failed"
        log.log(f"ERROR: {f'run {run.id} {how}, ' if run.id else ''}exit code {code}: {reason}")
    elif run.id and not run.dry_run:
        log.log(f"run {run.id} succeeded")
    if not run.dry_run and (run.id or code):
        incomplete = bool(run.incomplete) and not run.unrecorded
        result = "incomplete" if incomplete else RESULTS.get(code, "failed")
        tell_end(run.id, result, code, reason)


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
    """The open file that holds the lock; None for a recovery, if a run holds it."""
    if not recover:
        fault_point("taking-the-lock")
    file = acquire(0 if recover else LOCK_SECONDS)
    if not file and not recover:
        raise LockHeld(f"another run holds {STATE / 'lock'}; nothing was done", 75)
    return file


def require_settings(host: Host, strategy: str, quiesces: Sequence[str]) -> None:
    if host.strategy != strategy:
        raise Refused(f"{CONFIG}: STRATEGY='{host.strategy}'; this program runs {strategy}", 2)
    if host.quiesce not in quiesces:
        allowed = " ".join(quiesces)
        raise Refused(f"{CONFIG}: QUIESCE='{host.quiesce}'; allowed: {allowed}", 2)
    host.backup_settings.require(RULES)
    host.backup_settings.require(driver_of(host).SETTINGS)


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
    if not run.dry_run:
        tell_start(host, run.id)


def remove_leftover_containers(run: Run) -> None:
    fault_point("looking-for-what-dead-runs-left", run.host)
    if not run.dry_run:
        remove_dead_containers(run.warn)


def remove_leftover_files(run: Run) -> None:
    """While we hold the lock, no other run is alive. So files that are named after another run are
    leftovers.
    """
    if run.dry_run:
        return
    host = run.host
    leftovers = [*host.staging.glob("[0-9]*_[0-9]*")]
    for directory in (host.staging, host.destination):
        leftovers += directory.glob(PROBE.format("[0-9]*"))
    for leftover in leftovers:
        run.warn(f"removing what a dead run left: {leftover}")
        remove_tree(leftover)
    clear_leftovers(host, run.warn)


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


def same_reach(run: Run, tracker: Tracker | None) -> contextlib.AbstractContextManager[None]:
    """Docker writes the firewall's rules anew when it starts a container again."""
    if run.quiesce == "stop" and tracker:
        return unchanged_reach(tracker.id, run.warn)
    return contextlib.nullcontext()


def note_stop(run: Run, window: Window) -> None:
    """How long the tracker took to stop, and whether Docker had to kill it."""
    if run.quiesce == "stop" and window.outage and window.outage.found:
        run.killed = window.outage.found.exit_code == "137"
        run.found.milliseconds["stop"] = round(window.stopping * 1000)


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
    try:
        make_image(host, host.deploy_dir / "backup", rebuild=False)
    except Refused as error:
        raise Refused(f"the image {host.image} could not be made: {error}") from error
    return True


def project_of(tracker: Tracker | None) -> str:
    """The name of its Compose project; empty if there is no tracker."""
    template = '{{index .Config.Labels "com.docker.compose.project"}}'
    command = words("inspect --type container --format")
    return docker(*command, template, tracker.id).strip() if tracker else ""


# ---------------------------------------------------------------- the roles


@contextlib.contextmanager
def capturing(run: Run, project: str = "") -> Iterator[tuple[Role, Role]]:
    """The reader, and the role that captures the database: the reader itself, or a client.

    They are started before the window, because that would double a short one.
    """
    host, driver = run.host, driver_of(run.host)
    run.last = newest_backup(read_runs(host), scope=host.scope)
    run.facts = stack_facts(host)

    def start_container(arguments: list[str], environment: dict[str, str]) -> None:
        try:
            compose(host, *arguments, project=project, environment=environment)
        except Refused as error:
            raise Refused(f"the backup container could not be started: {error}") from error

    settings = RoleSettings(
        run.id,
        host.staging,
        log.log,
        None if IN_SIDECAR else start_container,
        # not the destination: one that hangs would hold up the window
        tuple(path for path in (host.staging, engine_root()) if path.is_dir()),
        () if IN_SIDECAR else read_only_mounts(host),
        time.monotonic() + RUN_SECONDS,
    )
    fault_point("starting-the-container", host)
    with Role(settings, "reader") as reader, contextlib.ExitStack() as stack:
        source = reader
        if driver.SOURCE != "reader":
            source = stack.enter_context(Role(settings, driver.SOURCE))
        try:
            yield reader, source
        except BaseException as error:
            signals.ignore()  # from now on the run cleans up
            if run.window and isinstance(error, Ended):
                # It may have arrived after the capture, before the window's own end began.
                run.window.leave(error)
            raise


def prove_pause(run: Run, role: Role) -> None:
    """Pauses and unpauses a container of ours, before the tracker is touched. An engine that cannot
    pause (its cgroups have no freezer) is a configuration error.
    """
    role.greet()
    fault_point("proving-pause", run.host)
    messages: dict[str, None] = {}
    # Docker fails for some seconds, too, when containerd was killed.
    for attempt in range(3):
        time.sleep(PAUSE_RETRY_SECONDS if attempt else 0)
        failed = False
        for call in ("pause", "unpause"):
            try:
                docker(call, role.container)
            except Refused as error:
                messages[str(error).partition(" failed: ")[2] or str(error)] = None
                # A pause that failed before may have taken effect since.
                failed = call == "unpause" or attempt == 0
                if failed:
                    break
        if not failed:
            return
    message = printable(" ".join("; ".join(messages).split("\n")), REASON_CHARACTERS)
    label = f"label={RUN_LABEL}={run.id}"
    if not docker(*words("ps --quiet --filter"), label).strip():
        raise Refused(f"the backup container did not stay up ({message})")
    raise Refused(
        f"this Docker engine cannot pause containers ({message}): set backup.quiesce to "
        "'stop' in the environment file, generate and install again",
        2,
    )


def preflight(run: Run, reader: Role, source: Role, method: str) -> dict[str, int]:
    """Everything that can be known before the tracker is touched. Returns the reader's numbers."""
    host, driver = run.host, driver_of(run.host)
    fault_point("preflight", host)
    may_stall = host.backup_settings["BACKUP_ALLOW_WRITER_STALL"] == "true"
    stall = 0 if may_stall else STALL_LIMIT_SECONDS
    run.arguments = arguments = driver.arguments(host)
    found = reader.ask(
        "preflight",
        PREFLIGHT_SECONDS,
        method=method,
        stall_limit=stall,
        compose=run.facts.compose_files,
        **(arguments if source is reader else {}),
    )
    sizes = {name: found.numbers.get(name, 0) for name in SIZES}
    if source is not reader:
        answer = source.ask("preflight", PREFLIGHT_SECONDS, **arguments)
        where = f"database {arguments['name']}, as user {arguments['user']} sees it,"
        # The warnings about tables come again with what was captured.
        for warning in compare_tables(run.last.tables if run.last else (), answer.tables, where):
            log.log(f"WARNING: {warning}")
        sizes["database_bytes"] = run.note(answer).numbers.get("database_bytes", 0)
    run.found.numbers = sizes
    for path in found.missing:
        log.log(f"WARNING: {path} is missing or cannot be read: the backup will be incomplete")
    check_space(run, sizes["database_bytes"], sizes["config_disk_bytes"])
    return sizes


def check_space(run: Run, database: int, config: int) -> None:
    """Staging gets the database, the excerpt made from it, and the compressed files. The
    destination gets the compressed files, when the database is not in staging any more. Before the
    first run nobody knows how well they compress, so their full size is needed. `publish` looks
    again when it knows.
    """
    host = run.host
    log.log(f"database {database >> 20} MiB, configuration {config >> 20} MiB")
    captured = database * (1 if host.scope == "full" else 2)
    published = database + config
    if run.last:
        published = min(published, run.last.bytes * 3 // 2)
    published += SPARE_BYTES
    needed = {host.staging: captured + published + SPARE_BYTES, host.destination: published}
    if host.staging.stat().st_dev == host.destination.stat().st_dev:
        needed[host.destination] = published + max(captured, published)
    busy = {host.deploy_dir, host.staging, Path("/"), STATE, engine_root()}
    devices = {path.stat().st_dev for path in busy if path.is_dir()}
    for directory in (*needed, *filter(Path.is_dir, busy - needed.keys())):
        kept = Space.of(directory).head_room(directory.stat().st_dev not in devices)
        require_space(directory, needed.get(directory, 0), kept)
    for directory in needed:
        probe_write(directory, run.id)


def engine_root() -> Path:
    """Where Docker has its containers. The sidecar cannot ask."""
    return STATE if IN_SIDECAR else docker_root()


def probe_write(directory: Path, run_id: str) -> None:
    script = 'echo probe >"$0" && sync "$0" && rm "$0"'
    if why := failure_of(directory, "sh", "-c", script, str(directory / PROBE.format(run_id))):
        raise Refused(f"cannot write to {directory}: {why.rpartition(': ')[2]}")


def capture(run: Run, source: Role, method: str, sizes: dict[str, int], seconds: float) -> Answer:
    fault_point("capturing-the-database", run.host)
    return source.ask(
        "capture",
        seconds,
        method=method,
        limit_bytes=8 * sizes["database_bytes"] + DUMP_SPARE_BYTES,
        **run.arguments,
    )


def work_seconds(size: int) -> float:
    """The time limit of a role that works through so many bytes. One that somebody took over cannot
    hold a lock, or the run, for longer.
    """
    return min(WORK_SECONDS, MEMBER_SECONDS + size / BYTES_PER_SECOND)


# ---------------------------------------------------------------- after the window


def finish(run: Run, reader: Role, source: Role, sizes: dict[str, int], captured: Answer) -> None:
    """Examines and archives what was captured, and publishes it."""
    host, driver = run.host, driver_of(run.host)
    fault_point("beginning-to-finish", host)
    lower_priority()
    run.note(captured)
    if source is reader:
        seconds = work_seconds(sizes["database_bytes"])
        reader.ask("settle", seconds, shared=captured.numbers.get("shared", 1))
    with Role(reader.settings, "examiner") as examiner:
        hand_over(source, {name: name for name in driver.CAPTURED}, examiner)
        if source is not reader:
            source.end()
        files = driver.files(host.scope)
        examine(run, examiner, driver, list(files))
        archived = archive(run, reader, sizes)
        fault_point("removing-the-container", host)
        reader.end()
        ending = SUFFIX[host.backup_settings["BACKUP_COMPRESSION"]]
        sources = [
            Source(
                "database",
                backup_path(driver.NAME, run.id, name + ending),
                examiner.directory,
                file + ending,
                examiner.uid,
                2 * sizes["database_bytes"] + DUMP_SPARE_BYTES,
            )
            for file, name in files.items()
        ]
        run.files = publish(host, sources + archived)


def archive(run: Run, reader: Role, sizes: dict[str, int]) -> list[Source]:
    """The configuration archive, or nothing. A service that makes it fail never stops the database
    from being published.
    """
    compression = run.host.backup_settings["BACKUP_COMPRESSION"]
    # Holes count in an archive, so sparse files could fill it.
    limit = 4 * sizes["config_disk_bytes"] + SPARSE_BYTES
    try:
        lines = read_path_list(run.host.configuration / "backup-paths.txt")
        checked = examine_members(run, reader, lines, limit)
        fault_point("archiving-the-configuration", run.host)
        seconds = work_seconds(limit)
        answer = reader.ask(
            "archive",
            seconds,
            compression=compression,
            limit_bytes=limit,
            members=checked,
            compose=run.facts.compose_files,
        )
    except Refused as error:
        run.warn(f"the configuration could not be archived: {error}")
        run.found.missing = ["the whole configuration"]
        return []
    run.note(answer)
    run.found.paths, run.found.missing = listed_paths(lines, answer)
    ending = f"tar{SUFFIX[compression]}"
    path = backup_path("config", run.id, ending)
    return [Source("config", path, reader.directory, f"config.{ending}", reader.uid, 2 * limit)]


def listed_paths(lines: Sequence[Line], answer: Answer) -> tuple[list[str], list[str]]:
    """The lines that are in the archive, and those that it lacks. What the reader says counts only
    for paths that are in the path list.
    """
    names = {shown(line.path): line.optional for line in lines}
    archived = [name for name in answer.paths if name in names]
    required = {name for name, optional in names.items() if not optional}
    lacking = {*answer.missing} | (required - {*archived})
    return archived, [name for name in names if name in lacking]


def examine(run: Run, examiner: Role, driver: Driver, files: list[str]) -> None:
    """Checks, counts and compresses the captured database. Its examiner has ended afterwards."""
    host = run.host
    fault_point("checking-the-database", host)
    limit = 2 * size_of(examiner, driver.CAPTURED) + SPARE_BYTES
    seconds = work_seconds(limit)
    answer = examiner.ask(
        "examine", seconds, driver=driver.NAME, scope=host.scope, limit_bytes=limit
    )
    expected = run.last.tables if run.last else ()
    for warning in compare_tables(expected, answer.tables, "the captured database"):
        run.warn(warning)
    run.found.tables = run.note(answer).tables
    fault_point("compressing-the-database", host)
    compression = host.backup_settings["BACKUP_COMPRESSION"]
    run.note(
        examiner.ask("compress", seconds, files=files, compression=compression, limit_bytes=limit)
    )
    examiner.end()
    for name in driver.CAPTURED:
        remove_in_steps(examiner.directory, name, lambda _: None)


def examine_members(run: Run, reader: Role, lines: Sequence[Line], limit_bytes: int) -> list[int]:
    """Other services' databases, each in an examiner of its own. Returns those that are whole. One
    that is not never stops the tracker's own from being published.
    """
    count = sum(line.kind == "sqlite" for line in lines)
    if count > MEMBERS:
        run.warn(f"{count} databases are in the path list; only the first {MEMBERS} are backed up")
    checked = []
    for index in range(min(count, MEMBERS)):
        try:
            captured = reader.ask(
                "capture_member", MEMBER_SECONDS, index=index, limit_bytes=limit_bytes
            )
            if not captured.paths:  # optional, and missing
                continue
            with Role(reader.settings, "examiner", index + 1) as examiner:
                hand_over(reader, MEMBER, examiner)
                limit = 2 * size_of(examiner, tuple(MEMBER.values())) + SPARE_BYTES
                run.note(
                    examiner.ask(
                        "examine", MEMBER_SECONDS, driver="sqlite", scope="full", limit_bytes=limit
                    )
                )
                examiner.end()
                into = {"database.db": str(index)}
                hand_over(examiner, into, reader, into="members", limit=limit)
            checked.append(index)
        except (Refused, OSError) as error:
            run.warn(f"a service's database is not in the backup: {error}")
    return checked


def size_of(role: Role, names: Sequence[str]) -> int:
    """Bytes of those of the files that a role has."""
    size = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            size += os.stat(name, dir_fd=role.directory, follow_symlinks=False).st_size
    return size


def record_success(run: Run) -> None:
    record(run, "incomplete" if run.incomplete else "success", int(bool(run.incomplete)), "")
    run.unrecorded = False
    try:
        prune(run.host)
    except (Refused, OSError) as error:
        run.warn(f"old backups could not be removed: {error}")


def record(run: Run, result: Any, code: int, reason: str) -> None:
    """Writes the run manifest. A backup exists when its run manifest exists."""
    host, found = run.host, run.found
    published = result != "failed"
    manifest = RunManifest(
        id=run.id,
        sequence=next_sequence(read_runs(host)),
        environment=host.environment,
        started=run.started,
        finished=utc_now(),
        result=result,
        exit_code=code,
        reason=reason or run.incomplete,
        strategy=host.strategy,
        quiesce=run.quiesce,
        scope=host.scope,
        driver=driver_of(host).NAME if published else "",
        files=run.files if published else [],
        paths=found.paths,
        missing=found.missing if published else [],
        tables=found.tables,
        window_seconds=run.window.seconds if run.window else 0.0,
        durations={name: value / 1000 for name, value in found.milliseconds.items()},
        database_bytes=found.numbers.get("database_bytes", 0),
        directories=run.facts.directories,
        images=run.facts.images,
        warnings=run.warnings,
        tools=found.tools,
        releases=run.facts.releases,
        compose_files=run.facts.compose_files,
        killed=run.killed,
    )
    fault_point("writing-the-run-manifest", host)
    write_durably(host.destination / f"runs/{run.id}.json", manifest.encode())


def require_complete(run: Run) -> None:
    if run.incomplete:
        raise Refused(run.incomplete)


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
