"""Work that must not end half-way when the terminal or the SSH connection is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import IO

from .log import LOG
from .signals import Ended, signals

LOOK_SECONDS = 0.1


def detached(work: Callable[[], int]) -> int:
    """Does the work in a process and a session of its own, shows what that says, and returns its
    exit code. If this process ends first, the work goes on. SIGTERM to the other process ends it.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        sys.stdout.flush()
        sys.stderr.flush()
        worker = os.fork()
        if worker == 0:
            code = 1
            try:
                code = alone(work, said, complained)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        try:
            return follow(worker, said, complained)
        except KeyboardInterrupt:
            print(f"it goes on as process {worker}, and says the rest in {LOG}", file=sys.stderr)
            return 130


def alone(work: Callable[[], int], said: IO[bytes], complained: IO[bytes]) -> int:
    os.setsid()
    with contextlib.suppress(OSError):
        LOG.touch(0o640)  # an empty machine has none yet
    signals.catch()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for descriptor, file in ((1, said), (2, complained)):
        os.dup2(file.fileno(), descriptor)
    sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", errors="backslashreplace")
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace")
    try:
        return work()
    except Ended as ended:
        return ended.code


def follow(worker: int, said: IO[bytes], complained: IO[bytes]) -> int:
    shown = {said: 0, complained: 0}
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        for file, stream in ((said, sys.stdout), (complained, sys.stderr)):
            while block := os.pread(file.fileno(), 1 << 16, shown[file]):
                shown[file] += len(block)
                stream.write(block.decode(errors="replace"))
                stream.flush()
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(LOOK_SECONDS)
