"""Docker: calls with a time limit, the stack's containers and ours, the backup image."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .host import STATE, Host, Refused
from .log import say

COMPOSE_MINIMUM = (2, 24, 4)
DOCKER_SECONDS = 60  # for one call that should answer at once
BUILD_SECONDS = 1800
RUN_LABEL, SIDECAR_LABEL = "tracker-backup.run", "tracker-backup.sidecar"
WORK_SECONDS = 43200  # for what works through a whole backup


def docker(*arguments: str, seconds: int = DOCKER_SECONDS) -> str:
    """What one Docker call printed; raises Refused with its message when it fails or does not
    answer.
    """
    environment = os.environ | {
        "BUILDX_CONFIG": str(STATE / "buildx")
    }  # not in root's home, where it would stay for ever
    try:
        done = subprocess.run(
            ["docker", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # a container prints what it likes
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise Refused("Docker is not installed on this host") from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"docker {arguments[0]} did not answer within {seconds} s") from error
    if done.returncode != 0:
        lines = without_values(done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Refused(f"docker {arguments[0]} failed: " + "\n".join(lines[-20:]))
    return done.stdout


def without_values(message: str) -> str:
    """Compose repeats what it does not understand of `.env`, where the passwords are."""
    message = re.sub(r"^.*variable is not set.*\n?", "", message, flags=re.MULTILINE)
    return re.sub(r"(\.env: line \d+: [^\"'`]*).*", r"\1", message, flags=re.DOTALL)


def check_docker(host: Host, fragment: Path) -> None:
    """The engine answers, Compose knows `!override`, and the stack's compose file goes together
    with ours.
    """
    docker("version")
    version = docker("compose", "version", "--short").strip().removeprefix("v")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < COMPOSE_MINIMUM:
        raise Refused(
            f"docker compose is {version}; {'.'.join(map(str, COMPOSE_MINIMUM))} or newer is needed"
        )
    stack = host.deploy_dir / "docker-compose.yml"
    if not stack.is_file():
        raise Refused(
            f"there is no {stack}: is backup.deploy_dir of the environment file right?", 2
        )
    docker(
        "compose",
        "--project-directory",
        str(host.deploy_dir),
        "--file",
        str(stack),
        "--file",
        str(fragment),
        "--profile",
        "backup",
        "config",
        "--quiet",
    )


def stack_containers(host: Host) -> list[dict[str, Any]]:
    """What `docker inspect` says of every container of the stack; not of one-off ones, nor of the
    sidecar.
    """
    return [
        found
        for found in deployed_containers(host, "com.docker.compose.project.working_dir")
        if SIDECAR_LABEL not in found["Config"]["Labels"]
    ]


def deployed_containers(host: Host, label: str) -> list[dict[str, Any]]:
    """Those with this label that Compose made for the deploy directory."""
    ids = docker("ps", "--all", "--quiet", "--filter", f"label={label}").split()
    return [
        found
        for found in (json.loads(docker("inspect", "--type", "container", *ids)) if ids else [])
        if found["Config"]["Labels"].get("com.docker.compose.oneoff") != "True"
        and Path(found["Config"]["Labels"]["com.docker.compose.project.working_dir"]).resolve()
        == host.deploy_dir.resolve()
    ]


def service_of(found: Mapping[str, Any]) -> str:
    return str(found["Config"]["Labels"]["com.docker.compose.service"])


def bind(source: Path, target: str, *options: str) -> list[str]:
    """A bind mount as an argument of docker run; its value is CSV, so that any path survives."""
    quoted = str(source).replace('"', '""')
    return ["--mount", ",".join(["type=bind", f'"source={quoted}"', f"target={target}", *options])]


@contextlib.contextmanager
def container(
    name: str, image: str, *arguments: str, command: tuple[str, ...] = ()
) -> Iterator[str]:
    """A container of ours, of an image that is there."""
    docker(
        "run",
        "--detach",
        "--pull",
        "never",
        "--name",
        name,
        "--label",
        f"{RUN_LABEL}={name}",
        *arguments,
        image,
        *command,
    )
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def remove_dead_containers() -> None:
    """Those of dead runs, verifications and restores, which may go on working; under the lock,
    where nobody else has one.
    """
    for left in docker("ps", "--all", "--quiet", "--filter", f"label={RUN_LABEL}").split():
        docker("rm", "--force", "--volumes", left)


def make_image(host: Host, context: Path, rebuild: bool) -> None:
    """Builds or pulls the image when it is not there, or again when asked to."""
    if rebuild or not has_image(host.image):
        if host.image_source == "pull":
            docker("pull", host.image, seconds=BUILD_SECONDS)
        else:
            docker(
                "build",
                *(["--no-cache"] if rebuild else []),
                "--tag",
                host.image,
                str(context),
                seconds=BUILD_SECONDS,
            )
        say(f"changed: image {host.image}")


def image_id(image: str) -> str:
    """The id of a local image, whatever the spelling of its name; empty if there is none."""
    try:
        return docker("image", "inspect", "--format", "{{.Id}}", image).strip() or image
    except Refused as error:
        if "no such image" in str(error).lower():
            return ""
        raise


def has_image(image: str) -> bool:
    return bool(image_id(image))


def remove_images(keep: str) -> None:
    """Removes the images that bundles were built into, but one. An image in use stays, with a
    warning.
    """
    kept = image_id(keep) if keep else ""
    for image in docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if image.startswith("gen-backup-bundle/backup:") and image_id(image) != kept:
            try:
                docker("image", "rm", image)
                say(f"changed: image {image} (removed)")
            except Refused as error:
                say(f"warning: {error}")
