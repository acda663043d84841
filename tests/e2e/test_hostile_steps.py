"""Taken-over roles of a run: what they answer is data, and what they leave is one plain file or
nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from e2e import faults
from e2e.aftermath import lost, next_run
from e2e.deployment import SCRIPT, STAGING, Deployment
from e2e.faults import MARKER, PAUSE, tracker_started_again
from e2e.host import Container, wait_until
from e2e.stack import wait_for_tracker
from e2e.steps import step_named, strike_at

pytestmark = pytest.mark.only("sqlite3")

PWNED = "/tmp/pwned"
SECRET = "/root/secret-of-the-host"
SECRET_TEXT = "a-secret-of-the-host"
UNUSABLE = "the answer to the capture step cannot be used: "
COMMAND = f"$(touch {PWNED})`touch {PWNED}`; touch {PWNED} #"
WINDOW_SECONDS = "9"  # the capture may take two thirds of it, 6 s


@dataclass(frozen=True)
class Said:
    """What a taken-over reader says instead of its answer, and what the run says then."""

    name: str
    code: str  # a Python expression: bytes to write, again and again if it is a tuple
    log: str
    stream: int = 3  # of the answers; standard error is 2

    def __str__(self) -> str:
        return self.name


def answer(name: str, document: object, log: str) -> Said:
    return Said(name, repr(json.dumps(document).encode() + b"\n"), log)


ANSWERS = (
    answer(
        "an exit code that is an expression",
        {"code": f"BASH_VERSINFO[$(touch {PWNED})0]*0"},
        UNUSABLE + "code is 'BASH_VERSINFO[",
    ),
    answer("a reason that is a command", {"code": 1, "reason": COMMAND}, COMMAND),
    answer(
        "a reason with escape sequences",
        {"code": 1, "reason": "red \x1b[31m \u202e %s {0} %(x)s"},
        r"red \x1b[31m \u202e %s {0} %(x)s",
    ),
    Said("no number", repr(b'{"numbers": {"shared": NaN}}\n'), UNUSABLE + "no JSON document"),
    Said("a fraction", repr(b'{"numbers": {"shared": 1e3}}\n'), UNUSABLE + "no JSON document"),
    answer("a bool", {"numbers": {"shared": True}}, UNUSABLE + "numbers is True"),
    answer("a number that is too large", {"code": 2**63}, UNUSABLE + "code is 9223372036854775808"),
    Said(
        "a surrogate",
        repr(b'{"code": 1, "reason": "\\ud800"}\n'),
        UNUSABLE + "reason is no Unicode text",
    ),
    answer("an unknown field", {"path": "/etc/shadow"}, UNUSABLE + "unknown fields: ['path']"),
    Said("200,000 brackets", "b'[' * 200000 + b'\\n'", UNUSABLE + "no JSON document"),
    Said("2 MiB without an end", "b' ' * (2 << 20)", UNUSABLE + "more than 1048576 bytes"),
    Said("a second answer", r"b'{}\n{}\n'", "cannot be used: nobody asked for it"),
    Said(
        "endless messages",
        "(b'x' * 65536,)",
        "the capture step was not over after its time limit of",
        stream=2,
    ),
)

# Runs in the reader's container, as its user. The reader itself stands still.
_SAYS = """
import glob, os
for path in glob.glob("/proc/[0-9]*/cmdline"):
    with open(path, "rb") as file:
        if file.read().endswith(b"backup.py\\0reader\\0"):
            process = path.split("/")[2]
            os.kill(int(process), 19)
            said, stream = {code}, open("/proc/" + process + "/fd/{stream}", "wb", buffering=0)
            while True:
                for part in said if isinstance(said, tuple) else (said,):
                    while part:
                        part = part[stream.write(part):]
                if not isinstance(said, tuple):
                    break
"""

_IN_CONTAINER = (
    "name=$(docker ps --filter label=tracker-backup.run --filter name=-{role}$ "
    "--format '{{{{.Names}}}}'); [[ $name ]] && docker exec --detach $name {command}"
)


def in_container(role: str, *command: str) -> str:
    """A shell fragment for the host that starts a program in a role's container."""
    return _IN_CONTAINER.format(role=role, command=shlex.join(command))


@pytest.fixture(autouse=True)
def clean_host(deployment: Deployment) -> Iterator[None]:
    """Leaves nothing of these tests on the host."""
    host = deployment.host
    host.sh(f"rm -rf {PWNED}; echo {SECRET_TEXT} >{SECRET}; chmod 0600 {SECRET}")
    if not faults.backups(host):
        next_run(deployment, {})
    yield
    host.sh(f"rm -rf {PWNED} {SECRET}")


