"""Docker: calls with a time limit, the stack's containers and ours, the backup image."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from .files import change
from .host import ROOT, STATE, Host, Refused
from .log import say
from .signals import signals

COMPOSE_MINIMUM = (2, 24, 4)
# for one call that should answer at once
DOCKER_SECONDS = float(os.environ.get("TRACKER_BACKUP_DOCKER_SECONDS", "60"))
BUILD_SECONDS = 1800
WORK_SECONDS = 43200  # for what works through a whole backup
END_SECONDS = 5  # for a program to end after SIGTERM
RUN_LABEL, SIDECAR_LABEL = "tracker-backup.run", "tracker-backup.sidecar"
IMAGE_LABEL, BUILT = "tracker-backup.image", "gen-backup-bundle/backup"
OUR_STEPS = ("/usr/local/lib/tracker-backup", "COPY backup.sh ", "/apt/lists/* /etc/crontab")
STACK_LABEL = "com.docker.compose.project.working_dir"
FILES_LABEL = "com.docker.compose.project.config_files"
# In the order in which Compose looks for them.
COMPOSE_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
FRAGMENT = "docker-compose.backup.yml"  # ours


def words(text: str) -> list[str]:
    """Arguments without spaces in them."""
    return text.split()


class Unanswered(Refused):
    """A call was not over within its time limit."""


def docker(
    *arguments: str, seconds: float = DOCKER_SECONDS, environment: Mapping[str, str] | None = None
) -> str:
    """What one Docker call printed; raises Refused with its message when it fails or does not
    answer. A signal interrupts only a call that has more time than DOCKER_SECONDS.
    """
    short = seconds <= DOCKER_SECONDS
    with signals.held() if short else contextlib.nullcontext():
        pipe = subprocess.PIPE
        process = start(["docker", *arguments], pipe, pipe, environment=environment)
        try:
            output, message = (
                text.decode(errors="replace")  # a container prints what it likes
                for text in process.communicate(timeout=seconds)
            )
        except BaseException as error:
            end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                text = f"docker {arguments[0]} did not answer within {seconds:.0f} s"
                raise Unanswered(text) from error
            raise
        if process.returncode != 0:
            lines = without_values(message.strip() or output.strip()).splitlines()
            raise Refused(f"docker {arguments[0]} failed: " + "\n".join(lines[-20:]))
        return output


def start(
    command: list[str],
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """A program in a session of its own, so that Ctrl-C does not end a call of Docker half-way."""
    # BuildKit's files are not in root's home, where they would stay for ever.
    environment = {**os.environ, "BUILDX_CONFIG": str(STATE / "buildx"), **(environment or {})}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise Refused(f"{command[0]} is not installed on this host") from error
    except OSError as error:  # no process, no memory; the tracker's return is tried again
        raise Refused(f"{command[0]} cannot be started: {error.strerror}") from error


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a program of `start` and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()


def without_values(message: str) -> str:
    """Compose repeats what it does not understand of `.env`, where the passwords are."""
    message = re.sub(r"^.*variable is not set.*\n?", "", message, flags=re.MULTILINE)
    return re.sub(r"(\.env: line \d+: [^\"'`]*).*", r"\1", message, flags=re.DOTALL)


def compose_files(host: Host) -> list[Path]:
    """The stack's compose files: as Compose noted at its newest container, otherwise those that
    Compose would look for. Empty if there is none.
    """
    ours = host.deploy_dir / FRAGMENT
    newest = sorted(stack_containers(host), key=lambda one: str(one.get("Created", "")))
    for found in reversed(newest):
        listed = str(found["Config"]["Labels"].get(FILES_LABEL, ""))
        files = [Path(one) for one in listed.split(",") if one and Path(one) != ours]
        if files and all(file.is_file() for file in files):
            return files
    for name in COMPOSE_NAMES:
        stem, dot, suffix = (host.deploy_dir / name).name.rpartition(".")
        pair = [host.deploy_dir / name, host.deploy_dir / f"{stem}.override{dot}{suffix}"]
        if pair[0].is_file():
            return [file for file in pair if file.is_file()]
    return []


def compose(
    host: Host,
    *arguments: str,
    project: str = "",
    seconds: float = DOCKER_SECONDS,
    fragment: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """`docker compose` with the stack's files and ours."""
    files = [*compose_files(host), fragment or host.deploy_dir / FRAGMENT]
    docker(
        "compose",
        *(["--project-name", project] if project else []),
        *("--project-directory", str(host.deploy_dir)),
        *(word for file in files for word in ("--file", str(file))),
        *arguments,
        seconds=seconds,
        environment=environment,
    )


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
    if not compose_files(host):
        raise Refused(
            f"there is no {host.deploy_dir}/docker-compose.yml: is backup.deploy_dir of the "
            "environment file right?",
            2,
        )
    compose(host, *words("--profile backup config --quiet"), fragment=fragment)


def stack_containers(host: Host) -> list[dict[str, Any]]:
    """What `docker inspect` says of every container of the stack; not of one-off ones, nor of the
    sidecar.
    """
    return [
        found
        for found in deployed_containers(host, STACK_LABEL)
        if SIDECAR_LABEL not in found["Config"]["Labels"]
    ]


def deployed_containers(host: Host, label: str) -> list[dict[str, Any]]:
    """Those with this label that Compose made for the deploy directory. Only these are inspected,
    because a stranger's can vanish meanwhile.
    """
    if not (ids := stack_ids(host, "--all", "--filter", f"label={label}")):
        return []
    found: list[dict[str, Any]] = json.loads(docker(*words("inspect --type container"), *ids))
    return found


