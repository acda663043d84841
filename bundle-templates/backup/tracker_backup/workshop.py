"""A container of the backup image that unpacks a run: for verifying, and for restoring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .docker import WORK_SECONDS, bind, container, words
from .documents import RunManifest
from .files import require_space
from .host import Host, Refused
from .jobs import CONFINED, ask
from .log import say
from .protocol import Answer, table_name


@dataclass(frozen=True)
class Workshop:
    """A container of the backup image, and the directory in staging where it works on one run."""

    container: str
    work: Path

    @property
    def dumps(self) -> list[Path]:
        """The dumps that `unpack` left, in the order in which they are imported."""
        names = ("database.sql", "torrents.sql")
        return [dump for name in names if (dump := self.work / name).exists()]

    def step(self, job: str, **arguments: Any) -> Answer:
        """One job of the unpacker. Raises Refused with its reason."""
        answer = ask(self.container, "unpacker", job, WORK_SECONDS, **arguments)
        for warning in answer.warnings:
            say(f"warning: {warning}")
        if answer.code != 0:
            raise Refused(answer.reason)
        return answer

    def require_space(self, run: RunManifest, kinds: set[str]) -> None:
        """Refuses a run for which staging has no room. The configuration is there as archive and as
        files. Of a server's database, a second dump is there when it is saved.
        """
        sizes = self.step("measure", files=run.paths_of(*kinds)).numbers
        twice = (size * (1 if path.startswith("sqlite/") else 2) for path, size in sizes.items())
        require_space(self.work, sum(twice))

    def unpack(self, run: RunManifest, kinds: set[str]) -> list[str]:
        """Unpacks the run's files of these kinds, checked. Returns what differs from the run
        manifest.
        """
        paths = run.paths if "config" in kinds else []
        try:
            found = self.step("unpack", files=run.paths_of(*kinds), paths=paths)
        except Refused as error:
            return [str(error)]
        problems = [f"the configuration archive lacks {path}" for path in found.missing]
        if "database" in kinds:
            problems += compare_rows(run.tables, found.tables)
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
def workshop(
    host: Host,
    purpose: str,
    *arguments: str,
    run: RunManifest | None = None,
    work: Path | None = None,
) -> Iterator[Workshop]:
    """It has no network, and sees the files of one run and its own directory in staging."""
    name = f"{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}.{purpose}"
    if not work:
        work = host.staging / name
        work.mkdir(mode=0o700)
    files = [
        word
        for file in (run.files if run else [])
        for word in bind(host.destination / file.path, f"/backups/{file.path}", "readonly")
    ]
    options = words("--user 0:0 --network none --cap-add DAC_OVERRIDE --tmpfs /tmp:size=16m")
    with container(
        f"tracker-backup-{name}",
        host.image,
        *CONFINED,
        *options,
        *bind(work, "/work"),
        *files,
        *arguments,
    ) as started:
        yield Workshop(started, work)
