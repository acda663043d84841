"""The services of the sidecar, as its core calls them. Each life of a service is for one role."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .files import remove_tree
from .host import Refused
from .protocol import JOB, SOCKET

# Docker waits longer before each restart of a service that ended early, at most a minute.
SERVICE_SECONDS = float(os.environ.get("TRACKER_BACKUP_SERVICE_SECONDS", "90"))
LOOK_SECONDS = 0.05  # between two looks for a socket
ANSWER_SECONDS = 5  # for a service to take a call

T = TypeVar("T")


class Service:
    """One life of a service. It ends with the call, and Docker starts the service again.

    The service's own process is root. It makes its socket in `directory`, and removes it when it is
    called. No role can write there. So a socket means that the processes of all earlier roles are
    gone. While the life lasts, the role's directory `work` is in there, too. `streams` are pipes to
    the role: for jobs, answers and messages.
    """

    def __init__(self, directory: Path, work: Path, uid: int) -> None:
        """Waits until the service is there. Raises Refused if it does not come."""
        self._socket, self._place, self._work = directory / SOCKET, directory / JOB, work
        self._moved = False
        self._call = self._wait_for(self._dial)
        pipes = [os.pipe() for _ in range(3)]
        self.streams = (pipes[0][1], pipes[1][0], pipes[2][0])
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        try:
            remove_tree(self._place)  # of a dead run
            work.rename(self._place)
            self._moved = True
            socket.send_fds(self._call, [str(uid).encode()], theirs)
        except BaseException:
            self.hang_up()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _dial(self) -> socket.socket | None:
        """A call that the service has taken. What a link names is not called."""
        handle = os.open(self._socket, os.O_PATH | os.O_NOFOLLOW)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, handle)
            facts = os.fstat(handle)
            if not stat.S_ISSOCK(facts.st_mode) or facts.st_uid != os.geteuid():
                raise Refused(f"{self._socket} is no socket of root's; remove it")
            call = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            call.settimeout(ANSWER_SECONDS)
            call.connect(f"/proc/self/fd/{handle}")
            return call.dup() if call.recv(1) else None

    def _wait_for(self, attempt: Callable[[], T | None]) -> T:
        """What `attempt` returns in the end. A life that is ending gives an OSError or nothing."""
        deadline = time.monotonic() + SERVICE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if found := attempt():
                    return found
            if time.monotonic() >= deadline:
                raise Refused(
                    f"the sidecar's service for the {self._place.parent.name} does not answer; "
                    "`tracker-backup sidecar` on the host brings it back"
                )
            time.sleep(LOOK_SECONDS)

    def hang_up(self, _patience: float = 0) -> int:
        """With the call the life ends, and with it every process of the role."""
        self._call.close()
        for descriptor in self.streams:
            os.close(descriptor)
        return -signal.SIGKILL

    def require_end(self) -> None:
        """Waits for the next life, because then nobody can change the role's files any more. Moves
        its directory back. Raises Refused if there is no next life.
        """
        if self._moved:
            self._wait_for(lambda: os.path.lexists(self._socket))
            self._place.rename(self._work)
            self._moved = False
