"""The secrets that backup.conf names: given on standard input, kept on the host."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import PRIVATE, make_directory, put, remove
from .host import BUNDLE, Host, Refused
from .settings import read_settings

SECRET_FILE = re.compile(r"/run/secrets/([a-z_]+)")
SECRET_NAME = re.compile(r"[a-z_]+")
FILES = ("restic_environment", "restic_known_hosts", "restic_ssh_key")  # all others are one line


def put_secrets(host: Host, needed: list[str], given: Mapping[str, str]) -> None:
    """The secrets that backup.conf names, 0600: as given, or as the host already has them; others
    are removed.
    """
    directory = host.deploy_dir / "backup/secrets"
    make_directory(directory, 0o700)
    for name in needed:
        if name in given:
            put(directory / name, given[name].encode(), PRIVATE)
    for stray in directory.iterdir() if directory.is_dir() else ():
        if stray.name not in needed:
            remove(stray)


def read_secrets() -> dict[str, str]:
    """The secrets that came as a JSON object on standard input, as the playbooks send them; none
    from a terminal.

    If somebody copied a bundle by hand, with its `secrets/`, those count too.
    """
    files = (path for path in (BUNDLE / "secrets").glob("*") if SECRET_NAME.fullmatch(path.name))
    given: dict[str, Any] = {path.name: path.read_bytes() for path in files if path.is_file()}
    try:
        text = b"" if sys.stdin.isatty() else sys.stdin.buffer.read().strip()
        given |= dict(json.loads(text or b"{}"))
    except (ValueError, TypeError, RecursionError):
        raise Refused("the secrets on standard input are not a JSON object", 2) from None
    return {name: secret_text(name, value) for name, value in given.items()}


def secret_text(name: str, value: object) -> str:
    """The text of a secret. What is one line loses one line end, which editors, `echo` and YAML's
    blocks add.
    """
    try:
        text = (value if isinstance(value, bytes) else str(value).encode()).decode()
        if not isinstance(value, (str, bytes)) or "\0" in text:
            raise ValueError
    except ValueError:
        raise Refused(
            f"the secret {name} is not UTF-8 text: correct it, then try again", 2
        ) from None
    return text if name in FILES else without_line_end(text)


def read_one_line(path: Path) -> str:
    """A secret of this host, which somebody may have edited by hand."""
    with path.open(encoding="utf-8", newline="") as file:
        return without_line_end(file.read())


def without_line_end(text: str) -> str:
    """Without one line end, if there is one."""
    return text[: -len(end[0])] if (end := re.search(r"\r?\n\Z", text)) else text


def named_secrets(conf: Path) -> list[str]:
    """Names of the secrets that this backup.conf reads."""
    matches = (SECRET_FILE.fullmatch(value) for value in read_settings(conf).values())
    return sorted({match[1] for match in matches if match})


def require_secrets(host: Host, needed: list[str], given: Mapping[str, str]) -> None:
    own = host.deploy_dir / "backup/secrets"
    if missing := [one for one in needed if one not in given and not (own / one).is_file()]:
        raise Refused(
            f"no value for the secret {', '.join(missing)}: neither in the bundle's secrets/, nor "
            f"as the variable backup_{missing[0]} (-e @vault.yml), nor on this host",
            2,
        )
