"""The loop of a role inside its container: one job a line comes in, one answer a line goes out."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..protocol import PROTOCOL, Answer, encode_answer
from ..settings import DATA as DATA  # the deployment, read-only
from ..settings import Refused

# The places inside the container. Tests and the sidecar have others.
WORK = Path(os.environ.get("BACKUP_WORK", "/work"))  # the role's own directory
PATHS = Path(os.environ.get("BACKUP_PATHS", "/etc/backup/backup-paths.txt"))

Job = Callable[[dict[str, Any], Answer], None]
StepFailed = (
    Refused  # ends a job; `code` is 1, 2 for a configuration error, or one of the courier's
)


def log(message: str) -> None:
    """A line on standard error. The host copies at most 64 KiB of it into the log."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Limits every file that this process or a program started meanwhile writes, in bytes.

    Writing more is an OSError here, and ends a program with SIGXFSZ.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def serve(jobs: Mapping[str, Job]) -> int:
    """Does the jobs that come on standard input, until it ends. A job gets its arguments and fills
    its answer; StepFailed and OSError become answers.
    """
    # What a program prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(json.dumps({"protocol": PROTOCOL}).encode() + b"\n")
    for line in sys.stdin.buffer:
        answer = Answer()
        try:
            job = json.loads(line)
            jobs[job["job"]](job, answer)
        except StepFailed as failure:
            answer.code, answer.reason = failure.code, one_line(str(failure))
        except OSError as failure:
            name = os.fsdecode(failure.filename) if failure.filename else ""
            reason = f"{failure.strerror or failure}{': ' if name else ''}{name}"
            answer.code, answer.reason = 1, one_line(reason)
        answers.write(encode_answer(answer))
    return 0


def one_line(text: str) -> str:
    return " ".join(text.encode(errors="replace").decode().split())


@contextmanager
def timed(answer: Answer, name: str) -> Iterator[None]:
    """Adds to the answer how long the block took."""
    started = time.monotonic()
    yield
    answer.milliseconds[name] = round((time.monotonic() - started) * 1000)
