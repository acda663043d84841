"""The roles: each is a container of its own, and one conversation with it.

What a role says is data of somebody who may be hostile. It is read with a time limit and in bounded
memory, and decoded by `protocol`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import protocol
from .docker import DOCKER_SECONDS, RUN_LABEL, remove_container
from .host import Refused
from .protocol import ANSWER_BYTES, LARGEST, REASON_CHARACTERS, Answer, BadAnswer, printable
from .publish import DIRECTORY, names, opened, remove_in_steps, take
from .services import Service
from .space import require_reserve

SERVICES = {"reader": "backup", "examiner": "backup-examiner", "client": "backup-client"}
UIDS = {"reader": 0, "examiner": 64001, "client": 64101}
MEMBERS = 99  # examiners of other services' databases: the next uid is the client's
RUN_CONTAINER = "--profile backup run --detach --no-deps -T --name {0} --label {1} --user {2}:{2}"
BLOCK_BYTES = MESSAGE_BYTES = 1 << 16
MESSAGE_LINES = 200  # that the log gets of one job
WATCH_SECONDS = 0.2
FLOOD_SECONDS = 0.01  # between two blocks of messages that are too long
EXIT_SECONDS = 2  # for a client whose role has closed its output
KILLED = (137, -signal.SIGKILL, -signal.SIGTERM)
FAILED = "the {0} step failed with exit code {1}; its message is in the log"
OVER = "the {0} step was not over after its time limit of {2} s, or its container was killed"

T = TypeVar("T")


def blocks(
    streams: Iterable[int], seconds: float, watch: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, bytes]]:
    """What comes from these descriptors until all have ended, as (descriptor, block). The last
    block of each is empty. Calls `watch` every WATCH_SECONDS. Raises TimeoutError after `seconds`.
    """
    deadline, next_watch = time.monotonic() + seconds, 0.0
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            if (now := time.monotonic()) >= deadline:
                raise TimeoutError
            if now >= next_watch:
                watch()
                next_watch = now + WATCH_SECONDS
            for ready, _ in selector.select(min(WATCH_SECONDS, deadline - now)):
                if not (block := os.read(ready.fd, BLOCK_BYTES)):
                    selector.unregister(ready.fd)
                yield ready.fd, block


@dataclass(frozen=True)
class Line:
    """Where a conversation goes: descriptors for jobs, answers and, if there are any, messages.

    `hang_up` closes them. It returns the exit code of a client that ends by itself within so many
    seconds, or else a negative number.
    """

    jobs: int
    answers: int
    messages: int | None
    hang_up: Callable[[float], int]


def line_to(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Line:
    """The line to a program that was started for it, in a session of its own."""
    client = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment and {**os.environ, **environment},
        start_new_session=True,
    )
    assert client.stdin and client.stdout and client.stderr

    def hang_up(patience: float) -> int:
        with client:  # closes the pipes
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(patience)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(client.pid, signal.SIGKILL)
        return client.returncode

    return Line(client.stdin.fileno(), client.stdout.fileno(), client.stderr.fileno(), hang_up)


class Conversation:
    """Jobs for one role, and its answers. `log` gets its messages, and `watch` is called while it
    works.
    """

    def __init__(
        self,
        name: str,
        line: Line,
        log: Callable[[str], None],
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.log, self.watch = name, log, watch
        self._line: Line | None = line
        self._heard, self._messages, self._greeted = b"", b"", False

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, job: str, seconds: float, /, **arguments: Any) -> Answer:
        """Has one job done, within `seconds`. Raises Refused if it fails, with its reason."""
        answer = self.answer(job, seconds, **arguments)
        if answer.code:
            reason = answer.reason or FAILED.format(job, answer.code)
            raise Refused(reason, 2 if answer.code == 2 else 1)
        return answer

    def answer(self, job: str, seconds: float, /, **arguments: Any) -> Answer:
        """The answer to one job, whatever its code. Raises Refused if there is none.

        After an answer that is missing or cannot be used, the role does no other job. No call of
        Docker delays the caller then, who may have to bring the tracker back.
        """
        if not self._line:
            raise Refused(f"the {self.name} does not work any more; it cannot do the {job} step")
        self.greet(job, seconds)
        encoded = protocol.encode_job(job, arguments)
        return self._exchange(job, encoded, seconds, protocol.decode_answer)

    def greet(self, step: str = "start", seconds: float = DOCKER_SECONDS) -> None:
        """Waits until the role is there. Docker lets nobody into a container that is paused."""
        if not self._greeted:
            self._exchange(step, b"", seconds, protocol.check_hello)
            self._greeted = True

    def end(self, patience: float = 0) -> int:
        """Returns the exit code of a client that ends in `patience` seconds."""
        line, self._line = self._line, None
        if not line:
            return 0
        if line.messages is not None:
            os.set_blocking(line.messages, False)
            with contextlib.suppress(BlockingIOError):
                self._hear_message(os.read(line.messages, MESSAGE_BYTES))
            self._log_messages()
        return line.hang_up(patience)

    def _exchange(self, step: str, line: bytes, seconds: float, decode: Callable[[bytes], T]) -> T:
        """Writes one line, and decodes the one that comes back."""
        try:
            self._write(line)
            return decode(self._read_line(seconds))
        except BaseException as error:
            code = self.end(EXIT_SECONDS if isinstance(error, EOFError) else 0)
            if isinstance(error, BadAnswer):
                raise Refused(f"the answer to the {step} step cannot be used: {error}") from error
            if isinstance(error, (TimeoutError, EOFError)):
                reason = (OVER if code in KILLED else FAILED).format(step, code, round(seconds))
                raise Refused(reason) from error
            raise
        finally:
            self._log_messages()

    def _write(self, line: bytes) -> None:
        assert self._line
        if self._heard:
            raise BadAnswer("nobody asked for it")
        os.set_blocking(self._line.jobs, False)
        # If the role has closed its input, there is no answer either.
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            if os.write(self._line.jobs, line) < len(line):
                raise BadAnswer("the role does not read its jobs")

    def _read_line(self, seconds: float) -> bytes:
        assert self._line
        streams = [one for one in (self._line.answers, self._line.messages) if one is not None]
        for stream, block in () if b"\n" in self._heard else blocks(streams, seconds, self.watch):
            if stream == self._line.messages:
                self._hear_message(block)
                continue
            self._heard += block
            if not block:
                raise EOFError
            if b"\n" in block:
                break
            if len(self._heard) > ANSWER_BYTES:
                raise BadAnswer(f"more than {ANSWER_BYTES} bytes")
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _hear_message(self, block: bytes) -> None:
        """Keeps the last MESSAGE_BYTES of standard error, and slows down a role that floods it."""
        self._messages += block
        if len(self._messages) > MESSAGE_BYTES:
            self._messages = self._messages[-MESSAGE_BYTES:]
            time.sleep(FLOOD_SECONDS)

    def _log_messages(self) -> None:
        text = self._messages.decode(errors="replace").removesuffix("\n")
        self._messages = b""
        for line in text.split("\n")[-MESSAGE_LINES:] if text else ():
            self.log(printable(f"{self.name}: {line}", REASON_CHARACTERS))


@dataclass(frozen=True)
class RoleSettings:
    """What all roles of a run have in common."""

    run_id: str
    staging: Path
    log: Callable[[str], None]
    # (arguments, environment) of `docker compose` with the project's files; None in the sidecar
    compose: Callable[[list[str], dict[str, str]], object] | None = None
    watched: tuple[Path, ...] = ()  # their file systems keep a reserve while a role works
    mounts: tuple[str, ...] = ()  # more options of the reader's container
    deadline: float = float("inf")  # of the whole run, as time.monotonic has it


class Role:
    """One role of a run, from its start to its end. The block gets it when it is there to be asked.

    `directory` is the descriptor of its directory in staging, which is removed with the role.
    """

    def __init__(self, settings: RoleSettings, kind: str, index: int = 0) -> None:
        """`kind` is reader, examiner or client. Examiners of different services have an index."""
        self.settings, self.kind = settings, kind
        self.name = f"{kind}-{index}" if kind == "examiner" else kind
        self.uid = UIDS[kind] + index
        self.path = settings.staging / settings.run_id / self.name
        self.container = ""
        self.service: Service | None = None
        self.conversation: Conversation | None = None

    def __enter__(self) -> Role:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700)
        self.directory = os.open(self.path, DIRECTORY)
        try:
            os.fchown(self.directory, self.uid, -1)
            watched = self.settings.watched
            self.conversation = Conversation(
                self.name, self._start(), self.settings.log, lambda: require_reserve(watched)
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
            for name in names(self.directory):
                remove_in_steps(self.directory, name, lambda _: None)  # or with the run's directory
        except Refused as error:
            self.settings.log(f"WARNING: {error}")
        finally:
            os.close(self.directory)

    def _start(self) -> Line:
        command, run_id = ["backup.sh", self.kind], self.settings.run_id
        if not self.settings.compose:
            if self.kind == "reader":  # a process of the sidecar's core
                return line_to(command, {"BACKUP_WORK": str(self.path)})
            self.service = Service(self.settings.staging / self.kind, self.path, self.uid)
            return Line(*self.service.streams, self.service.hang_up)
        self.container = f"tracker-backup-{run_id}-{self.name}"
        words = RUN_CONTAINER.format(self.container, f"{RUN_LABEL}={run_id}", self.uid).split()
        mounts = self.settings.mounts if self.kind == "reader" else ()
        arguments = [*words, *mounts, SERVICES[self.kind], "idle"]
        self.settings.compose(arguments, {"TRACKER_BACKUP_WORK": f"{run_id}/{self.name}"})
        return line_to(["docker", "exec", "-i", self.container, *command])

    def ask(self, job: str, seconds: float, /, **arguments: Any) -> Answer:
        """Has one job done, in `seconds` and the time of the run. Raises Refused if it fails."""
        assert self.conversation
        left = self.settings.deadline - time.monotonic()
        if left <= 0:
            raise Refused(f"the run's time limit is over; the {job} step was not begun")
        return self.conversation.ask(job, min(seconds, left), **arguments)

    def greet(self) -> None:
        assert self.conversation
        self.conversation.greet()

    def end(self) -> None:
        """Ends every process of the role. Then nobody can change its files any more.

        Raises Refused if Docker does not remove the container, or does not restart the service.
        """
        try:
            if self.container:
                remove_container(self.container)
                self.container = ""
        finally:
            if self.conversation:
                self.conversation.end()
        if self.service:
            self.service.require_end()


def hand_over(
    source: Role, files: Mapping[str, str], target: Role, into: str = "", limit: int = LARGEST
) -> None:
    """Moves files to another role, from an old name to a new one each. Missing ones are skipped.

    `into` is a directory below the target's, made if it is missing. Raises Refused for anything
    but a regular file of the source's own, of at most `limit` bytes.
    """
    if into:
        with contextlib.suppress(FileExistsError):
            os.mkdir(into, 0o700, dir_fd=target.directory)
    with opened(into or ".", target.directory) as directory:
        for old, new in files.items():
            try:
                os.rename(old, new, src_dir_fd=source.directory, dst_dir_fd=directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Refused(f"{old} cannot be handed over: {error.strerror}") from error
            descriptor = take(directory, new, source.uid, limit)
            try:
                os.fchown(descriptor, target.uid, -1)
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
