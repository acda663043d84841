"""What the log says of a run, without the secrets of this backup: for those who are told."""

from __future__ import annotations

import os
import time

from .host import Host
from .log import LOG
from .protocol import printable

LOG_BYTES = 100_000
LOG_SECONDS = 1
LINE_CHARACTERS = 2000
SHORTEST_SECRET = 4  # a shorter text is not hidden, because it would stand everywhere


def redact(host: Host, text: str) -> str:
    """The text without any secret of this backup."""
    hidden: set[str] = set()
    for path in (host.deploy_dir / "backup/secrets").glob("*"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            login = line.partition("//")[2].rpartition("@")[0]
            hidden |= {line, line.partition("=")[2], login, login.partition(":")[2]}
    for value in sorted(hidden, key=len, reverse=True):
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def own_log(last: str = "") -> str:
    """The end of the log, from the first line that this process wrote. If somebody started it by
    hand, `tee` writes the log, and the line with the text `last` can come a little later.
    """
    deadline = time.monotonic() + LOG_SECONDS
    while True:
        try:
            with LOG.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
                text = file.read(LOG_BYTES).decode(errors="replace")
        except OSError:
            return ""
        if last in text or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    lines = text.splitlines()
    own = [number for number, line in enumerate(lines) if f"[{os.getpid()}]: " in line]
    said = lines[own[0] :] if own else []
    return "".join(f"{printable(line, LINE_CHARACTERS)}\n" for line in said)
