"""Programs in containers, called with bounded output; and one job of a role.

A container can be hostile. So neither its output nor its messages are read without a limit, and
while it works, the file systems that it fills keep a reserve.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .docker import DOCKER_SECONDS, docker, make_image, words
from .host import ROOT, Host, Refused
from .log import say
from .protocol import (
    ANSWER_BYTES,
    Answer,
    BadAnswer,
    check_hello,
    decode_answer,
    encode_job,
    printable,
)
from .roles import blocks
from .space import require_reserve

# How a container of ours is started: it can do nothing but what the caller adds.
ROLE = "unpacker"  # any role greets
CONFINED = words(
    "--init --read-only --cap-drop ALL --security-opt no-new-privileges --log-driver none "
    "--pids-limit 64 --oom-score-adj 500 --userns host --ulimit core=0"
)
# A database server beside production's, with a hostile dump in it.
THROW_AWAY = words(
    "--network none --log-driver none --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE "
    "--cap-add SETGID --cap-add SETUID --security-opt no-new-privileges --pids-limit 256 "
    "--memory 1g --oom-score-adj 500 --userns host --ulimit core=0"
)
SERVER_MIB = 600  # that must be available for one
OUTPUT_BYTES = 1 << 20
SAID_BYTES = 4096
watched: list[Path] = []


@contextlib.contextmanager
def watching(*places: Path) -> Iterator[None]:
    """Meanwhile `execute` fails when the file system of one of the places is nearly full."""
    watched.extend(places)
    try:
        yield
    finally:
        del watched[len(watched) - len(places) :]


def docker_root() -> Path:
    return Path(docker("info", "--format", "{{.DockerRootDir}}").strip())


def require_memory() -> None:
    """Refuses to start a throw-away server where the kernel would have to kill something for it."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", memory_facts(), re.MULTILINE)
    if found and (available := int(found[1]) // 1024) < SERVER_MIB:
        raise Refused(
            f"not verified: no memory: {available} MiB are available, and a throw-away server "
            f"needs {SERVER_MIB} MiB"
        )


def memory_facts() -> str:
    with contextlib.suppress(OSError):
        return (ROOT / "proc/meminfo").read_text(encoding="ascii")
    return ""


def ready_image(host: Host) -> None:
    """Makes the image if it is missing. One that speaks another protocol is built again, or else
    refused.
    """
    make_image(host, host.configuration, rebuild=False)
    if problem := protocol_problem(host):
        if host.image_source == "pull":
            raise Refused(f"{host.image}: {problem}")
        say(f"building the image again: {problem}")
        make_image(host, host.configuration, rebuild=True)
        if problem := protocol_problem(host):
            raise Refused(f"{host.image}: {problem}")


def protocol_problem(host: Host) -> str:
    try:
        said = docker(*words("run --rm --pull never --network none"), *CONFINED, host.image, ROLE)
        check_hello(said.encode().partition(b"\n")[0])
    except (Refused, BadAnswer) as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Done:
    """How a program in a container ended, what it printed, and the end of its messages."""

    code: int
    output: bytes
    said: str


def execute(
    container: str,
    *words: str,
    given: IO[bytes] | bytes = b"",
    into: IO[bytes] | None = None,
    limit: int = OUTPUT_BYTES,
    seconds: float = DOCKER_SECONDS,
) -> Done:
    """Runs a program in a container, with `given` on its standard input. The output goes `into` a
    file if there is one. Refused if it prints more than `limit` bytes or takes too long.
    """
    deadline, output, said = time.monotonic() + seconds, bytearray(), b""
    with tempfile.TemporaryFile() as spooled:
        if isinstance(given, bytes):
            spooled.write(given)
            spooled.seek(0)
        process = subprocess.Popen(
            ["docker", "exec", "--interactive", container, *words],
            stdin=spooled if isinstance(given, bytes) else given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    assert process.stdout and process.stderr
    streams = (process.stdout.fileno(), process.stderr.fileno())
    with process:
        try:
            for stream, block in blocks(streams, seconds, lambda: require_reserve(watched)):
                if stream == streams[1]:
                    said = (said + block)[-SAID_BYTES:]
                    continue
                limit -= len(block)
                if limit < 0:
                    raise Refused(f"{words[0]} in {container} printed too much")
                if into:
                    into.write(block)
                else:
                    output += block
            process.wait(max(1.0, deadline - time.monotonic()))
        except BaseException as error:
            process.kill()
            if isinstance(error, (TimeoutError, subprocess.TimeoutExpired)):
                raise Refused(
                    f"{words[0]} in {container} was not over after {seconds} s"
                ) from error
            raise
    text = "\n".join(map(printable, said.decode(errors="replace").strip().splitlines()))
    return Done(process.returncode, bytes(output), text)


def ask(container: str, role: str, job: str, seconds: float, **arguments: Any) -> Answer:
    """The answer to one job, whatever its code. Refused if there is none."""
    done = execute(
        container,
        "backup.sh",
        role,
        given=encode_job(job, arguments),
        limit=2 * ANSWER_BYTES,
        seconds=seconds,
    )
    hello, _, line = done.output.partition(b"\n")
    try:
        check_hello(hello)
        return decode_answer(line)
    except BadAnswer as error:
        reason = done.said[-400:] or f"{error} (exit code {done.code})"
        raise Refused(f"the {role} gave no answer to the job {job}: {reason}") from error
