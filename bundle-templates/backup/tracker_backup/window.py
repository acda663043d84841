"""The window: the time in which the tracker is stopped or paused, and its end whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from .docker import docker, end, start, words
from .documents import BadDocument, Hex, RunId, StateDocument, shaped
from .fault_points import fault_point
from .host import STATE, Host, Refused
from .log import LOG, log
from .signals import Ended, signals
from .tracker import (
    DOCKER_PID_FILE,
    Events,
    Stack,
    Tracker,
    answers,
    is_gone,
    look,
    tracker_ids,
    was_stopped,
)

STEADY_SECONDS = float(os.environ.get("TRACKER_BACKUP_STEADY_SECONDS", "3"))
RESUME_SECONDS = int(os.environ.get("TRACKER_BACKUP_BRING_BACK_SECONDS", "20"))
# So long after the limit of its capture, another process recovers a run that is still alive.
OVERDUE_SECONDS = 30
LONGEST_SECONDS = 10**6  # of a stop; a marker that says more is damaged
STOP_INSTEAD = "set backup.quiesce to 'stop' in the environment file, generate and install again"
UNKNOWN = (
    "Docker does not say whether the tracker was changed during the capture; the copy is discarded"
)


@dataclass(frozen=True)
class Marker(StateDocument):
    """From it, another process brings the tracker back. Times are seconds since 1970. Its fields go
    into calls of Docker.
    """

    FORMAT = 2  # 1 is one line: the fields in this order
    FILE = "window"
    REMEDY = "see that the tracker runs, then remove it"

    tracker: Annotated[Hex, shaped(".+")]  # the container's id
    started: Annotated[str, shaped("[0-9A-Za-z:.+-]{1,64}")]  # since when it ran, in Docker's words
    action: Literal["stop", "pause"]
    opened: int
    deadline: int  # until then, nobody else touches the window of a live run
    stop_timeout: int  # seconds
    run: RunId

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_timeout > LONGEST_SECONDS:
            raise BadDocument(f"is damaged: stop_timeout is {self.stop_timeout}")

    @classmethod
    def decode(cls, content: bytes | str) -> Marker:
        text = content if isinstance(content, str) else content.decode(errors="replace")
        if text.lstrip().startswith("{"):
            return super().decode(content)
        try:
            tracker, started, action, *moments, run = text.split()
            opened, deadline, stop_timeout = map(int, moments)
        except ValueError as error:
            raise BadDocument("is damaged: its fields are not as expected") from error
        fields: list[Any] = [tracker, started, action, opened, deadline, stop_timeout, run]
        return cls(*fields)

    def remove(self) -> None:
        """A recovery without the lock may find the marker of the next run, which stays."""
        fault_point("removing-the-marker")
        if (there := Marker.peek([])) and there.run == self.run:
            self.end()


MARKER = STATE / Marker.FILE


def is_overdue() -> bool:
    """Whether a live run is past its deadline. Then the tracker matters more than the lock."""
    marker = Marker.peek([])
    return marker is not None and time.time() > marker.deadline


# ---------------------------------------------------------------- the tracker's return


class Outage:
    """The tracker that a run has stopped or paused, and how it comes back."""

    def __init__(self, marker: Marker) -> None:
        self.marker = marker
        self.began = time.monotonic() - max(0, time.time() - marker.opened)
        self.seconds = 0.0  # that it took
        self.found: Tracker | None = None  # before it was brought back
        self.started = False  # whether Docker has started or unpaused it for us

    def end(self) -> None:
        """Removes the marker when the tracker runs steadily, or when somebody else took it over.
        Raises Refused with code 4 when it cannot be brought back.
        """
        if self.resume():
            self.seconds = round(time.monotonic() - self.began, 3)
            log(f"window closed: the tracker runs again after {self.seconds:.3f} s")
            self.require_steady()
        self.marker.remove()

    def resume(self) -> bool:
        """Starts or unpauses the tracker, whatever its state is now. False when somebody else took
        it over.
        """
        fault_point("bringing-the-tracker-back")
        marker, state = self.marker, None
        deadline = time.monotonic() + RESUME_SECONDS + marker.stop_timeout
        while True:
            state = look(marker.tracker)
            self.found = self.found or state
            if not state and is_gone(marker.tracker):
                log(
                    "the tracker container that this run stopped was removed by somebody; "
                    "leaving things as they are"
                )
                return False
            if state and state.status == "exited" and self.was_stopped_by_somebody():
                log("the tracker was stopped by somebody while it was paused; leaving it as it is")
                return False
            if state and state.status == "running":
                # Docker completes an interrupted stop. A start before its end has no effect.
                if marker.action == "pause" or state.started != marker.started:
                    return True
            elif state and state.status != "restarting":
                call = "unpause" if state.status == "paused" else "start"
                if answers(call, marker.tracker):
                    self.started = True
                    if (state := look(marker.tracker)) and state.status == "running":
                        return True
            if time.monotonic() + 1 > deadline:
                break
            time.sleep(1)
        if state and state.status == "running":  # since the same start: the stop had no effect
            return True
        raise not_back(
            f"the tracker {marker.tracker} could not be brought back "
            f"(docker start {marker.tracker})"
        )

    def require_steady(self) -> None:
        tracker = self.marker.tracker
        before = look(tracker)
        time.sleep(STEADY_SECONDS)
        after = look(tracker)
        if not before or before != after or after.status != "running":
            raise not_back(
                f"the tracker does not run steadily after the window (docker logs {tracker})"
            )

    def was_stopped_by_somebody(self) -> bool:
        """A paused tracker that is now exited has two explanations. If dockerd died of SIGKILL,
        Docker was started after the window opened. If somebody stopped the tracker, Docker has an
        event of it.
        """
        if self.marker.action != "pause":
            return False
        try:
            if DOCKER_PID_FILE.stat().st_mtime_ns > MARKER.stat().st_mtime_ns:
                return False
        except FileNotFoundError:
            pass
        return was_stopped(self.marker.tracker, self.marker.opened)


def not_back(reason: str) -> Refused:
    """The reason to end with code 4. It counts more than a signal that arrived meanwhile."""
    signals.ignore()
    return Refused(reason, 4)


def recover() -> None:
    """Brings back the tracker of a run that is dead or past its deadline, if it is as that run left
    it. It reads nothing of the deploy directory. Raises Refused with code 4 when it fails; the
    marker stays then.
    """
    try:
        marker = Marker.load()
    except BadDocument as error:
        raise Refused(str(error), 4) from error
    if not marker:
        return
    log(
        f"recovery: run {marker.run} left a window open ({marker.action}); it is dead or past "
        "its deadline"
    )
    state, outage = look(marker.tracker), Outage(marker)
    if not state and not is_gone(marker.tracker):
        raise Refused("Docker does not answer; recovery tries again within a minute", 4)
    # A Docker call of the dead run may still be in progress, so a running tracker can stop at any
    # moment. If Docker died, a paused one is exited.
    as_left = {"running", "exited", "paused"} - ({"paused"} if marker.action == "stop" else set())
    if (
        state
        and state.started == marker.started
        and state.status in as_left
        and not (state.status == "exited" and outage.was_stopped_by_somebody())
    ):
        with signals.held():
            outage.end()
        return
    log(
        "recovery: somebody has stopped, started or replaced the tracker since; leaving it as it is"
    )
    marker.remove()


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
        self.outage: Outage | None = None  # from the moment when the tracker may be down
        self.stopping = 0.0  # seconds that taking it down took
        self.closed = False
        self.inhibitor: subprocess.Popen[bytes] | None = None
        self.events: Events | None = None
        self.changes: list[str] | None = None  # what somebody else did to it in the window

    @property
    def seconds(self) -> float:
        """For which it was open."""
        return self.outage.seconds if self.outage else 0.0

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
                started = bool(self.outage and self.outage.started)
                self.changes = self.events.until(captured_at, started)
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
            "stop" if self.quiesce == "stop" else "pause",
            opened=now,
            deadline=now + self.limit + OVERDUE_SECONDS,
            stop_timeout=self.host.stop_timeout,
            run=self.run,
        )
        self.inhibitor = inhibit_shutdown(self.limit + OVERDUE_SECONDS)
        fault_point("writing-the-marker")
        marker.store()  # if the run dies from here on, recovery needs it
        log(f"window opens: {self.quiesce} the tracker")
        # Set this before the call. If we are interrupted, Docker still completes the call.
        self.outage = Outage(marker)
        self.outage.began = time.monotonic()
        fault_point("taking-the-tracker-down", self.host)
        # The tracker cannot be started before its stop has ended. So a signal waits for it.
        with signals.held():
            take_down(marker)
            self.stopping = time.monotonic() - self.outage.began

    def remaining(self, otherwise: float) -> float:
        """The seconds that the capture may take."""
        if not self.outage:
            return otherwise
        left = self.limit - int(time.monotonic() - self.outage.began)
        if left > 0:
            return left
        raise Refused(f"the window's limit of {self.limit} s for stopping and capturing is over")

    def close(self) -> None:
        if not self.outage or self.closed:
            return
        with signals.held():
            try:
                self.outage.end()
            finally:
                self.closed = True
                if self.inhibitor:
                    end(self.inhibitor)

    # ------------------------------------------------------------ looking back

    @property
    def expected(self) -> str:
        """The tracker's status during the capture."""
        taken_down = {"stop": "exited", "pause": "paused"}
        return taken_down.get(self.quiesce) or self.quiesce.removeprefix("left-")

    @property
    def found(self) -> Tracker | None:
        """The tracker at the end of the capture."""
        return self.outage.found if self.outage else None

    def is_unchanged(self, found: Tracker | None = None) -> bool:
        """Whether the tracker's state at the end of the capture is the one that the run left."""
        found = found or self.found
        if not self.tracker or not found:
            return self.tracker is found
        return (found.status, found.started) == (self.expected, self.tracker.started)

    def require_unchanged(self) -> None:
        """If somebody starts the tracker during the capture, the copy is torn, and no
        integrity_check sees it.
        """
        if self.quiesce == "none":
            return
        tracker, expected = self.tracker, self.expected
        found = self.found or (look(tracker.id) if tracker else None)
        try:
            ids = tracker_ids(self.host)
        except Refused as error:
            raise Refused(f"{UNKNOWN} ({error})") from error
        good = ids == ([tracker.id] if tracker else [])
        if not good or not self.is_unchanged(found):
            was = f"{tracker.id} {expected} {tracker.started}" if tracker else expected
            raise Refused(
                f"the tracker was changed during the capture (was: {was}; is: "
                f"{' '.join(ids) or 'gone'} {found or ''}); the copy is discarded"
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
        if self.quiesce == "stop" and found and found.exit_code == "137":
            log(
                f"the tracker did not end within {self.host.stop_timeout} s and was killed; "
                "a hot journal is to be expected"
            )


def take_down(marker: Marker) -> None:
    word, advice = "stopped", ""
    try:
        if marker.action == "stop":
            command = ["stop", "-t", str(marker.stop_timeout), marker.tracker]
            docker(*command, seconds=marker.stop_timeout + 30)
        else:
            word, advice = "paused", f"; if it happens again, {STOP_INSTEAD}"
            docker("pause", marker.tracker)
    except Refused as error:
        raise Refused(f"the tracker could not be {word} ({error}){advice}") from error


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
