"""What containers say: their images and compose files, what no backup has, who is cut off."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

OLD, NEW = "sha256:" + "1" * 64, "sha256:" + "2" * 64
LABEL = "org.opencontainers.image.version"


class Registry:
    """A Docker with a registry; `images` has what a name means here, `served` what it can pull."""

    def __init__(self) -> None:
        self.images: dict[str, str] = {}
        self.served: dict[str, str] = {}
        self.versions = {OLD: "3.0.0", NEW: "4.1.0"}
        self.said: list[str] = []

    def docker(self, *words: str, **_: Any) -> str:
        if words[0] == "pull":
            if words[-1] not in self.served:
                raise self.refused(f"docker pull failed: no {words[-1]}")
            self.images[words[-1]] = self.served[words[-1]]
        elif words[0] == "tag":
            self.images[words[2]] = self.images[words[1]]
        elif "{{json .}}" in words:
            if words[-1] not in self.versions:
                raise self.refused("no such image")
            digests = [f"{name}@{id_}" for name, id_ in (("other/x", OLD), ("a/b", words[-1]))]
            labels = {LABEL: self.versions[words[-1]]}
            return json.dumps({"RepoDigests": digests, "Config": {"Labels": labels}})
        else:
            return self.versions[self.images[words[-1]]] + "\n"
        return ""

    refused: Any


@pytest.fixture
def stack(tool: ModuleType) -> Any:
    return importlib.import_module(f"{tool.__name__}.stack")


@pytest.fixture
def registry(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    made.refused = stack.Refused
    monkeypatch.setattr(stack, "docker", made.docker)
    monkeypatch.setattr(stack, "image_id", lambda image: made.images.get(image, ""))
    monkeypatch.setattr(stack, "say", made.said.append)
    return made


def container(service: str, *mounts: dict[str, str], **more: Any) -> dict[str, Any]:
    labels = {"com.docker.compose.service": service}
    config = {"Labels": labels, "Image": "docker.io/a/b:develop"}
    return {"Id": f"{service}-id", "Image": NEW, "Config": config, "Mounts": list(mounts), **more}


# ---------------------------------------------------------------- P42: images


def test_p42_a_release_is_what_a_registry_calls_the_image(stack: Any, registry: Registry) -> None:
    gone = container("gone") | {"Image": "sha256:gone"}
    found = stack.releases([container("tracker"), gone])
    assert set(found) == {"tracker"}
    told = found["tracker"]
    assert (told.name, told.digest, told.version) == (
        "docker.io/a/b:develop",
        f"a/b@{NEW}",
        "4.1.0",
    )


def recorded(stack: Any, **facts: str) -> dict[str, Any]:
    known = {"name": "a/b:develop", "digest": f"a/b@{OLD}", "version": "3.0.0"}
    return {"tracker": stack.Release(**(known | facts))}


def test_p42_the_recorded_digest_gets_the_tag(stack: Any, registry: Registry) -> None:
    registry.served = {"a/b:develop": NEW, f"a/b@{OLD}": OLD}
    stack.use_recorded_images(recorded(stack))
    assert registry.images["a/b:develop"] == OLD
    told = "\n".join(registry.said)
    assert "a/b:develop means another image today (4.1.0, sha256:222" in told
    assert "(3.0.0, sha256:111" in told
    assert "--images current" in told
    assert "differ in the major version" in told


def test_p42_the_same_image_is_no_warning(stack: Any, registry: Registry) -> None:
    registry.served = {"a/b:develop": OLD, f"a/b@{OLD}": OLD}
    stack.use_recorded_images(recorded(stack))
    assert [line for line in registry.said if line.startswith("warning")] == []


def test_p42_without_a_registry_the_image_that_is_there_is_used(
    stack: Any, registry: Registry
) -> None:
    registry.images = {"a/b:develop": NEW}
    stack.use_recorded_images(recorded(stack))
    assert registry.images == {"a/b:develop": NEW}
    assert "cannot be pulled: a/b:develop is used as it is here" in registry.said[-1]
    stack.use_recorded_images(recorded(stack, digest=""))
    assert "no registry knows the image that tracker had" in registry.said[-1]


def test_p42_a_name_that_is_a_digest_is_left_alone(stack: Any, registry: Registry) -> None:
    stack.use_recorded_images(recorded(stack, name=f"a/b@{OLD}"))
    assert (registry.said, registry.images) == ([], {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mysql:8.4", "docker.io/library/mysql"),
        ("registry:5000/x", "registry:5000/x:1"),
        ("a/b:develop", "a/b@sha256:00"),
        ("a/b:1@sha256:00", "docker.io/a/b"),
    ],
)
def test_p42_a_repository_has_many_spellings(stack: Any, one: str, other: str) -> None:
    assert stack.repository(one) == stack.repository(other)


# ---------------------------------------------------------------- P07, P08


LINES = ["/data/docker-compose.yml", "/data/storage/tracker/etc", "dir:/data/storage/tracker/lib"]
LINES += ["?sqlite:/data/storage/grafana/data/grafana.db", "# a comment"]


@pytest.mark.parametrize(
    ("mount", "told"),
    [
        ({"Type": "bind", "Source": "DEPLOY/storage/app"}, "./storage/app"),
        ({"Type": "bind", "Source": "DEPLOY/.env.app"}, "./.env.app"),
        ({"Type": "volume", "Name": "index"}, "the volume index"),
        ({"Type": "bind", "Source": "OUTSIDE"}, "outside of the deploy directory"),
        ({"Type": "bind", "Source": "DEPLOY/storage/tracker/etc"}, ""),
        ({"Type": "bind", "Source": "DEPLOY/storage/tracker/etc/tls"}, ""),
        ({"Type": "bind", "Source": "DEPLOY/storage/tracker/library"}, "./storage/tracker/library"),
        ({"Type": "bind", "Source": "DEPLOY/storage/grafana/data"}, ""),
        ({"Type": "volume", "Name": "a" * 64}, ""),
        ({"Type": "bind", "Source": "/etc/localtime"}, ""),
        ({"Type": "bind", "Source": "/run/docker.sock"}, ""),
        ({"Type": "tmpfs", "Destination": "/x"}, ""),
    ],
)
def test_p07_a_mount_that_no_line_covers_is_a_warning(
    stack: Any, tmp_path: Path, mount: dict[str, str], told: str
) -> None:
    deploy, outside = tmp_path / "deploy", tmp_path / "outside"
    deploy.mkdir()
    outside.mkdir()
    places = {"DEPLOY": str(deploy), "OUTSIDE": str(outside)}
    for name, place in places.items():
        if "Source" in mount:
            mount = mount | {"Source": mount["Source"].replace(name, place)}
    host = SimpleNamespace(deploy_dir=deploy)
    warnings = stack.not_backed_up(host, [container("index", mount)], LINES)
    assert len(warnings) == bool(told)
    assert told in "".join(warnings)
    assert stack.not_backed_up(host, [container("backup", mount)], LINES) == []


def test_p08_what_uses_the_trackers_network_is_cut_off_by_a_stop(stack: Any) -> None:
    found = [container("tracker"), container("exporter")]
    assert stack.cut_off(found) == []
    found[1]["HostConfig"] = {"NetworkMode": "container:tracker-id"}
    (warning,) = stack.cut_off(found)
    assert "the service exporter uses the network of the tracker" in warning


# ---------------------------------------------------------------- P07: compose files


@pytest.fixture
def deployed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names of the compose files, by files that exist and labels from old to new."""
    docker = importlib.import_module(f"{tool.__name__}.docker")

    def names(files: list[str], labels: list[str]) -> list[str]:
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        found = []
        for index, label in enumerate(labels):
            listed = ",".join(str(tmp_path / one) for one in label.split(",") if one)
            one = container("tracker", Created=f"2026-01-0{index + 1}T00:00:00Z")
            one["Config"]["Labels"][docker.FILES_LABEL] = listed
            found.append(one)
        monkeypatch.setattr(docker, "stack_containers", lambda _: found[::-1])
        host = SimpleNamespace(deploy_dir=tmp_path)
        return [str(file.relative_to(tmp_path)) for file in docker.compose_files(host)]

    return names


