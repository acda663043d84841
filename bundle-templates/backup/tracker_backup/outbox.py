"""Sends notifications: requests by HTTP, and a program of the operator. Nothing hangs here."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .host import Refused
from .protocol import printable

SECONDS = float(os.environ.get("TRACKER_BACKUP_NOTIFY_SECONDS", "10"))  # for one answer
COMMAND_SECONDS = 6 * SECONDS
PAUSES = (0.0, SECONDS / 10, SECONDS / 5)  # before each try
TEXT = "text/plain; charset=utf-8"

Send = Callable[[], None]


class NoRedirect(HTTPRedirectHandler):
    """A redirect is an error: it could carry the body and the login to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = build_opener(NoRedirect)


def send_all(ways: dict[str, Send]) -> dict[str, str]:
    """Sends at the same time, each in a thread that may hang for ever. Returns what could not be
    sent: why, by way.
    """
    most = sum(PAUSES) + len(PAUSES) * (COMMAND_SECONDS if "command" in ways else SECONDS)
    problems = dict.fromkeys(ways, f"no answer within {most:.0f} s")

    def attempt(way: str, send: Send) -> None:
        for pause in PAUSES:
            time.sleep(pause)
            problems[way] = problem_of(send)
            if not problems[way]:
                return

    threads = [threading.Thread(target=attempt, args=way, daemon=True) for way in ways.items()]
    deadline = time.monotonic() + most + 1
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {way: problem for way, problem in problems.items() if problem}


def problem_of(send: Send) -> str:
    """Why it could not be sent, without the address; empty if it was sent."""
    try:
        send()
    except HTTPError as error:
        moved = ", a redirect: write the address where the service is now"
        return f"the server answered {error.code}{moved if 300 <= error.code < 400 else ''}"
    except (OSError, Refused) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            return f"no answer within {SECONDS:.0f} s"
        return printable(str(getattr(cause, "strerror", None) or cause), 200)
    except Exception as error:  # a message of http.client can hold the address
        return type(error).__name__
    return ""


def post(url: str, body: bytes, kind: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise Refused("the address does not begin with https:// or http://")
    login, _, place = parts.netloc.rpartition("@")
    headers = {"Content-Type": kind, "User-Agent": "tracker-backup"}
    if login:
        token = base64.b64encode(unquote_to_bytes(login)).decode("ascii")
        headers["Authorization"] = f"Basic {token}"
    request = Request(urlunsplit(parts._replace(netloc=place)), body, headers)
    with OPENER.open(request, timeout=SECONDS):
        pass


def extended(url: str, suffix: str, query: str) -> str:
    """The address with more at the end of its path, and of its query."""
    parts = urlsplit(url)
    whole = "&".join(filter(None, (parts.query, query)))
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + suffix, query=whole))


def call(command: list[str], body: bytes) -> None:
    """A program of the operator, with the body on its standard input."""
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, input=body, stdout=null, stderr=null, timeout=COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"the program was not over after {COMMAND_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise Refused(f"the program ended with exit code {done.returncode}")
