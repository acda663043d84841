"""The own process of a service of the sidecar: it takes one conversation from the core, and ends.

It is root with the capabilities SETUID and SETGID alone. It reads nothing that a role wrote. The
role works as a user of its own, who can neither signal this process nor write to its directory.
The container ends with this process, and the kernel ends every process that the role left.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from ..protocol import JOB, SOCKET
from .service import WORK

UIDS = range(64001, 64200)  # of our roles


def supervise(role: str) -> int:
    """Lets the role talk to the core until the core hangs up."""
    with answered_call() as call:
        call.sendall(b"\n")
        message, streams, _, _ = socket.recv_fds(call, 16, 3)
        if len(streams) != 3 or not message.isdigit() or int(message) not in UIDS:
            return 1
        work = str(WORK / JOB)  # the core moves the role's directory there
        subprocess.Popen(
            ["backup.sh", role],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=os.environ | {"BACKUP_WORK": work, "TMPDIR": work},
            user=int(message),
            group=int(message),
            extra_groups=[],
        )
        for stream in streams:
            os.close(stream)
        call.recv(1)
    os._exit(0)  # without waiting for the role


def answered_call() -> socket.socket:
    """The first connection to a new socket. The socket is removed before anything else is done: its
    being there means that no role has worked in this container yet.
    """
    os.chdir(WORK)  # the path of a socket has at most 107 bytes
    path = Path(SOCKET)
    path.unlink(missing_ok=True)  # of a life that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(SOCKET)
        listening.listen(1)
        call, _ = listening.accept()
        path.unlink()
    return call
