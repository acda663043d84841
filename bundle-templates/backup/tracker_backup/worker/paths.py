"""The settings and the path list, as the reader sees them, and how it opens what they name."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..protocol import printable
from . import service
from .service import StepFailed

# What must be there, with the values that are allowed; none for any.
REQUIRED = {
    "BACKUP_MODE": "single",
    "BACKUP_COMPRESSION": "gzip zstd",
    "BACKUP_SCOPE": "full exclude-statistics",
    "BACKUP_ALLOW_WRITER_STALL": "true false",
    "BACKUP_PATHS_FILE": "",
    "DB_TYPE": "sqlite mysql",
}
OF_MYSQL = dict.fromkeys(("DB_HOST", "DB_PORT", "DB_USER", "DB_NAME", "DB_PASSWORD_FILE"), "")
OF_DRIVER = {
    "sqlite": {"DB_PATH": ""},
    "mysql": {**OF_MYSQL, "DB_TLS": "unverified verified"},
}
PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Unusable(Exception):
    """Why a path cannot be backed up, to be read after the path. `name` is the file's, if known."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True)
class Line:
    """A line of the path list. `kind` is path, dir or sqlite; `path` is below the deployment."""

    kind: str
    path: str
    optional: bool


def read_settings() -> dict[str, str]:
    """backup.conf: KEY='value' lines, with '\\'' for a quote inside. Nothing is executed."""
    file, settings = service.CONFIG, {}
    for number, line in read_lines(file):
        found = re.fullmatch(r"([A-Z_]+)='(.*)'", line)
        if not found:
            raise StepFailed(f"{file}, line {number}: expected KEY='value'", 2)
        if "'" in found[2].replace("'\\''", ""):
            raise StepFailed(f"{file}, line {number}: a quote inside a value is written '\\''", 2)
        settings[found[1]] = found[2].replace("'\\''", "'")
    for required in (REQUIRED, OF_DRIVER.get(settings.get("DB_TYPE", ""), {})):
        for key, allowed in required.items():
            value = settings.get(key, "")
            if not value:
                raise StepFailed(f"{file}: {key} is missing or empty", 2)
            if allowed and value not in allowed.split():
                raise StepFailed(f"{file}: {key}='{value}'; allowed: {allowed}", 2)
    return settings


def read_path_list(file: Path) -> list[Line]:
    lines = []
    for _, text in read_lines(file):
        kind, colon, path = text.removeprefix("?").partition(":")
        if not colon or kind not in ("dir", "sqlite"):
            kind, path = "path", text.removeprefix("?")
        lines.append(Line(kind, relative(path, file), text.startswith("?")))
    if not any(line.kind == "path" for line in lines):
        raise StepFailed(f"{file} names no path", 2)
    return lines


def relative(path: str, file: Path) -> str:
    """A path of a file of ours, relative to the deployment, which it must be below."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    base = service.DATA.parts[1:]
    if (
        path[:1] != "/"
        or ".." in parts
        or len(parts) <= len(base)
        or (*parts[: len(base)],) != base
    ):
        raise StepFailed(f"{file}: {path} is not below {service.DATA}", 2)
    return "/".join(parts[len(base) :])


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that say something."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StepFailed(f"cannot read {file}; install the bundle again", 2) from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip() and not line.lstrip().startswith(b"#"):
            yield number, os.fsdecode(line.removesuffix(b"\r"))


@contextmanager
def held(descriptor: int) -> Iterator[int]:
    """Closes the descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_path(path: str) -> int:
    """An O_PATH descriptor of a path below the deployment.

    Opens one component at a time and follows no link. FileNotFoundError if there is nothing.
    """
    current = os.open(service.DATA, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.split("/"):
        try:
            child = os.open(part, PATH, dir_fd=current)
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        finally:
            os.close(current)
        current = child
        if stat.S_ISLNK(os.fstat(current).st_mode):
            leads = shown(os.readlink("", dir_fd=current))
            os.close(current)
            raise Unusable(f"leads through a symlink to {leads}; refused")
    return current


def open_directory(path: str) -> int:
    """A descriptor of the directory, for the names in it. An empty path is the deployment."""
    with held(open_path(path or ".")) as descriptor:
        return reopen(descriptor, DIRECTORY)


def open_regular(directory: int, name: str) -> int:
    """A descriptor to read the file `name` of a directory. Raises Unusable for anything else.

    BlockingIOError if somebody holds a lease on the file.
    """
    with held(os.open(name, PATH, dir_fd=directory)) as descriptor:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            link = " but a symlink" if stat.S_ISLNK(mode) else ""
            raise Unusable(f"is not a regular file{link}", name)
        return reopen(descriptor, READ)


def shown(path: str) -> str:
    """A path of any bytes as printable text, cut in its middle."""
    text = printable(os.fsencode(path).decode(errors="backslashreplace"), 1 << 20)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-145:]}"


def reopen(descriptor: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", flags)