@pytest.mark.parametrize(
    ("files", "labels", "found"),
    [
        (["docker-compose.yml"], [], ["docker-compose.yml"]),
        (["docker-compose.yml"], ["docker-compose.yml"], ["docker-compose.yml"]),
        (["a.yml", "b/c.yml"], ["a.yml", "a.yml,b/c.yml"], ["a.yml", "b/c.yml"]),
        # Ours is no file of the stack, and a label can name a file that is gone.
        (["a.yml"], ["a.yml,docker-compose.backup.yml"], ["a.yml"]),
        (["a.yml"], ["a.yml", "gone.yml"], ["a.yml"]),
        (["compose.yaml"], ["gone.yml"], ["compose.yaml"]),
        # Without a label, Compose's own order, and the override file of that name.
        (["compose.yml", "docker-compose.yml"], [], ["compose.yml"]),
        (
            ["docker-compose.yml", "docker-compose.override.yml", "compose.override.yaml"],
            [],
            ["docker-compose.yml", "docker-compose.override.yml"],
        ),
        (
            ["compose.yaml", "compose.override.yaml"],
            [""],
            ["compose.yaml", "compose.override.yaml"],
        ),
        ([], [], []),
    ],
)
def test_p07_the_compose_files_are_those_that_compose_used(
    deployed: Any, files: list[str], labels: list[str], found: list[str]
) -> None:
    assert deployed(files, labels) == found
