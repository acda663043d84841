"""The fixtures of the tests of the programs as processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from program.host import Host, install_programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs as an installed bundle has them; their directory stands for /usr/local."""
    return install_programs(tmp_path_factory.mktemp("local"))


@pytest.fixture
def host(tmp_path: Path, programs: Path) -> Iterator[Host]:
    os.umask(0o022)
    made = Host(tmp_path, programs)
    yield made
    made.end()
