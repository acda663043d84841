"""The product under test, as an operator uses it: the generator and plain `ansible-playbook`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOK_SECONDS = 900


@dataclass(frozen=True)
class Outcome:
    """How a command ended, with everything it printed."""

    code: int
    output: str

    @property
    def changed(self) -> int:
        """How many tasks a playbook reported as changed, over all hosts."""
        recap = self.output.partition("PLAY RECAP")[2]
        return sum(int(count) for count in re.findall(r"\bchanged=(\d+)", recap))

    def succeeded(self) -> Outcome:
        """Itself, when the exit code is 0; otherwise the test fails and shows the output."""
        assert self.code == 0, f"ended with {self.code}:\n{self.output}"
        return self


@dataclass(frozen=True)
class Task:
    """A task of a playbook: when it began, counted from the playbook's start, and its seconds."""

    name: str
    began: float
    seconds: float


@dataclass(frozen=True)
class Timed:
    """How a playbook ended, and the seconds of it and of its tasks."""

    outcome: Outcome
    seconds: float
    tasks: tuple[Task, ...]

    def succeeded(self) -> Timed:
        """Itself, when the playbook succeeded; otherwise raises and shows the output."""
        self.outcome.succeeded()
        return self


@dataclass(frozen=True)
class Bundle:
    """A directory made by the generator for one host."""

    directory: Path

    @classmethod
    def generate(
        cls,
        environment: dict[str, Any],
        directory: Path,
        address: str,
        program: Path | None = None,
    ) -> Bundle:
        """Writes the environment JSON beside `directory` and runs the generator on it.

        Called again on the same directory, it updates the bundle. `program` is another generator.
        """
        source = directory.with_suffix(".json")
        source.write_text(json.dumps(environment, ensure_ascii=False, indent=2), encoding="utf-8")
        _run(
            # A program of an older version keeps no record of secrets.
            [str(program or generator()), "--host", address]
            + ([] if program else ["--replace-secrets"])
            + [str(source), str(directory)],
            seconds=60,
        ).succeeded()
        return cls(directory)

    def playbook(self, name: str, *options: str) -> Outcome:
        """Applies one of the bundle's playbooks, without an inventory, from another directory."""
        command = self._command(name, options)
        return _run(
            command,
            seconds=PLAYBOOK_SECONDS,
            environment=self._environment(),
            directory=self.directory.parent,
        )

    @contextmanager
    def begun(self, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """The same in the background, in a process group of its own; waits for its end."""
        with subprocess.Popen(
            self._command(name, options),
            env=self._environment(),
            cwd=self.directory.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            yield process
            process.wait(PLAYBOOK_SECONDS)

    def timed_playbook(self, name: str, *options: str) -> Timed:
        """The same, with the seconds of every task."""
        began, starts, lines = time.monotonic(), [], []
        with subprocess.Popen(
            ["timeout", str(PLAYBOOK_SECONDS), *self._command(name, options)],
            env=self._environment(),
            cwd=self.directory.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                if found := re.match(r"TASK \[(.*)\] \*|(PLAY RECAP)", line):
                    starts.append((found[1] or found[2], time.monotonic() - began))
        seconds = time.monotonic() - began
        ends = [start for _, start in starts[1:]]
        tasks = tuple(
            Task(task, start, end - start) for (task, start), end in zip(starts, ends, strict=False)
        )
        return Timed(Outcome(process.returncode, "".join(lines)), seconds, tasks)

    def _command(self, name: str, options: tuple[str, ...]) -> list[str]:
        return [_ansible_playbook(), str(self.directory / f"{name}.yml"), *options]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "ANSIBLE_HOME": str(self.directory.parent / "ansible"),
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_NOCOLOR": "1",
            "PYTHONUNBUFFERED": "1",
            # Every host is new at an address that another one had.
            "ANSIBLE_SSH_COMMON_ARGS": "-o UserKnownHostsFile=/dev/null",
        }


def ssh_key(directory: Path) -> Path:
    """A new private key; its public half stands beside it."""
    key = directory / "torrust"
    _run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "end-to-end tests", "-f", str(key)],
        seconds=60,
    ).succeeded()
    return key


def generator() -> str:
    return _found(
        "GEN_BACKUP_BUNDLE",
        "gen-backup-bundle",
        REPOSITORY / "target/release",
        REPOSITORY / "target/debug",
    )


def _ansible_playbook() -> str:
    return _found("ANSIBLE_PLAYBOOK", "ansible-playbook", REPOSITORY / "target/venv/bin")


def _found(variable: str, name: str, *folders: Path) -> str:
    """A program: from the environment variable, else the first folder that has it, else PATH."""
    candidates = [
        os.environ.get(variable),
        *(shutil.which(name, path=str(folder)) for folder in folders),
        shutil.which(name),
    ]
    for candidate in candidates:
        if candidate:
            return candidate
    raise FileNotFoundError(
        f"no {name} in {', '.join(map(str, folders))} or on PATH:"
        f" run scripts/test, or name it in {variable}"
    )


def _run(
    command: list[str],
    *,
    seconds: float,
    environment: dict[str, str] | None = None,
    directory: Path | None = None,
) -> Outcome:
    done = subprocess.run(
        command,
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(errors="replace"))
