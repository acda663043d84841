"""beside.py: what a copy of the deployment may not touch is refused before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BOTH = {"database", "config"}


@dataclass(frozen=True)
class Settings:
    deploy_dir: Path
    destination: Path


@dataclass
class Place:
    tool: ModuleType
    path: Path
    containers: str = ""
    config: str = "{}"
    target: str = "storage/tracker.db"

    def __post_init__(self) -> None:
        self.host = Settings(self.path / "live", self.path / "backups")
        self.host.deploy_dir.mkdir()
        self.run = SimpleNamespace(paths=["docker-compose.yml"], compose_files=[])

    def docker(self, *arguments: str, **_: Any) -> str:
        return self.config if arguments[0] == "compose" else self.containers

    def plan(self, to: str = "copy", name: str = "look", kinds: set[str] = BOTH) -> Any:
        place = to if to == "relative" else str(self.path / to)
        return self.tool.beside.planned(self.host, self.run, kinds, place, name)

    def refuses(self, text: str, **words: Any) -> None:
        with pytest.raises(self.tool.host.Refused, match=text):
            self.plan(**words)


@pytest.fixture
def place(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tool, tmp_path)
    driver = SimpleNamespace(target=lambda _: made.target, service=lambda _: "")
    monkeypatch.setattr(tool.beside, "driver_of", lambda _: driver)
    monkeypatch.setattr(tool.beside, "docker", made.docker)
    return made


def test_an_empty_or_missing_directory_is_taken_and_the_ports_are_named_first(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.plan().host.deploy_dir == place.path / "copy"
    assert "publishes the same ports" in capsys.readouterr().out
    (place.path / "copy").mkdir()
    place.plan()
    (place.path / "copy/mine").touch()
    place.refuses("is not empty")


@pytest.mark.parametrize("to", ["live", "live/storage/x", ".", "backups/copy", "link"])
def test_what_overlaps_the_deployment_or_the_backups_is_refused(place: Place, to: str) -> None:
    (place.path / "link").symlink_to(place.host.deploy_dir)
    place.refuses("overlap|without links", to=to)


def test_a_relative_path_and_a_wrong_name_are_refused(place: Place) -> None:
    place.refuses("give an absolute path", to="relative")
    for name in ("", "Copy", "-x", "a b", "a/b"):
        place.refuses("is no name of a Compose project", name=name)


def test_the_project_of_other_containers_is_refused(place: Place) -> None:
    place.containers = "feed\n"
    place.refuses("containers of a Compose project look already")


def test_a_copy_needs_the_configuration_and_a_database_of_its_own(place: Place) -> None:
    place.refuses("needs the configuration", kinds={"database"})
    place.target = ""  # a server, and not of the stack
    place.refuses("on an external server")
    place.plan(kinds={"config"})


def written(place: Place, **config: Any) -> Any:
    place.config = json.dumps({"services": {}, **config})
    copy = place.plan()
    copy.host.deploy_dir.mkdir()
    place.tool.beside.write_override(place.host, copy)
    return json.loads((copy.host.deploy_dir / "docker-compose.beside.yml").read_text())


def test_names_that_the_compose_file_fixes_become_the_copys_own(place: Place) -> None:
    services = {"tracker": {"container_name": "tracker"}, "other": {}}
    override = written(
        place,
        services=services,
        networks={"default": {"name": "look_default"}, "db": {"name": "fixed"}},
        volumes={"data": {"name": "torrust_data"}},
    )
    assert override == {
        "services": {"tracker": {"container_name": "look-tracker"}},
        "networks": {"db": {"name": "look_db"}},
        "volumes": {"data": {"name": "look_data"}},
    }


def test_a_mount_of_the_deployment_that_runs_is_refused(place: Place) -> None:
    source = str(place.host.deploy_dir / "storage")
    with pytest.raises(place.tool.host.Refused, match=r"tracker mounts .*/live/storage"):
        written(place, services={"tracker": {"volumes": [{"source": source}]}})
