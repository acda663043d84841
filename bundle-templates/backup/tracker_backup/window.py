"""The window: the time in which the tracker is stopped or paused, and its end whatever happens."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .docker import Unanswered, docker, end, stack_ids, start, words
from .fault_points import fault_point
from .files import sync_directory
from .host import STATE, Host, Refused
from .log import LOG, log
from .signals import Ended, signals

MARKER = STATE / "window"
MARKER_BYTES = 4096
STEADY_SECONDS = float(os.environ.get("TRACKER_BACKUP_STEADY_SECONDS", "3"))
RESUME_SECONDS = int(os.environ.get("TRACKER_BACKUP_BRING_BACK_SECONDS", "20"))
# So long after the limit of its capture, another process recovers a run that is still alive.
OVERDUE_SECONDS = 30
# for the event of our own start of the tracker to arrive
EVENT_SECONDS = float(os.environ.get("TRACKER_BACKUP_EVENT_SECONDS", "10"))
QUIET_SECONDS = 1  # the same where nobody starts it
DOCKER_PID_FILE = Path(os.environ.get("TRACKER_BACKUP_DOCKER_PID_FILE", "/run/docker.pid"))
STOP_INSTEAD = "set backup.quiesce to 'stop' in the environment file, generate and install again"
UNKNOWN = (
    "Docker does not say whether the tracker was changed during the capture; the copy is discarded"
)


@dataclass(frozen=True)
class Marker:
    """/var/lib/tracker-backup/window, from which another process brings the tracker back. Times are
    seconds since 1970. It is data: its fields go into calls of Docker.
    """

    tracker: str  # the container's id
    started: str  # since when it ran, in Docker's words
    action: str  # stop or pause
    opened: int
    deadline: int  # until then, nobody else touches the window of a live run
    stop_timeout: int  # seconds
    run: str

    def encode(self) -> str:
        return json.dumps({"format": 2, **asdict(self)}) + "\n"

    @classmethod
    def decode(cls, text: str) -> Marker:
        """Also reads format 1, the fields in one line. Raises ValueError."""
        if text.startswith("{"):
            fields = json.loads(text)
            if type(number := fields.pop("format", None)) is not int or number != 2:
                raise ValueError(f"its format is {number!r}, this program knows 2")
            text = " ".join(str(fields.pop(name, "")) for name in cls.__dataclass_fields__)
            if fields:
                raise ValueError("it has unknown fields")
        found = re.fullmatch(
            r"([0-9a-f]{1,64}) ([0-9A-Za-z:.+-]{1,64}) (stop|pause) "
            r"([0-9]{1,12}) ([0-9]{1,12}) ([0-9]{1,6}) ([0-9]{8}_[0-9]{6})",
            text.partition("\n")[0],
        )
        if not found:
            raise ValueError("its fields are not as expected")
        tracker, started, action, opened, deadline, stop_timeout, run = found.groups()
        return cls(tracker, started, action, int(opened), int(deadline), int(stop_timeout), run)

    @classmethod
    def read(cls) -> Marker | None:
        """None for an empty one. Raises Refused when it is damaged."""
        try:
            with MARKER.open("rb") as file:
                text = file.read(MARKER_BYTES).decode(errors="replace")
            return cls.decode(text) if text else None
        except (ValueError, RecursionError, AttributeError) as error:
            text = f"the marker {MARKER} is damaged ({error}): see that the tracker runs, "
            raise Refused(text + "then remove it", 4) from error

    def write(self) -> None:
        """If the run dies, recovery needs it. So it is on disk before the tracker is touched."""
        partial = MARKER.with_name("window.partial")
        with partial.open("w", encoding="ascii") as file:
            file.write(self.encode())
            file.flush()
            fault_point("syncing-the-marker")
            os.fsync(file.fileno())
        fault_point("renaming-the-marker")
        partial.rename(MARKER)
        sync_directory(STATE)

    @classmethod
    def peek(cls) -> Marker | None:
        """None also for one that is missing or damaged."""
        try:
            return cls.read()
        except (Refused, FileNotFoundError):
            return None

    def remove(self) -> None:
        """A recovery without the lock may find the marker of the next run, which stays."""
        fault_point("removing-the-marker")
        if (there := Marker.peek()) and there.run == self.run:
            MARKER.unlink()


def is_overdue() -> bool:
    """Whether a live run is past its deadline. Then the tracker matters more than the lock."""
    marker = Marker.peek()
    return marker is not None and time.time() > marker.deadline


# ---------------------------------------------------------------- the stack


class Stack:
    """The containers that ran when the run began.

    If dockerd is killed, it stops all containers when it starts again. It does not restart those
    with `restart: unless-stopped`.
    """

    def __init__(self, host: Host) -> None:
        self.pid = docker_pid()
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
            answers("start", *self.ids)


def docker_pid() -> str:
    """Docker's process id; empty when nothing says it."""
    try:
        pid = DOCKER_PID_FILE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return pid if re.fullmatch("[0-9]{1,18}", pid) else ""


