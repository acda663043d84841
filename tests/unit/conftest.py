"""The fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from unit.sandbox import TEMPLATES, Sandbox, load


@pytest.fixture
def sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sandbox:
    return Sandbox(tmp_path, monkeypatch, capsys)


@pytest.fixture
def host(sandbox: Sandbox) -> Sandbox:
    """A host on which the bundle is installed."""
    return sandbox.installed()


@pytest.fixture(scope="session")
def tool() -> ModuleType:
    """For functions that only take and return data."""
    return load(TEMPLATES)