def stack_ids(host: Host, *filters: str) -> list[str]:
    """Ids of this deploy directory's containers, by one call."""
    template = '{{.ID}} {{.Label "' + STACK_LABEL + '"}}'
    command = "ps --no-trunc --filter label=com.docker.compose.oneoff=False"
    try:
        found = docker(*words(command), *filters, "--format", template).splitlines()
    except Refused as error:
        raise Refused(f"Docker does not list its containers: {error}") from error
    directory = host.deploy_dir.resolve()
    pairs = (line.partition(" ") for line in found)
    return [one for one, _, place in pairs if Path(place).resolve() == directory]


def project_of(found: Mapping[str, Any]) -> str:
    return str(found["Config"]["Labels"]["com.docker.compose.project"])


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
    run = [*words("run --detach --pull never --name"), name, "--label", f"{RUN_LABEL}={name}"]
    docker(*run, *arguments, image, *command)
    try:
        yield name
    finally:
        remove_container(name)


def read_only_mounts(host: Host) -> tuple[str, ...]:
    """Options of `docker compose run` for the reader: what is mounted below the deploy directory is
    mounted again, read-only. Before Docker 25, a read-only mount leaves it writable.
    """
    table, deploy_dir = ROOT / "proc/self/mountinfo", host.deploy_dir.resolve()
    options: list[str] = []
    for line in table.read_bytes().splitlines() if table.exists() else ():
        octal = line.split()[4]  # a space in a path is written as \040
        raw = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), octal)
        place = Path(os.fsdecode(raw))
        if deploy_dir not in place.parents or any(
            place.is_relative_to(masked.resolve()) for masked in host.masked
        ):
            continue
        if ":" in str(place):
            raise Refused(
                f"{place} is mounted below the deploy directory: rename it without a colon"
            )
        options += ["--volume", f"{place}:/data/{place.relative_to(deploy_dir)}:ro"]
    return tuple(options)


def remove_container(name: str) -> None:
    """One that is gone already is no failure. A signal between the calls would leave it."""
    with signals.held():
        # With cgroup v1, a frozen process does not die of SIGKILL.
        with contextlib.suppress(Refused):
            docker("unpause", name)
        try:
            docker(*words("rm --force --volumes"), name)
        except Refused as error:
            if "no such container" not in str(error).lower():
                raise


def remove_dead_containers(warn: Callable[[str], None] | None = None) -> None:
    """Those of dead runs, verifications and restores, which may go on working; under the lock,
    where nobody else has one. With `warn`, one that cannot be removed is a warning.
    """
    for left in docker(*words("ps --all --quiet --filter"), f"label={RUN_LABEL}").split():
        try:
            remove_container(left)
        except Refused as error:
            if not warn:
                raise
            warn(f"the container {left} of a dead run could not be removed: {error}")
        else:
            if warn:
                warn(f"removing the container of a dead run: {left}")


def make_image(host: Host, context: Path, rebuild: bool) -> None:
    """Builds or pulls the image when it is not there, or again when asked to."""
    pull = ["pull", host.image]
    again = ["--no-cache"] if rebuild else []
    build = ["build", *again, "--tag", host.image, str(context)]
    if rebuild or not has_image(host.image):
        words = pull if host.image_source == "pull" else build
        change(f"image {host.image}", lambda: docker(*words, seconds=BUILD_SECONDS))


def image_id(image: str) -> str:
    """The id of a local image, whatever the spelling of its name; empty if there is none."""
    try:
        return docker(*words("image inspect --format {{.Id}}"), image).strip() or image
    except Refused as error:
        if "no such image" in str(error).lower():
            return ""
        raise


def has_image(image: str) -> bool:
    return bool(image_id(image))


def remove_images(keep: str = "", *pulled: str) -> None:
    """Removes the images that were built here or pulled for a bundle, but one, and what is left of
    builds that were repeated. An image in use stays, with a warning.
    """
    kept = image_id(keep) if keep else ""
    labelled = words("images --quiet --no-trunc --filter dangling=true --filter")
    found = docker(*labelled, f"label={IMAGE_LABEL}").split()
    names = docker(*words("images --format {{.Repository}}:{{.Tag}}")).split()
    found += [name for name in names if name.startswith(f"{BUILT}:")]
    for image in [*found, *(one for one in pulled if one not in found and has_image(one))]:
        if image_id(image) != kept:
            # By its name: somebody may have given the image another one, too.
            with reported():
                change(f"image {image} (removed)", partial(docker, *words("image rm"), image))


def remove_build_cache() -> None:
    """Removes what BuildKit keeps of the steps of our Dockerfile. The newest goes first, because a
    step needs the one before it. Without BuildKit the layers have gone with the image.
    """
    command = [*words("system df --verbose --format"), "{{json .BuildCache}}"]
    steps = json.loads(docker(*command, seconds=BUILD_SECONDS) or "[]") or []
    ours = [one for one in steps if any(mark in one["Description"] for mark in OUR_STEPS)]
    for step in sorted(ours, key=lambda one: str(one["CreatedAt"]), reverse=True):
        remove = [*words("builder prune --all --force --filter"), f"id={step['ID']}"]
        change(f"build cache {step['ID']} (removed)", partial(docker, *remove))


def remove_networks(host: Host) -> None:
    """Removes our network of the stack's project, also when no container of the stack is left."""
    label = "label=com.docker.compose."
    project = next((project_of(one) for one in stack_containers(host)), "")
    project = project or re.sub(r"[^a-z0-9_-]", "", host.deploy_dir.name.lower())
    filters = (f"{label}network=backup_network", f"{label}project={project}")
    listing = words("network ls --format {{.Name}}")
    for name in docker(*listing, *(x for one in filters for x in ("--filter", one))).split():
        change(f"network {name} (removed)", partial(docker, "network", "rm", name))


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """What Docker refuses is a warning."""
    try:
        yield
    except Refused as error:
        say(f"warning: {error}")
