"""Whether clients still reach the tracker after it was stopped and started: Docker then writes the
firewall's rules anew, and has left some out. A probe from this host alone does not show that.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from .docker import docker, words
from .host import Refused

PROGRAMS = (["iptables-save"], ["ip6tables-save"], ["nft", "list", "ruleset"])
PROGRAM_SECONDS = 20
ANSWER_SECONDS = 1.0
PATIENCE_SECONDS = 20  # for a tracker that was just started
SHOWN = 10  # lines of a difference
# Counters and handles change by themselves.
COUNTERS = re.compile(r"\[\d+:\d+\]|(?:packets|bytes) \d+|# handle \d+|^#.*")
BITTORRENT_CONNECT = bytes.fromhex("00000417271019800000000000c0ffee")
SOCKETS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}

Address = tuple[str, str, int]  # tcp or udp, host, port


@contextlib.contextmanager
def unchanged_reach(tracker: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Warns of what differs after the block in the firewall, and of addresses of the tracker's
    container that answered before and do not answer any more.
    """
    before = firewall()
    answered = [address for address in published(tracker) if answers(*address)]
    yield
    for line in differences(before, firewall()):
        warn(line)
    for kind, host, port in silent(answered):
        warn(
            f"the tracker does not answer any more at {host}, port {port}/{kind}, where it "
            "answered before it was stopped"
        )


def firewall() -> dict[str, list[str]]:
    """The rules by the program that lists them. Docker uses one of these programs, or two."""
    rules = {}
    for command in PROGRAMS:
        if not shutil.which(command[0]):
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROGRAM_SECONDS,
                check=True,
            )
            lines = done.stdout.decode(errors="replace").splitlines()
            cleaned = (" ".join(COUNTERS.sub("", line).split()) for line in lines)
            rules[command[0]] = [line for line in cleaned if line]
    return rules


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """One warning for each program whose rules are not the same any more."""
    warnings = []
    for program in before:
        old, new = Counter(before[program]), Counter(after.get(program, []))
        lost, more = list((old - new).elements()), list((new - old).elements())
        lines = [*(f"gone: {line}" for line in lost), *(f"new: {line}" for line in more)]
        if lines:
            rest = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            warnings.append(
                f"the firewall ({program}) is not as it was before the tracker was stopped: "
                f"{'; '.join(lines[:SHOWN])}{rest}"
            )
    return warnings


def published(tracker: str) -> list[Address]:
    """Where the host listens for the container."""
    template = "{{json .NetworkSettings.Ports}}"
    try:
        told = docker(*words("inspect --type container --format"), template, tracker)
        ports: dict[str, Any] = json.loads(told) or {}
    except (Refused, ValueError):
        return []
    return [
        (kind, ANY.get(binding["HostIp"], binding["HostIp"]), int(binding["HostPort"]))
        for port, bindings in ports.items()
        for kind in [port.rpartition("/")[2]]
        if kind in SOCKETS
        for binding in bindings or []
    ]


def answers(kind: str, host: str, port: int) -> bool:
    """Whether something accepts a connection there, or a tracker answers by UDP."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, SOCKETS[kind]) as it:
            it.settimeout(ANSWER_SECONDS)
            it.connect((host, port))
            if kind == "udp":
                it.send(BITTORRENT_CONNECT)
                return bool(it.recv(64))
            return True
    except OSError:
        return False


def silent(addresses: list[Address]) -> list[Address]:
    """Those that do not answer within PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while addresses:
        addresses = [address for address in addresses if not answers(*address)]
        if addresses and time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return addresses
