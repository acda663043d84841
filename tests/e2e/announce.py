"""A BitTorrent client that announces to a tracker and reports for how long nobody answered."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Protocol
from urllib.parse import quote_from_bytes

ANSWER_SECONDS = 0.25
ANNOUNCES_PER_SECOND = 20
CLIENTS = 4

_PROTOCOL_ID = 0x41727101980
_CONNECT, _ANNOUNCE = 0, 1
_EVENT_STARTED = 2


class Announcer(Protocol):
    """Something that sends one announce and says whether an answer came."""

    def announce(self) -> bool:
        """Whether the tracker answered in time."""


class HttpAnnouncer:
    """BEP 3: announces by HTTP.

    Each torrent is announced as started, then as completed: the tracker writes to its database.
    """

    def __init__(self, address: str, port: int = 7070) -> None:
        self._url = f"http://{address}:{port}/announce"
        self._completing = b""

    def announce(self) -> bool:
        """Whether the tracker answered in time, and with peers rather than with a failure."""
        info_hash, event = (
            (self._completing, "completed")
            if self._completing
            else (secrets.token_bytes(20), "started")
        )
        query = (
            f"info_hash={quote_from_bytes(info_hash, safe='')}&peer_id=-GB0001-000000000000"
            f"&port=17548&uploaded=0&downloaded=0&left=0&event={event}&compact=1"
        )
        try:
            with urllib.request.urlopen(f"{self._url}?{query}", timeout=ANSWER_SECONDS) as response:
                answered = b"8:interval" in response.read()
        except (OSError, urllib.error.URLError):
            return False
        self._completing = info_hash if answered and event == "started" else b""
        return answered


class UdpAnnouncer:
    """BEP 15: announces by UDP, connecting anew each time."""

    def __init__(self, address: str, port: int = 6969) -> None:
        self._target = (address, port)

    def announce(self) -> bool:
        """Whether the tracker answered both packets in time."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(ANSWER_SECONDS)
            try:
                sock.connect(self._target)
                transaction = secrets.randbits(31)
                sock.send(struct.pack("!QII", _PROTOCOL_ID, _CONNECT, transaction))
                action, echoed, connection = struct.unpack("!IIQ", sock.recv(16))
                if (action, echoed) != (_CONNECT, transaction):
                    return False
                peer = struct.pack(
                    "!20s20sQQQIIIiH",
                    secrets.token_bytes(20),
                    b"-GB0001-000000000000",
                    0,
                    0,
                    0,
                    _EVENT_STARTED,
                    0,
                    0,
                    -1,
                    17548,
                )
                sock.send(struct.pack("!QII", connection, _ANNOUNCE, transaction) + peer)
                action, echoed = struct.unpack_from("!II", sock.recv(2048))
            except (OSError, struct.error):
                return False
        return (action, echoed) == (_ANNOUNCE, transaction)


class Load:
    """Announces of several clients, taking turns, for as long as the `with` block lasts.

    While one client waits for a lost answer, the others go on.
    """

    def __init__(self, announcers: Sequence[Announcer]) -> None:
        self._answers: list[float] = []
        self._stop = threading.Event()
        pause = len(announcers) / ANNOUNCES_PER_SECOND
        self._threads = [
            threading.Thread(
                target=self._keep_announcing,
                args=(announcer, pause, pause * number / len(announcers)),
                daemon=True,
            )
            for number, announcer in enumerate(announcers)
        ]
        self._started = self._ended = 0.0

    def __enter__(self) -> Load:
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self._ended = time.monotonic()

    @property
    def answered(self) -> int:
        """How many announces were answered."""
        return len(self._answers)

    @property
    def longest_gap(self) -> float:
        """Seconds of the longest stretch without an answered announce, the ends included."""
        return max(later - earlier for earlier, later in self.gaps(0))

    def gaps(self, seconds: float) -> list[tuple[float, float]]:
        """(start, end) on the monotonic clock of each stretch of more than so many seconds in which
        no announce was answered, the ends included.
        """
        times = [self._started, *sorted(self._answers), self._ended]
        return [(start, end) for start, end in pairwise(times) if end - start > seconds]

    def _keep_announcing(self, announcer: Announcer, pause: float, first: float) -> None:
        if self._stop.wait(first):
            return
        while not self._stop.wait(pause):
            if announcer.announce():
                self._answers.append(time.monotonic())
