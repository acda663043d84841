"""The run in progress: what is known of it, and the run manifest that it becomes."""

from __future__ import annotations

from typing import IO, Any

from . import log
from .documents import BackupFile, RunManifest, StackFacts
from .drivers import driver_of
from .fault_points import fault_point
from .files import write_durably
from .host import Host, utc_now
from .protocol import Answer
from .remote import next_sequence
from .runs import read_runs
from .window import Window

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