def only_failed(
    deployment: Deployment, since: int, earlier: dict[str, str], before: Container
) -> None:
    """The run failed, and that is all that happened."""
    host, log = deployment.host, faults.log_since(deployment.host, since)
    assert not host.exists(PWNED), "the host executed what the container wrote"
    assert SECRET_TEXT not in log
    assert host.read(SECRET).strip() == SECRET_TEXT
    assert "\x1b" not in log
    assert len(re.findall(r"\]: ERROR:", log)) == 1, log
    assert "Traceback" not in log
    assert not host.exists(MARKER)
    wait_for_tracker(host)
    after = deployment.tracker()
    assert (after.id, after.status, after.started) == (before.id, "running", before.started)
    assert faults.leftovers(host) == []
    last = deployment.last_run()
    assert (last["result"], last["files"]) == ("failed", [])
    assert lost(host, earlier) == []
    next_run(deployment, earlier)


def in_core(every: Sequence[object], core: set[str]) -> list[Any]:
    """All of them as parameters. Those whose names are not in the core are slow."""
    slow = [pytest.mark.slow]
    return [pytest.param(one, id=str(one), marks=[] if str(one) in core else slow) for one in every]


CORE = {
    "an exit code that is an expression",
    "a reason with escape sequences",
    "200,000 brackets",
    "2 MiB without an end",
    "endless messages",
    "a hard link, of a database before it is examined",
    "a link, of a compressed database",
    "a pipe, of a compressed database",
    "a link, of the configuration",
    "another user's file, of the configuration",
}


@pytest.mark.parametrize("said", in_core(ANSWERS, CORE))
def test_an_answer_of_a_taken_over_reader_is_only_data(deployment: Deployment, said: Said) -> None:
    host = deployment.host
    earlier, since, before = faults.backups(host), faults.log_lines(host), deployment.tracker()
    code = _SAYS.format(code=said.code, stream=said.stream)
    settings = PAUSE | {"WINDOW_TIMEOUT_SECONDS": WINDOW_SECONDS}
    with tracker_started_again(deployment), deployment.configured(**settings):
        struck = strike_at(
            host,
            step_named("beginning the capture"),
            in_container("reader", "python3", "-c", code) + " && sleep 1",
        )
    log = faults.log_since(host, since)
    assert struck.outcome.code == 1, struck.outcome.output
    assert said.log in log, log[-5000:]
    assert len(log) < 500_000, "the log is bounded, whatever the role says"
    only_failed(deployment, since, earlier, before)


@dataclass(frozen=True)
class Left:
    """What a role leaves in the place of a file, by a shell fragment in its directory in staging,
    and what the run says then.
    """

    name: str
    step: str
    role: str
    script: str
    log: str

    def __str__(self) -> str:
        return self.name


NOT_PLAIN = "the container's file {} is no regular file of its own"
LINK = "the container's file {} cannot be read: Too many levels of symbolic links"
OTHERS = {
    "a link": (f"rm {{0}}; ln -s {SECRET} {{0}}", LINK),
    "a pipe": ("rm {0}; mkfifo {0}", NOT_PLAIN),
    "a directory": ("rm {0}; mkdir {0}", NOT_PLAIN),
    "a device": ("rm {0}; mknod {0} c 1 5", "the container's file {} "),
    "a hard link": (f"rm {{0}}; cp {SECRET} twin; ln twin {{0}}", NOT_PLAIN),
    "another user's file": ("chown 64002 {0}", NOT_PLAIN),
    "a huge file": ("truncate --size=8T {0}", "the container's file {} has 8796093022208 bytes"),
}
LEFT = (
    *(
        Left(
            f"{what}, of a database before it is examined",
            "beginning to finish",
            "reader",
            OTHERS[what][0].format("database.db"),
            OTHERS[what][1].format("database.db"),
        )
        for what in ("a hard link", "another user's file")
    ),
    *(
        Left(
            f"{what}, of a compressed database",
            "archiving the configuration",
            "examiner-0",
            script.format("database.db.gz"),
            log.format("database.db.gz"),
        )
        for what, (script, log) in OTHERS.items()
    ),
    *(
        Left(
            f"{what}, of the configuration",
            "removing the container",
            "reader",
            script.format("config.tar.gz"),
            log.format("config.tar.gz"),
        )
        for what, (script, log) in OTHERS.items()
    ),
)


