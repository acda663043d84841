"""The secrets that backup.conf names: given on standard input, kept on the host."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from .files import make_directory, put
from .host import BUNDLE, Host, Refused, read_settings
from .log import say

SECRET_FILE = re.compile(r"/run/secrets/([a-z_]+)")


def put_secrets(host: Host, needed: list[str], given: Mapping[str, str]) -> None:
    """The secrets that backup.conf names, 0600: as given, or as the host already has them; others
    are removed.
    """
    directory = host.deploy_dir / "backup/secrets"
    make_directory(directory, 0o700)
    for name in needed:
        if name in given:
            put(directory / name, given[name].encode(), 0o600)
    for stray in directory.iterdir():
        if stray.name not in needed:
            stray.unlink()
            say(f"changed: {stray} (removed)")


def read_secrets() -> dict[str, str]:
    """The secrets that came as a JSON object on standard input, as the playbooks send them; none
    from a terminal.

    Where somebody copied a bundle by hand, with its `secrets/`, those count too.
    """
    beside = {
        path.name: path.read_text(encoding="utf-8")
        for path in (BUNDLE / "secrets").glob("*")
        if path.is_file()
    }
    try:
        return beside | (
            {} if sys.stdin.isatty() else dict(json.loads(sys.stdin.read().strip() or "{}"))
        )
    except (ValueError, TypeError):
        raise Refused("the secrets on standard input are not a JSON object", 2) from None


def named_secrets(conf: Path) -> list[str]:
    """Names of the secrets that this backup.conf reads."""
    return sorted(
        {
            match[1]
            for value in read_settings(conf).values()
            if (match := SECRET_FILE.fullmatch(value))
        }
    )


def require_secrets(host: Host, needed: list[str], given: Mapping[str, str]) -> None:
    missing = [
        name
        for name in needed
        if name not in given and not (host.deploy_dir / "backup/secrets" / name).is_file()
    ]
    if missing:
        raise Refused(
            f"no value for the secret {', '.join(missing)}: neither in the bundle's secrets/, "
            "nor as the variable "
            f"backup_{missing[0]} (-e @vault.yml), nor on this host",
            2,
        )
