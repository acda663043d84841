"""jobs.py: the image is there and speaks our protocol, and a throw-away server has memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from unit import worker

DOCKER = """#!/usr/bin/env bash
echo "$*" >>"$STUB/calls"
case $1 in
    image) cat "$STUB/image" ;;
    run) cat "$STUB/hello" ;;
    build) cp "$STUB/built" "$STUB/hello" ;;
esac
"""
OLD, OURS = '{"protocol": 99}\n', '{"protocol": 1}\n'


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worker.program(tmp_path / "bin/docker", DOCKER)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB", str(tmp_path))
    (tmp_path / "image").write_text("sha256:feed\n")
    return tmp_path


def ready(tool: ModuleType, source: str) -> None:
    host = SimpleNamespace(image="backup:1", image_source=source, configuration=Path("/context"))
    tool.jobs.ready_image(host)


def built(stub: Path) -> int:
    return (stub / "calls").read_text().count("\nbuild ")


def test_an_image_that_speaks_our_protocol_stays(tool: ModuleType, stub: Path) -> None:
    (stub / "hello").write_text(OURS)
    ready(tool, "build")
    assert built(stub) == 0


def test_an_image_of_another_protocol_is_built_again(
    tool: ModuleType, stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stub / "hello").write_text(OLD)
    (stub / "built").write_text(OURS)
    ready(tool, "build")
    assert built(stub) == 1
    assert "the image speaks protocol 99 and the host 1" in capsys.readouterr().out


@pytest.mark.parametrize("hello", [OLD, "usage: backup.sh idle\n", ""])
def test_a_pulled_image_of_another_protocol_is_refused_by_name(
    tool: ModuleType, stub: Path, hello: str
) -> None:
    (stub / "hello").write_text(hello)
    with pytest.raises(tool.host.Refused, match=r"^backup:1: "):
        ready(tool, "pull")
    assert built(stub) == 0


def test_a_build_that_does_not_help_is_refused(tool: ModuleType, stub: Path) -> None:
    (stub / "hello").write_text(OLD)
    (stub / "built").write_text(OLD)
    with pytest.raises(tool.host.Refused, match="protocol 99"):
        ready(tool, "build")


@pytest.mark.parametrize(("available", "refused"), [(599, True), (600, False)])
def test_a_throw_away_server_needs_memory(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, available: int, refused: bool
) -> None:
    facts = f"MemTotal: 9999999 kB\nMemAvailable:   {available * 1024} kB\nX: 1 kB\n"
    monkeypatch.setattr(tool.jobs, "memory_facts", lambda: facts)
    if not refused:
        return tool.jobs.require_memory()  # type: ignore[no-any-return]
    with pytest.raises(tool.host.Refused, match="not verified: no memory: 599 MiB"):
        tool.jobs.require_memory()
    return None
