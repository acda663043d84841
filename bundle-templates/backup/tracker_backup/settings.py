"""KEY='value' files and the path list, read on the host and in containers. Nothing is executed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(os.environ.get("BACKUP_DATA", "/data"))  # the deploy directory, in containers
COMPOSE_FILE = "docker-compose.yml"  # in the path list


class Refused(Exception):
    """What is wrong, where, and how to fix it; ends the command or the job with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Settings(dict[str, str]):
    """The settings of one file. A key that is not there is a configuration error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __missing__(self, key: str) -> str:
        raise Refused(f"{self.path}: {key} is missing or empty; install the bundle again", 2)

    def require(self, rules: Mapping[str, str]) -> None:
        """Refuses a key that is missing or empty, or whose value is none of the words that its rule
        allows. An empty rule allows any value.
        """
        for key, allowed in rules.items():
            value = self.get(key) or self.__missing__(key)
            if allowed and value not in allowed.split():
                raise Refused(f"{self.path}: {key}='{value}'; allowed: {allowed}", 2)

    def seconds(self, key: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", self[key]):
            text = f"{key}='{self[key]}'; time limits are whole seconds"
            raise Refused(f"{self.path}: {text}", 2)
        return int(self[key])


@dataclass(frozen=True)
class Line:
    """A line of the path list. `kind` is path, dir or sqlite; `path` is below the deployment."""

    kind: str
    path: str
    optional: bool


def read_settings(path: Path) -> Settings:
    """The values in single quotes, with '\\'' for a quote inside."""
    settings = Settings(path)
    for number, line in read_lines(path):
        found = re.fullmatch(r"([A-Z_]+)='((?:[^']|'\\'')*)'", line)
        if not found:
            raise Refused(f"{path}, line {number}: expected KEY='value'", 2)
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise Refused(f"{path}, line {number}: the text is no UTF-8", 2) from error
        settings[found[1]] = found[2].replace("'\\''", "'")
    return settings


def read_path_list(file: Path, base: Path = DATA, compose: Sequence[str] = ()) -> list[Line]:
    """The lines of the path list, whose paths lie below `base`. The stack's compose files, as the
    host knows them, take the place of COMPOSE_FILE.
    """
    lines = []
    for _, text in read_lines(file):
        kind, colon, path = text.removeprefix("?").partition(":")
        if not colon or kind not in ("dir", "sqlite"):
            kind, path = "path", text.removeprefix("?")
        lines.append(Line(kind, relative(path, base, file), text.startswith("?")))
    if compose:
        lines = [line for line in lines if line.path != COMPOSE_FILE]
        lines += [Line("path", one, False) for one in compose]
    if not any(line.kind == "path" for line in lines):
        raise Refused(f"{file} names no path", 2)
    return lines


def relative(path: str, base: Path, file: Path) -> str:
    """A path that a file of ours names, relative to `base`, which it must be below."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    above = [*base.parts[1:]]
    if path[:1] != "/" or ".." in parts or parts[: len(above)] != above or parts == above:
        raise Refused(f"{file}: {path} is not below {base}", 2)
    return "/".join(parts[len(above) :])


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that say something."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Refused(
            f"cannot read {file} ({error.strerror}); install the bundle again", 2
        ) from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip() and not line.lstrip().startswith(b"#"):
            yield number, os.fsdecode(line.removesuffix(b"\r"))