def answers(*arguments: str) -> bool:
    """Whether a call of Docker succeeds; what it says otherwise is in the log."""
    try:
        docker(*arguments)
    except Refused as error:
        log(str(error))
        return False
    return True


@dataclass(frozen=True)
class Tracker:
    """The tracker's container: Docker's status, since when it runs, how it ended."""

    id: str
    status: str
    started: str
    exit_code: str

    def __str__(self) -> str:
        return f"{self.status} {self.started} {self.exit_code}"


def look(tracker: str) -> Tracker | None:
    """None when Docker does not answer, or does not know the container."""
    template = "{{.State.Status}} {{.State.StartedAt}} {{.State.ExitCode}}"
    try:
        fields = docker(*words("inspect --type container --format"), template, tracker).split()
    except Refused:
        return None
    return Tracker(tracker, *fields) if len(fields) == 3 else None


def is_gone(tracker: str) -> bool:
    """Docker answers, and does not know it. An inspect that fails does not say this."""
    try:
        return not docker(*words("ps --all --quiet --filter"), f"id={tracker}").strip()
    except Refused:
        return False


def tracker_ids(host: Host) -> list[str]:
    return stack_ids(host, *words("--all --filter label=com.docker.compose.service=tracker"))


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


# ---------------------------------------------------------------- the window


