"""Tells people how a run ended: a ping, a webhook, an ntfy server, and a command of the operator.

Nothing in here fails a run. What could not be sent stands in the state, and `status` shows it.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from .documents import Name, Reason, StateDocument, Time
from .host import CONFIG, IN_SIDECAR, Host, Refused, parse_time, utc_now
from .log import complain
from .outbox import TEXT, Send, call, extended, post, send_all
from .said import own_log, redact
from .secrets import read_one_line

BODY_BYTES = 100_000
OTHERS = 75  # the exit code when another run holds the lock: that one is told
MESSAGE_BYTES = 4000  # ntfy makes an attachment of a longer message
QUIET_SECONDS = 6 * 3600  # in which the same failure outside a run is told once
UNVERIFIED = "unverified"  # the result that stands for a failed verification


@dataclass(frozen=True)
class Event:
    """How a run ended, or a verification."""

    run: str  # its id; empty if it failed before it had one
    result: str  # success, incomplete, failed, skipped, unverified
    code: int  # exit code
    reason: str
    log: str = ""
    sequence: int = 0  # of the run manifest


@dataclass(frozen=True)
class Notices(StateDocument):
    """What was told last, and what could not be sent."""

    FILE = "notified.json"
    REMEDY = "remove it: the next run writes it anew"

    run: Name
    sequence: int
    at: Time
    result: Name
    code: int
    reason: Reason
    unsent: dict[Name, Reason] = field(default_factory=dict)  # why, by way


NOTHING = Notices("", 0, "1970-01-01T00:00:00Z", "success", 0, "")


@contextmanager
def never_failing() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, the backup is more important
        complain(f"warning: metrics or notifications failed: {error!r}")


def tell_start(host: Host, run: str) -> None:
    """Pings that a run on the host begins."""
    if not IN_SIDECAR:
        with never_failing():
            if url := secret(host, "PING_URL"):
                send_all({"ping": lambda: ping(host, url, run, "/start", b"")})


def tell_end(run: str, result: str, code: int, reason: str) -> None:
    """How a run on the host ended; without an id, before it really began."""
    if not IN_SIDECAR and code != OTHERS:
        with never_failing():
            said = own_log(reason[:60] or f"run {run} succeeded")
            tell(Host.read(CONFIG), Event(run, result, code, reason, said))


def tell(host: Host, event: Event) -> None:
    """Sends what `backup.notify` asks for after this event."""
    before = Notices.peek([]) or NOTHING
    age = (parse_time(utc_now()) - parse_time(before.at)).total_seconds()
    same = (event.run, event.result, event.reason) == (before.run, before.result, before.reason)
    if same and not event.run and 0 <= age < QUIET_SECONDS:
        return  # a recovery that fails each minute
    try:
        ways = ways_of(host, event)
        on = host.backup_settings.get("NOTIFY_ON", "")
        recovers = on == "recovery" and before.result != "success"
        wanted = event.result != "success" or on == "always" or recovers
        chosen = {way: send for way, send in ways.items() if wanted or way == "ping"}
        others = before.unsent.keys() & ways.keys() - chosen.keys()
        unsent = {way: before.unsent[way] for way in others} | send_all(chosen)
    except (OSError, Refused) as error:
        unsent = {"notification": str(error)}
    for way, problem in unsent.items():
        complain(f"warning: the {way} of backup.notify could not be sent: {problem}")
    sequence = max(event.sequence, before.sequence)
    told = (event.run, sequence, utc_now(), event.result, event.code, event.reason, unsent)
    Notices(*told).store()


def unsent_problems(problems: list[str]) -> list[str]:
    """What `status` says of notifications that could not be sent."""
    notices = Notices.peek(problems) or NOTHING
    return [
        f"the {way} of backup.notify could not be sent: {problem}"
        for way, problem in notices.unsent.items()
    ]


# ---------------------------------------------------------------- what is sent


def ways_of(host: Host, event: Event) -> dict[str, Send]:
    """How to send the event, by each way that is set."""
    log, reason = redact(host, event.log), redact(host, event.reason)
    good = event.result == "success"
    facts = {
        "environment": host.environment,
        "host": socket.gethostname(),
        "run": event.run,
        "result": event.result,
        "exit_code": event.code,
        "reason": reason,
    }
    body, ways = encode(facts, log), dict[str, Send]()
    if ping_url := secret(host, "PING_URL"):
        # A run of the sidecar that ended well has failed if its copy elsewhere did.
        suffix = "" if good else f"/{event.code or 'fail'}"
        tail = log.encode()[-BODY_BYTES:]
        ways["ping"] = lambda: ping(host, ping_url, event.run, suffix, tail)
    if webhook_url := secret(host, "WEBHOOK_URL"):
        ways["webhook"] = lambda: post(webhook_url, body, "application/json")
    if ntfy_url := secret(host, "NTFY_URL"):
        title = f"Backup of {host.environment}: {event.result}"
        look = {"priority": "default" if good else "high", "title": title}
        text = f"{reason or 'All is well.'}\nrun {event.run or '-'} on {facts['host']}"
        message = text.encode()[:MESSAGE_BYTES]
        ways["ntfy"] = lambda: post(extended(ntfy_url, "", urlencode(look)), message, TEXT)
    if command := secret(host, "COMMAND"):
        ways["command"] = lambda: call(command.split("\n"), body)
    return ways


def encode(facts: dict[str, Any], log: str) -> bytes:
    """JSON of at most BODY_BYTES, with as much of the log's end as fits."""
    while True:
        body = json.dumps({**facts, "log": log}, ensure_ascii=False).encode()
        if len(body) <= BODY_BYTES:
            return body
        log = log[len(log) // 8 + 1 :]


def ping(host: Host, url: str, run: str, suffix: str, body: bytes) -> None:
    """The protocol of healthchecks.io. `rid` joins the begin of a run with its end."""
    rid = uuid.uuid5(uuid.NAMESPACE_OID, f"{host.environment} {run or utc_now()}")
    post(extended(url, suffix, f"rid={rid}"), body, TEXT)


def secret(host: Host, key: str) -> str:
    """The value of a secret of `backup.notify`; empty if it is not set."""
    if not (place := host.backup_settings.get(f"NOTIFY_{key}_FILE")):
        return ""
    path = host.deploy_dir / "backup/secrets" / place.rpartition("/")[2]
    return read_one_line(path)
