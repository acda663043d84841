"""The space that a run needs, before the tracker is touched."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unit.sandbox import Sandbox

MIB = 1 << 20


GIB = 1 << 30
SIZE = 100 * GIB


class Disks:
    """A prepared run, and file systems of 100 GiB on which so much is free."""

    def __init__(self, host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.run = host.package.prepare, host.package.current.Run(dry_run=False)
        self.package, self.host = host.package, host
        self.run.id, self.run.last = "20260102_030405", None
        self.read()
        self.run.host.staging.mkdir(parents=True, exist_ok=True)
        self.free: dict[Path, int] = {}
        self.size = SIZE
        monkeypatch.setattr(os, "statvfs", self.statvfs)
        monkeypatch.setattr(self.module, "docker_root", lambda: Path("/"))

    def read(self) -> None:
        self.run.host = self.package.host.Host.read(self.host.config)

    def statvfs(self, path: Path) -> os.statvfs_result:
        facts: Any = SimpleNamespace(
            f_bavail=self.free.get(path, 10**15),
            f_frsize=1,
            f_blocks=self.size,
            f_files=0,
            f_favail=0,
        )
        result: os.statvfs_result = facts
        return result

    def needs(self, directory: Path, database: int, config: int = 0) -> int:
        """Bytes that have to be free in a directory."""
        self.free = {directory: 0}
        with pytest.raises(self.module.Refused, match=f"not enough space in {directory}") as error:
            self.module.check_space(self.run, database, config)
        needed, kept = map(int, re.findall(r" (\d+) (?:bytes are|have)", str(error.value)))
        self.free = {directory: needed + kept - 1}
        with pytest.raises(self.module.Refused):
            self.module.check_space(self.run, database, config)
        self.free = {directory: needed + kept}
        self.module.check_space(self.run, database, config)
        return needed + kept


@pytest.fixture
def space(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(host, monkeypatch)


def test_the_space_reckoned_with_follows_the_size_of_the_last_backup(space: Disks) -> None:
    destination = space.run.host.destination
    first = space.needs(destination, 1000 * MIB, 100 * MIB)
    space.run.last = SimpleNamespace(bytes=100 * MIB)
    assert space.needs(destination, 1000 * MIB, 100 * MIB) < first
    space.run.last = SimpleNamespace(bytes=10**12)  # of what is gone by now
    assert space.needs(destination, 1000 * MIB, 100 * MIB) == first


def test_a_copy_that_becomes_an_excerpt_needs_space_for_both(space: Disks) -> None:
    staging = space.run.host.staging
    space.run.last = SimpleNamespace(bytes=1000)
    full = space.needs(staging, 1000 * MIB)
    conf = space.host.deploy / "backup/backup.conf"
    conf.write_text(conf.read_text().replace("SCOPE='full'", "SCOPE='exclude-statistics'"))
    space.read()
    assert space.needs(staging, 1000 * MIB) == full + 1000 * MIB


def test_5_percent_stay_free_where_the_tracker_the_system_or_docker_write(space: Disks) -> None:
    for directory in (space.run.host.staging, space.run.host.deploy_dir, Path("/")):
        assert 5 * GIB <= space.needs(directory, 0) < 6 * GIB


@pytest.mark.parametrize(
    ("size", "alone", "kept"),
    [
        (100 * GIB, False, 5 * GIB),
        (10 * GIB, False, GIB),
        (2 * GIB, False, GIB // 2),  # a small disk could hold nothing otherwise
        (100 * GIB, True, 2 * GIB),
    ],
)
def test_what_stays_free(space: Disks, size: int, alone: bool, kept: int) -> None:
    found = space.package.space.Space(size, 0, 0, None)
    assert found.head_room(alone) == kept


@pytest.mark.parametrize(("size", "free"), [(0, 0), (1 << 63, (1 << 64) - 4096)])
def test_figures_that_a_file_system_does_not_know_stop_nothing(
    space: Disks, size: int, free: int
) -> None:
    """As a bucket that is mounted by FUSE reports them."""
    space.size, space.free = size, {space.run.host.destination: free, space.run.host.staging: free}
    space.module.check_space(space.run, 1000 * MIB, 0)
    space.package.space.require_reserve([space.run.host.destination])


def test_a_destination_that_cannot_be_written_to_is_found_out(space: Disks) -> None:
    with pytest.raises(space.module.Refused, match="cannot write to /proc: "):
        space.module.probe_write(Path("/proc"), space.run.id)


def test_a_probe_leaves_nothing(space: Disks) -> None:
    space.module.check_space(space.run, MIB, MIB)
    for directory in (space.run.host.staging, space.run.host.destination):
        assert not list(directory.glob(".probe*"))