class Window:
    """Stops or pauses the tracker, and brings back exactly what it stopped or paused.

    Its block captures. With the quiesce `none`, or for a tracker that did not run, it touches
    nothing.
    """

    def __init__(
        self,
        host: Host,
        run: str,
        quiesce: str,  # stop, pause, none, or `left-` and the tracker's status
        tracker: Tracker | None,
        looked_at: float,  # when the run asked Docker for this state of the tracker
        stack: Stack,
    ) -> None:
        self.host, self.run, self.quiesce, self.stack = host, run, quiesce, stack
        self.tracker, self.looked_at = tracker, looked_at
        self.limit = capture_seconds(host)
        self.marker: Marker | None = None  # while the tracker may be down
        self.began = time.monotonic()
        self.seconds = 0.0  # for which it was open
        self.stopping = 0.0  # seconds that the tracker took to stop
        self.started = False  # whether Docker has started or unpaused the tracker for us
        self.found: Tracker | None = None  # the tracker before it was brought back
        self.events: Events | None = None
        self.changes: list[str] | None = None  # what somebody else did to it in the window
        self.inhibitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Window:
        try:
            self.open()
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, *_: object) -> None:
        try:
            self.leave(error)
        except Ended as ended:  # maybe before the tracker was back; no second one comes
            self.leave(ended)
            raise

    def leave(self, error: BaseException | None) -> None:
        captured_at = time.time_ns()
        try:
            if error:
                signals.ignore()
                self.stack.restart()
            self.close()
            if self.events and not error and (not self.found or self.is_unchanged()):
                self.changes = self.events.until(captured_at, self.started)
        except Refused as failure:
            if error and failure.code == 4:
                raise Refused(f"{failure}; before that: {error}", 4) from error
            raise
        finally:
            if self.events:
                end(self.events.process)

    def open(self) -> None:
        if self.quiesce != "none" and self.tracker:
            self.events = Events(self.tracker.id, self.looked_at)
        if self.quiesce not in ("stop", "pause") or not self.tracker:
            return
        now = int(time.time())
        marker = Marker(
            self.tracker.id,
            self.tracker.started,
            self.quiesce,
            opened=now,
            deadline=now + self.limit + OVERDUE_SECONDS,
            stop_timeout=self.host.stop_timeout,
            run=self.run,
        )
        self.inhibitor = inhibit_shutdown(self.limit + OVERDUE_SECONDS)
        marker.write()
        log(f"window opens: {self.quiesce} the tracker")
        self.began = time.monotonic()
        # Set this before the call. If we are interrupted, Docker still completes the call.
        self.marker = marker
        fault_point("taking-the-tracker-down", self.host)
        with signals.held():
            self.take_down(marker)

    def take_down(self, marker: Marker) -> None:
        word, advice = "stopped", ""
        try:
            if marker.action == "stop":
                command = ["stop", "-t", str(marker.stop_timeout), marker.tracker]
                docker(*command, seconds=marker.stop_timeout + 30)
                self.stopping = time.monotonic() - self.began
            else:
                word, advice = "paused", f"; if it happens again, {STOP_INSTEAD}"
                docker("pause", marker.tracker)
        except Refused as error:
            raise Refused(f"the tracker could not be {word} ({error}){advice}") from error

    def remaining(self, otherwise: float) -> float:
        """The seconds that the capture may take."""
        if not self.marker:
            return otherwise
        left = self.limit - int(time.monotonic() - self.began)
        if left > 0:
            return left
        raise Refused(f"the window's limit of {self.limit} s for stopping and capturing is over")

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Removes the marker when the tracker runs steadily, or when somebody else took it over.
        Raises Refused with code 4 when it cannot be brought back.
        """
        if not (marker := self.marker):
            return
        with signals.held():
            ours = self.resume(marker)
            if self.inhibitor:
                end(self.inhibitor)
            self.marker = None
            if ours:
                before = look(marker.tracker)
                time.sleep(STEADY_SECONDS)
                after = look(marker.tracker)
                if not before or before != after or after.status != "running":
                    raise not_back(
                        "the tracker does not run steadily after the window "
                        f"(docker logs {marker.tracker})"
                    )
            marker.remove()

    def resume(self, marker: Marker) -> bool:
        """Starts or unpauses the tracker, whatever its state is now. False when somebody else took
        it over.
        """
        fault_point("bringing-the-tracker-back")
        patience, state = RESUME_SECONDS + marker.stop_timeout, None
        began = time.monotonic()
        for attempt in range(patience + 1):
            if attempt:
                time.sleep(1)
            if time.monotonic() - began > patience:
                break
            state = look(marker.tracker)
            self.found = self.found or state
            if not state and is_gone(marker.tracker):
                log(
                    "the tracker container that this run stopped was removed by somebody; "
                    "leaving things as they are"
                )
                return False
            if not state or state.status == "restarting":
                continue
            if state.status == "running":
                # Docker completes an interrupted stop. A start before its end has no effect.
                if marker.action == "pause" or state.started != marker.started:
                    break
                continue
            if state.status == "exited" and self.was_stopped_by_somebody(marker):
                log("the tracker was stopped by somebody while it was paused; leaving it as it is")
                return False
            call = "unpause" if state.status == "paused" else "start"
            if answers(call, marker.tracker):
                self.started = True
                state = look(marker.tracker)
                if state and state.status == "running":
                    break
        # If it runs since the same start, the stop never took effect.
        if not state or state.status != "running":
            raise not_back(
                f"the tracker {marker.tracker} could not be brought back "
                f"(docker start {marker.tracker})"
            )
        self.seconds = round(time.monotonic() - self.began, 3)
        log(f"window closed: the tracker runs again after {self.seconds:.3f} s")
        return True

    @staticmethod
    def was_stopped_by_somebody(marker: Marker) -> bool:
        """A paused tracker that is now exited has two explanations. If dockerd died of SIGKILL,
        Docker was started after the window opened. If somebody stopped the tracker, Docker has an
        event of it.
        """
        if marker.action != "pause":
            return False
        try:
            if DOCKER_PID_FILE.stat().st_mtime_ns > MARKER.stat().st_mtime_ns:
                return False
        except FileNotFoundError:
            pass
        command = ["events", "--since", str(marker.opened), "--until", f"{time.time():.6f}"]
        command += ["--filter", f"container={marker.tracker}"]
        command += [*words("--filter event=stop --filter event=kill --format {{.Action}}")]
        try:
            return bool(docker(*command).strip())
        except Refused:
            return False

    @property
    def expected(self) -> str:
        """The tracker's status during the capture."""
        taken_down = {"stop": "exited", "pause": "paused"}
        return taken_down.get(self.quiesce) or self.quiesce.removeprefix("left-")

    def is_unchanged(self) -> bool:
        """Whether the tracker's state at the end of the capture is the one that the run left."""
        if not self.tracker or not self.found:
            return self.tracker is self.found
        state = self.found.status, self.found.started
        return state == (self.expected, self.tracker.started)

    def require_unchanged(self) -> None:
        """If somebody starts the tracker during the capture, the copy is torn, and no
        integrity_check sees it.
        """
        if self.quiesce == "none":
            return
        tracker, expected = self.tracker, self.expected
        if tracker and not self.found:
            self.found = look(tracker.id)
        try:
            ids = tracker_ids(self.host)
        except Refused as error:
            raise Refused(f"{UNKNOWN} ({error})") from error
        good = ids == ([tracker.id] if tracker else [])
        if not good or not self.is_unchanged():
            was = f"{tracker.id} {expected} {tracker.started}" if tracker else expected
            raise Refused(
                f"the tracker was changed during the capture (was: {was}; is: "
                f"{' '.join(ids) or 'gone'} {self.found or ''}); the copy is discarded"
            )
        if not tracker:
            return
        fault_point("looking-back-at-the-window", self.host)
        if self.changes is None:
            raise Refused(UNKNOWN)
        if self.changes:
            raise Refused(
                f"the tracker was changed during the capture ({' '.join(self.changes)}); the copy "
                "is discarded"
            )
        if self.quiesce == "stop" and self.found and self.found.exit_code == "137":
            log(
                f"the tracker did not end within {self.host.stop_timeout} s and was killed; "
                "a hot journal is to be expected"
            )

    # ------------------------------------------------------------ recovery

    @classmethod
    def load(cls) -> Window | None:
        """The window that a run left open which is dead or past its deadline."""
        if not (marker := Marker.read()):
            MARKER.unlink()
            return None
        window = cls.__new__(cls)
        window.marker, window.found, window.inhibitor = marker, None, None
        window.began = time.monotonic() - max(0, time.time() - marker.opened)
        return window

    def recover(self) -> None:
        """Brings the tracker back if it is as the dead run left it. It reads nothing of the deploy
        directory. Raises Refused with code 4 when it fails; the marker stays then.
        """
        marker = self.marker
        assert marker
        log(
            f"recovery: run {marker.run} left a window open ({marker.action}); it is dead or past "
            "its deadline"
        )
        state = look(marker.tracker)
        if not state and not is_gone(marker.tracker):
            raise Refused("Docker does not answer; recovery tries again within a minute", 4)
        if state and state.started == marker.started and self.is_as_left(marker, state.status):
            self.close()
        else:
            log(
                "recovery: somebody has stopped, started or replaced the tracker since; "
                "leaving it as it is"
            )
            marker.remove()

    def is_as_left(self, marker: Marker, status: str) -> bool:
        """A Docker call of the dead run may still be in progress, so a running tracker can stop at
        any moment.
        """
        if marker.action == "pause" and status == "exited":
            return not self.was_stopped_by_somebody(marker)
        return status in ("running", "exited" if marker.action == "stop" else "paused")


def not_back(reason: str) -> Refused:
    """The reason to end with code 4. It counts more than a signal that arrived meanwhile."""
    signals.ignore()
    return Refused(reason, 4)


def capture_seconds(host: Host) -> int:
    """For stopping and capturing. In the rest of the window the tracker comes back. If the run
    hangs, cron's recovery needs the rest to notice it.
    """
    return host.window_timeout * 2 // 3


def inhibit_shutdown(seconds: int) -> subprocess.Popen[bytes] | None:
    """Unattended upgrades can reboot at night. A window is short, so the reboot waits for it."""
    if not Path("/run/systemd/system").is_dir() or not shutil.which("systemd-inhibit"):
        return None
    command = ["timeout", str(seconds), *words("systemd-inhibit --what=shutdown --mode=block")]
    command += ["--who=tracker-backup", "--why=the tracker is stopped or frozen for its backup"]
    command += ["tail", f"--pid={os.getpid()}", *words("--follow /dev/null")]
    with LOG.open("ab") as file:
        return start(command, stdout=file, stderr=file)
