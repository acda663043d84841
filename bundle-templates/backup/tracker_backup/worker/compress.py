"""Compresses into a file with pigz or zstd, and reads the file back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..writeback import write_back
from .service import StepFailed

THREADS = min(8, len(os.sched_getaffinity(0)))
PROGRAM = {"gzip": f"pigz --processes {THREADS}", "zstd": f"zstd -q -T{THREADS}"}


@contextmanager
def compressor(target: Path, compression: str) -> Iterator[IO[bytes]]:
    """What is written to the stream becomes the file. Raises StepFailed if the program fails."""
    with open(target, "xb", opener=private) as output:
        program = subprocess.Popen(
            ["nice", *PROGRAM[compression].split(), "--stdout"],
            stdin=subprocess.PIPE,
            stdout=output,
            bufsize=1 << 16,
        )
        assert program.stdin is not None
        try:
            with program.stdin as stream:
                yield stream
        except BrokenPipeError as error:  # it ended early, maybe with the exit code 0
            raise failed(target) from error
        except BaseException:
            program.kill()
            raise
        finally:
            code = program.wait()
        if code != 0:
            raise failed(target)


def compress_file(source: Path, target: Path, compression: str) -> None:
    """Compresses a whole file and reads the result back. Raises StepFailed if a program fails."""
    with open(source, "rb") as file, compressor(target, compression) as stream:
        shutil.copyfileobj(file, stream, 1 << 20)
    read_back(target, compression)


def read_back(target: Path, compression: str) -> None:
    """Writes the file to the disk. Raises StepFailed unless all of it can be decompressed."""
    words = [*PROGRAM[compression].split(), "--test"]
    with open(target, "rb") as file:
        write_back(file.fileno())
        if subprocess.run(words, stdin=file, stdout=2, check=False).returncode != 0:
            raise failed(target)


def private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def failed(target: Path) -> StepFailed:
    return StepFailed(f"compressing into {target.name} failed; the message is in the log")
