"""The tracker's container and the stack around it: how they are, what happened to them."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .docker import Unanswered, docker, stack_ids, start, words
from .host import Host, Refused
from .log import log

# for the event of our own start of the tracker to arrive
EVENT_SECONDS = float(os.environ.get("TRACKER_BACKUP_EVENT_SECONDS", "10"))
QUIET_SECONDS = 1  # the same where nobody starts it
DOCKER_PID_FILE = Path(os.environ.get("TRACKER_BACKUP_DOCKER_PID_FILE", "/run/docker.pid"))


@dataclass(frozen=True)
class Tracker:
    """A container: Docker's status, since when it runs, how and when it ended."""

    id: str
    status: str
    started: str
    exit_code: str
    finished: str

    def __str__(self) -> str:
        return f"{self.status} {self.started} {self.exit_code}"


def look(container: str) -> Tracker | None:
    """None when Docker does not answer, or does not know the container."""
    fields = ("Status", "StartedAt", "ExitCode", "FinishedAt")
    template = " ".join("{{.State." + name + "}}" for name in fields)
    try:
        found = docker(*words("inspect --type container --format"), template, container).split()
    except Refused:
        return None
    return Tracker(container, *found) if len(found) == len(fields) else None


def is_gone(container: str) -> bool:
    """Docker answers, and does not know it. An inspect that fails does not say this."""
    try:
        return not docker(*words("ps --all --quiet --filter"), f"id={container}").strip()
    except Refused:
        return False


def tracker_ids(host: Host) -> list[str]:
    return stack_ids(host, *words("--all --filter label=com.docker.compose.service=tracker"))


def answers(*arguments: str) -> bool:
    """Whether a call of Docker succeeds; what it says otherwise is in the log."""
    try:
        docker(*arguments)
    except Refused as error:
        log(str(error))
        return False
    return True


class Stack:
    """The containers that ran when the run began.

    If dockerd is killed, it stops all containers when it starts again. It does not restart those
    with `restart: unless-stopped`.
    """

    def __init__(self, host: Host, restarts: bool = True) -> None:
        self.pid = docker_pid() if restarts else ""
        self.ids = stack_ids(host) if self.pid else []

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts them again if Docker died since."""
        if not self.pid:
            return
        try:
            docker("version")
        except Unanswered:
            pass
        except Refused:  # a dying dockerd may still get the first question
            answers("version")
        pid = docker_pid() or "none"
        if pid != self.pid:
            self.pid = pid
            log("WARNING: Docker has died during this run; starting what it took down")
            if taken_down := [one for one in self.ids if was_taken_down(one)]:
                answers("start", *taken_down)


def was_taken_down(container: str) -> bool:
    """Whether it ended after Docker was started again. If it ended before, somebody stopped it."""
    found = look(container)
    try:
        docker_started = time.gmtime(DOCKER_PID_FILE.stat().st_mtime)
    except OSError:
        return False
    since = time.strftime("%Y-%m-%dT%H:%M:%S", docker_started)
    return bool(found and found.status == "exited" and found.finished[: len(since)] >= since)


def docker_pid() -> str:
    """Docker's process id; empty when nothing says it."""
    try:
        pid = DOCKER_PID_FILE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return pid if re.fullmatch("[0-9]{1,18}", pid) else ""


class Events:
    """The stream of the tracker's starts and unpauses from a moment on."""

    def __init__(self, tracker: str, since: float) -> None:
        command = ["docker", "events", "--since", f"{since:.6f}", "--filter"]
        command += [f"container={tracker}", *words("--filter event=start --filter event=unpause")]
        command += ["--format", "{{.TimeNano}} {{.Action}}"]
        self.process = start(command, stdout=subprocess.PIPE)

    def until(self, moment: int, started: bool) -> list[str] | None:
        """The actions until a moment, in nanoseconds since 1970. If we have started the tracker
        after that moment, then the event of it says that all earlier ones have arrived. None when
        the stream ended before.
        """
        assert self.process.stdout
        stream, text = self.process.stdout.fileno(), b""
        deadline = time.monotonic() + (EVENT_SECONDS if started else QUIET_SECONDS)
        while True:
            lines = [line.split() for line in text.decode(errors="replace").split("\n")[:-1]]
            if any(len(line) != 2 or not line[0].isdigit() for line in lines):
                return None
            early = [action for when, action in lines if int(when) <= moment]
            if len(early) < len(lines):
                return early
            if not select.select([stream], [], [], max(0, deadline - time.monotonic()))[0]:
                return None if started else early
            if not (block := os.read(stream, 65536)):
                return None
            text += block


def was_stopped(tracker: str, since: int) -> bool:
    """Whether Docker knows of somebody who stopped it since a moment, in seconds since 1970."""
    command = ["events", "--since", str(since), "--until", f"{time.time():.6f}"]
    command += ["--filter", f"container={tracker}"]
    command += [*words("--filter event=stop --filter event=kill --format {{.Action}}")]
    try:
        return bool(docker(*command).strip())
    except Refused:
        return False
