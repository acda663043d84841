"""The space that a run needs, before the tracker is touched."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unit.sandbox import Sandbox

MIB = 1 << 20


class Space:
    """A prepared run, and file systems on which so much is free."""

    def __init__(self, host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.run = host.package.run, host.package.run.Run(dry_run=False)
        self.run.host, self.run.id = host.package.host.Host.read(host.config), "20260102_030405"
        self.run.last = None
        self.host = host
        monkeypatch.setattr(self.module.os, "statvfs", self.statvfs)
        self.free: dict[Path, int] = {}

    def statvfs(self, path: Path) -> os.statvfs_result:
        free = self.free.get(path, 10**15)
        facts: Any = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=10**9)
        result: os.statvfs_result = facts
        return result

    def needs(self, directory: Path, database: int, config: int = 0) -> int:
        """Bytes in a directory that have everything and are one too few."""
        self.free = {directory: 0}
        with pytest.raises(self.module.Refused, match=f"not enough space in {directory}") as error:
            self.module.check_space(self.run, database, config)
        least = int(str(error.value).split(": ")[1].split()[0])
        self.free = {directory: least + 1}
        self.module.check_space(self.run, database, config)
        return least


@pytest.fixture
def space(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Space:
    host.package.host.Host.read(host.config).staging.mkdir(parents=True, exist_ok=True)
    return Space(host, monkeypatch)


def test_the_space_reckoned_with_follows_the_size_of_the_last_backup(space: Space) -> None:
    destination = space.run.host.destination
    first = space.needs(destination, 1000 * MIB, 100 * MIB)
    space.run.last = SimpleNamespace(bytes=100 * MIB)
    assert space.needs(destination, 1000 * MIB, 100 * MIB) < first
    space.run.last = SimpleNamespace(bytes=10**12)  # of what is gone by now
    assert space.needs(destination, 1000 * MIB, 100 * MIB) == first


def test_a_copy_that_becomes_an_excerpt_needs_space_for_both(space: Space) -> None:
    staging = space.run.host.staging
    space.run.last = SimpleNamespace(bytes=1000)
    full = space.needs(staging, 1000 * MIB)
    conf = space.host.deploy / "backup/backup.conf"
    conf.write_text(conf.read_text().replace("SCOPE='full'", "SCOPE='exclude-statistics'"))
    assert space.needs(staging, 1000 * MIB) == full + 1000 * MIB


def test_the_space_that_roles_keep_in_reserve_is_needed_too(space: Space) -> None:
    reserve = 10**9 // 50
    assert space.needs(space.run.host.staging, 0) > reserve


def test_a_destination_that_cannot_be_written_to_is_found_out(space: Space) -> None:
    with pytest.raises(space.module.Refused, match="cannot write to /proc: "):
        space.module.probe_write(Path("/proc"), space.run.id)


def test_a_probe_leaves_nothing(space: Space) -> None:
    space.module.check_space(space.run, MIB, MIB)
    for directory in (space.run.host.staging, space.run.host.destination):
        assert not list(directory.glob(".probe*"))