@pytest.mark.parametrize("left", in_core(LEFT, CORE))
def test_only_a_plain_file_of_the_role_is_taken_over(deployment: Deployment, left: Left) -> None:
    """The test does it on the host, where it can do more than the role: make a device, say."""
    host = deployment.host
    earlier, since, before = faults.backups(host), faults.log_lines(host), deployment.tracker()
    with deployment.configured(**PAUSE):
        struck = strike_at(
            host,
            step_named(left.step),
            f"cd {STAGING}/[0-9]*_[0-9]*/{left.role} && {{ {left.script}; }}",
        )
    assert struck.outcome.code == 1, struck.outcome.output
    log = faults.log_since(host, since)
    assert left.log in log, log
    only_failed(deployment, since, earlier, before)


# Has ended its parent, ignores what it can, looks around, and writes to what its role made, again
# and again for as long as it lives.
_GRANDCHILD = """
import glob, os, signal, sys, time
if os.fork() or os.setsid() and os.fork():
    sys.exit()
for number in (1, 2, 15, 17):
    signal.signal(number, signal.SIG_IGN)
time.sleep(0.5)
with open("/work/seen", "w") as seen:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        print(open(path).read().replace("\\0", " "), file=seen)
    for path in ("/data", "/backups", "/staging", "/etc/backup", "/run/secrets"):
        print("there:", path, os.path.exists(path), file=seen)
held = None
while True:
    if held is None and os.path.exists("/work/database.db.gz"):
        held = open("/work/database.db.gz", "r+b", buffering=0)
    if held and not os.path.exists("/work/database.db"):
        os.pwrite(held.fileno(), b"of the grandchild", 0)
    time.sleep(0.01)
"""


def test_a_grandchild_of_an_examiner_ends_with_it(deployment: Deployment) -> None:
    """What it has open is not what is published, so it changes nothing even if it lived on."""
    host = deployment.host
    earlier, since, before = faults.backups(host), faults.log_lines(host), deployment.tracker()
    keep = f"sleep 2; cat {STAGING}/[0-9]*_[0-9]*/examiner-0/seen >/root/seen"
    with deployment.configured(**PAUSE):
        struck = strike_at(
            host,
            step_named("compressing the database"),
            f"{in_container('examiner-0', 'python3', '-c', _GRANDCHILD)} && {keep}",
        )
    alive = host.run("pgrep", "--full", "of the grandchild", check=False).stdout
    seen = host.sh("cat /root/seen; rm /root/seen")
    struck.outcome.succeeded()
    assert alive == ""
    assert "backup.py examiner" in seen
    assert "reader" not in seen
    assert not re.search("^there: .* True$", seen, re.MULTILINE), seen
    assert lost(host, earlier) == []
    log = faults.log_since(host, since)
    assert "WARNING" not in log, log
    after = deployment.tracker()
    assert (after.id, after.status, after.started) == (before.id, "running", before.started)
    assert faults.leftovers(host) == []
    next_run(deployment, earlier)


def test_processes_of_the_user_nobody_do_not_count_for_a_role(deployment: Deployment) -> None:
    """Prometheus runs as 65534. A limit of processes by user must not be one that it uses up."""
    host, earlier = deployment.host, faults.backups(deployment.host)
    forty = "for n in {1..40}; do setpriv --reuid=65534 --clear-groups sleep 600 & done; wait"
    process = host.spawn("bash", "-c", forty)
    wait_until(
        "forty processes",
        lambda: len(host.run("pgrep", "-u", "65534", "sleep", check=False).stdout.split()) == 40,
        30,
    )
    try:
        with deployment.configured(**PAUSE):
            deployment.run().succeeded()
    finally:
        host.run("pkill", "-u", "65534", "sleep")
        process.communicate(timeout=30)
    assert lost(host, earlier) == []


def test_a_container_of_a_dead_run_that_is_paused_is_removed(deployment: Deployment) -> None:
    """The run died while it proved that the engine can pause."""
    host, earlier = deployment.host, faults.backups(deployment.host)
    kill = (
        "docker pause $(docker ps --quiet --filter label=tracker-backup.run) && "
        f"kill -KILL $(cat {STAGING}/.fault-points/pid)"
    )
    with deployment.configured(**PAUSE):
        struck = strike_at(host, step_named("proving that Docker can pause"), kill)
        assert struck.outcome.code == 137
        assert host.sh("docker ps --quiet --filter status=paused").split()
        done = host.run(SCRIPT, check=False, seconds=180)
        assert done.returncode == 0, done.stdout
    wait_until("the container to be gone", lambda: faults.leftovers(host) == [], 30)
    assert lost(host, earlier) == []
