"""A container of the backup image that unpacks a run: for verifying, and for restoring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .answers import read_members, read_reason, read_result, read_sizes, table_name
from .docker import WORK_SECONDS, bind, container, docker
from .documents import RunManifest
from .files import require_space
from .host import Host, Refused


@dataclass(frozen=True)
class Workshop:
    """A container of the backup image, and the directory in staging where it works on one run."""

    host: Host
    container: str
    work: Path

    @property
    def dumps(self) -> list[Path]:
        """The MySQL dumps that `unpack` left, in the order in which they are imported."""
        return [
            dump for name in ("database.sql", "torrents.sql") if (dump := self.work / name).exists()
        ]

    def step(self, name: str, *arguments: str) -> None:
        """One step of restore.sh; raises Refused with the reason that it gives."""
        try:
            docker(
                "exec",
                self.container,
                "/usr/local/bin/restore.sh",
                name,
                self.work.name,
                *arguments,
                seconds=WORK_SECONDS,
            )
        except Refused as error:
            if reason := read_reason(self.work):
                raise Refused(reason) from error
            raise

    def require_space(self, run: RunManifest, kinds: set[str]) -> None:
        """Refuses a run for which staging has no room: the configuration is there as archive and as
        files, of MySQL two dumps when one is saved.
        """
        self.step("measure", *run.paths_of(*kinds))
        sizes = read_sizes(self.work)
        require_space(
            self.host.staging,
            sum(size * (1 if path.startswith("sqlite/") else 2) for size, path in sizes),
        )

    def unpack(self, run: RunManifest, kinds: set[str]) -> list[str]:
        """Unpacks the run's files of these kinds, checked; returns what differs from the run
        manifest.
        """
        files = run.paths_of(*kinds)
        try:
            self.step("unpack", *files)
        except Refused as error:
            return [str(error)]
        problems = []
        if "database" in kinds:
            problems += compare_rows(run.tables, read_result(self.work, run.id).tables)
        if "config" in kinds:
            missing = dict.fromkeys(run.paths)
            for member in read_members(self.work):
                missing.pop(member, None)
            problems += [f"the configuration archive lacks {path}" for path in missing]
        return problems


def compare_rows(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    # A run manifest of an older version has the names as they are.
    expected = {table_name(name): rows for name, rows in expected.items()}
    return [
        f"table {name}: {found.get(name, 'no')} rows, {expected.get(name, 'no')} in the run "
        "manifest"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


@contextlib.contextmanager
def workshop(host: Host, purpose: str, *arguments: str) -> Iterator[Workshop]:
    """No network unless the arguments give one; the destination read-only; nothing of the
    deployment but staging.
    """
    work = host.staging / f"{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}.{purpose}"
    work.mkdir(mode=0o700)
    network = [] if "--network" in arguments else ["--network", "none"]
    with container(
        f"tracker-backup-{work.name}",
        host.image,
        "--init",
        "--user",
        "0:0",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "DAC_OVERRIDE",
        "--security-opt",
        "no-new-privileges",
        "--tmpfs",
        "/tmp:mode=0700,size=16m",
        *network,
        *bind(host.destination, "/backups", "readonly"),
        *bind(host.staging, "/staging"),
        *arguments,
    ) as name:
        yield Workshop(host, name, work)
