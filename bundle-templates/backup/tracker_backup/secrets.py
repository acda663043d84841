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
    files = (path for path in (BUNDLE / "secrets").glob("*") if path.is_file())
    beside = {path.name: path.read_text(encoding="utf-8") for path in files}
    try:
        text = "" if sys.stdin.isatty() else sys.stdin.read().strip()
        return beside | dict(json.loads(text or "{}"))
    except (ValueError, TypeError):
        raise Refused("the secrets on standard input are not a JSON object", 2) from None


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
