"""One text file for Prometheus with how the backups are; docs/monitoring.md has the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .documents import RemoteState, RunManifest, VerificationState, run_time
from .host import CONFIG, Host, Refused, parse_time, read_settings
from .log import complain
from .notify import UNVERIFIED, Notices
from .planted import opened, put_at
from .runs import newest_backup, newest_success, read_runs
from .status import look

FILE = "tracker-backup.prom"
TABLES = 100  # at most so many have a series each
HELP = {
    "info": "What is installed.",
    "schedule_interval_seconds": "The longest time between two scheduled runs.",
    "last_success_timestamp_seconds": "When the newest successful run began; 0 if there is none.",
    "last_run_timestamp_seconds": "When the newest run began, however it ended.",
    "last_run_exit_code": "How it ended; 0 is success.",
    "phase_duration_seconds": "How long each step of the newest backup took.",
    "window_seconds": "How long the tracker was away for the newest backup.",
    "size_bytes": "Size of the newest backup's files.",
    "database_size_bytes": "Size of the database that the newest backup holds, uncompressed.",
    "table_rows": "Rows in the newest backup.",
    "runs": "Run manifests that are there, by result.",
    "verify_last_success_timestamp_seconds": "When a backup was proved restorable; 0 if never.",
    "verify_duration_seconds": "How long the last verification took.",
    "remote_last_success_timestamp_seconds": "When everything was copied to the repository.",
    "remote_pending_runs": "Backups that are not in the repository yet.",
    "retention_suspended": "1 while no old backup is removed until somebody has looked.",
    "hold": "1 while runs and recovery are suspended by hand.",
    "destination_free_bytes": "Space left in the destination.",
    "problems": "What `tracker-backup status` complains about.",
}


def write(host: Host) -> None:
    """Writes the file if there is to be one. A failure is a warning."""
    if not (directory := read_settings(CONFIG).get("METRICS_DIRECTORY")):
        return
    try:
        content = render(samples(host)).encode()
        with opened(Path(directory)) as descriptor:
            put_at(descriptor, FILE, content, 0o644)
    except (OSError, Refused) as error:
        complain(f"warning: the metrics in {directory} could not be written: {error}")


def samples(host: Host) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """(name, labels, value) of each."""
    status = look(host)
    # A destination that does not answer has no free bytes, and is not asked again.
    runs = [] if status["free_bytes"] is None else read_runs(host)
    info = {
        "version": read_settings(CONFIG).get("VERSION", ""),
        "environment": host.environment,
        "strategy": host.strategy,
        "quiesce": host.quiesce,
        "driver": host.backup_settings.get("DB_TYPE", ""),
    }
    yield "info", info, 1
    yield "schedule_interval_seconds", {}, host.longest_interval
    success = newest_success(runs)
    yield "last_success_timestamp_seconds", {}, run_time(success.id).timestamp() if success else 0
    if ended := last_end(runs):
        yield "last_run_timestamp_seconds", {}, ended[0]
        yield "last_run_exit_code", {}, ended[1]
    yield from samples_of(newest_backup(runs))
    for result in ("success", "incomplete", "failed"):
        yield "runs", {"result": result}, sum(run.result == result for run in runs)
    if verified := VerificationState.peek([]):
        yield "verify_last_success_timestamp_seconds", {}, seconds(verified.succeeded)
        yield "verify_duration_seconds", {}, verified.seconds
    if remote := status["remote"]:
        state = RemoteState.peek([])
        yield "remote_last_success_timestamp_seconds", {}, seconds(state.succeeded if state else "")
        yield "remote_pending_runs", {}, len(remote["pending"])
    yield "retention_suspended", {}, bool(status["retention_suspended"])
    yield "hold", {}, status["hold"]
    if status["free_bytes"] is not None:
        yield "destination_free_bytes", {}, status["free_bytes"]
    yield "problems", {}, len(status["problems"])


def samples_of(backup: RunManifest | None) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Of the newest backup."""
    if backup is None:
        return
    for phase, took in backup.durations.items():
        yield "phase_duration_seconds", {"phase": phase}, took
    yield "window_seconds", {}, backup.window_seconds
    sizes = dict.fromkeys((file.kind for file in backup.files), 0)
    for file in backup.files:
        sizes[file.kind] += file.bytes
    for kind, size in sizes.items():
        yield "size_bytes", {"kind": kind}, size
    yield "database_size_bytes", {}, backup.database_bytes
    for table, rows in list(backup.tables.items())[:TABLES]:
        yield "table_rows", {"table": table}, rows


def last_end(runs: list[RunManifest]) -> tuple[float, int] | None:
    """(when, exit code) of the newest run. One that was skipped, or failed very early, left no run
    manifest.
    """
    last, told = (runs[-1] if runs else None), Notices.peek([])
    when = run_time(last.id).timestamp() if last else 0.0
    unknown = told and told.result != UNVERIFIED and (last is None or told.run != last.id)
    if told and unknown and seconds(told.at) > when:
        return seconds(told.at), told.code
    return (when, last.exit_code) if last else None


def seconds(at: str) -> float:
    """Since 1970; 0 for never."""
    return parse_time(at).timestamp() if at else 0.0


def render(found: Iterable[tuple[str, Mapping[str, str], float]]) -> str:
    """The text format of Prometheus: samples of one name stand together, below its help."""
    lines: dict[str, list[str]] = {}
    for name, labels, value in found:
        pairs = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
        whole = f"tracker_backup_{name}"
        line = f"{whole}{{{pairs}}} {value:.17g}" if pairs else f"{whole} {value:.17g}"
        head = [f"# HELP {whole} {HELP[name]}", f"# TYPE {whole} gauge"]
        lines.setdefault(name, head).append(line)
    return "".join(f"{line}\n" for group in lines.values() for line in group)


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
