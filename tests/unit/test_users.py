"""restore.py: which containers use what a restore replaces."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

TARGETS = ["storage/caddy/etc", ".env"]


def container(name: str, *sources: str, running: bool = True) -> dict[str, Any]:
    return {
        "Id": name,
        "Name": f"/{name}",
        "Mounts": [{"Source": source} for source in sources],
        "State": {"Running": running},
        "Config": {"Labels": {"com.docker.compose.service": name}},
    }


@pytest.fixture
def engine(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Containers by name, with what they mount of the deploy directory, spelt through a link."""
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "storage/caddy/etc").mkdir(parents=True)
    link.symlink_to(real)
    found = {
        "at": container("at", f"{link}/storage/caddy/etc"),
        "below": container("below", f"{real}/storage/caddy/etc/Caddyfile"),
        "above": container("above", f"{real}/storage"),
        "everything": container("everything", "/"),
        "beside": container("beside", f"{real}/storage/caddy/etc2", f"{real}/storage/mysql/data"),
        "volume": container("volume", "/var/lib/docker/volumes/x/_data"),
        "none": {**container("none"), "Mounts": [{"Type": "tmpfs"}]},
        "tracker": container("tracker"),
    }
    monkeypatch.setattr(tool.restore, "containers", lambda: list(found.values()))
    monkeypatch.setattr(tool.restore, "stack_containers", lambda _: [found["tracker"]])
    return {"host": SimpleNamespace(deploy_dir=link), "found": found}


def test_they_are_found_by_their_mounts(tool: ModuleType, engine: dict[str, Any]) -> None:
    names = [one["Id"] for one in tool.restore.users(engine["host"], TARGETS)]
    assert names == ["at", "below", "above", "everything", "tracker"]
    assert tool.restore.running(engine["host"], TARGETS)[0] == "tracker"


def test_one_that_does_not_stay_stopped_is_refused_by_name(
    tool: ModuleType, engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    def stop(ids: list[str]) -> None:
        stopped.extend(ids)
        for name in set(ids) - {"above"}:
            engine["found"][name]["State"]["Running"] = False

    monkeypatch.setattr(tool.restore, "stop", stop)
    with pytest.raises(tool.host.Refused, match=r"^/above did not stay stopped"):
        tool.restore.stop_users(engine["host"], TARGETS)
    assert stopped.count("above") == 3
