"""The services of the sidecar, and how its core calls them. The services are real processes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unit.sandbox import mode
from unit.service import PLACE, needs_root, restarted_service
from unit.test_roles import ANSWERS, OVER, RUN, Stage

pytestmark = needs_root

# Who the role is, and what it can do with the directory that its container sees.
LOOK = """
def attempt(call):
    try:
        return str(call())
    except OSError as error:
        return error.strerror
import socket
work = os.environ['BACKUP_WORK']
above = os.path.dirname(work)
call = socket.socket(socket.AF_UNIX).connect
found = {
    'user': [os.getresuid(), os.getresgid(), os.getgroups()],
    'capabilities': [line for line in open('/proc/self/status') if line.startswith('CapEff')],
    'place': [work, os.environ['TMPDIR']],
    'here': os.listdir(work),
    'above': attempt(lambda: os.listdir(above)),
    'make': attempt(lambda: open(above + '/other', 'w')),
    'socket': attempt(lambda: os.rename(work, above + '/socket')),
    'kill': attempt(lambda: os.kill(os.getppid(), 9)),
    'descriptors': sorted(os.listdir('/proc/self/fd'))[:3],
}
"""


@pytest.fixture
def stage(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A core, and a service for the examiner."""
    stage = Stage(tool, tmp_path)
    stage.in_sidecar = True
    monkeypatch.setenv("PATH", f"{stage.bin}:{os.environ['PATH']}")
    services = f"{tool.__name__}.services"
    monkeypatch.setattr(f"{services}.SERVICE_SECONDS", 10)
    with restarted_service("examiner", stage.staging / "examiner", stage.bin) as stage.lives:
        wait_until((stage.staging / "examiner/socket").exists)
        yield stage


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listed(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def text_of(role: Any) -> Any:
    return json.loads(role.ask("examine", 20).text)


def test_the_role_is_its_own_user_alone_in_its_own_directory(stage: Stage) -> None:
    place = stage.staging / "examiner"
    with stage.role(
        f"{LOOK}{ANSWERS}    print(json.dumps({{'text': json.dumps(found)}}))\n", "examiner", 2
    ) as role:
        found = text_of(role)
        assert found == {
            "user": [[64003] * 3, [64003] * 3, []],
            "capabilities": ["CapEff:\t0000000000000000\n"],
            "place": [str(PLACE / "job")] * 2,
            "here": [],
            "above": "Permission denied",
            "make": "Permission denied",
            "socket": "Permission denied",
            "kill": "Operation not permitted",
            "descriptors": ["0", "1", "2"],
        }
        assert listed(place) == ["job"], "no socket: nobody else can call"
    assert (stage.composed, stage.calls, stage.log) == ([], [], [])


def test_a_job_and_its_messages_come_through(stage: Stage) -> None:
    text = (
        ANSWERS + "    print('working', file=sys.stderr)\n    time.sleep(0.3)\n"
        "    print(json.dumps({'text': job['password'], 'numbers': {'bytes': 5}}))\n"
    )
    with stage.role(text, "examiner") as role:
        for password in ("first", "p\n\u2028"):
            answer = role.ask("examine", 20, password=password)
            assert (answer.text, answer.numbers) == (password, {"bytes": 5})
    assert stage.log[0] == "examiner-0: working"


def test_after_its_end_the_role_has_its_files_and_the_service_sees_none(stage: Stage) -> None:
    text = (
        ANSWERS + "    open(os.environ['BACKUP_WORK'] + '/database.db.gz', 'w').write('x')\n"
        "    os.mkdir(os.environ['BACKUP_WORK'] + '/.deep')\n"
        "    print(json.dumps({}))\n"
    )
    with stage.role(text, "examiner") as role:
        role.ask("examine", 20)
        role.end()
        assert listed(stage.staging / "examiner") == ["socket"]
        assert listed(role.path) == [".deep", "database.db.gz"]
        os.close(stage.module.take(role.directory, "database.db.gz", 64001, 100))
        with stage.role(
            ANSWERS + "    print(json.dumps({'text': json.dumps(["
            "os.getuid(), os.listdir(os.environ['BACKUP_WORK'])])}))\n",
            "examiner",
            1,
        ) as other:
            assert text_of(other) == [64002, []]
        assert listed(role.path) == [".deep", "database.db.gz"]


def test_everything_that_the_role_started_ends_with_it(stage: Stage) -> None:
    """Also what left its session, ignores signals and holds the streams."""
    text = (
        ANSWERS + "    if os.fork() == 0:\n        os.setsid()\n"
        "        for number in (1, 2, 13, 15): signal.signal(number, signal.SIG_IGN)\n"
        "        while True:\n"
        "            open(os.environ['BACKUP_WORK'] + '/alive', 'w').close()\n"
        "            time.sleep(0.01)\n"
        "    print(json.dumps({}))\n"
    )
    with stage.role(text, "examiner") as role:
        role.ask("examine", 20)
        wait_until((stage.staging / "examiner/job/alive").exists)
        role.end()
        (role.path / "alive").unlink()
        time.sleep(0.1)
        assert not (role.path / "alive").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("    time.sleep(60)\n", 1),
        ("    os.kill(os.getpid(), signal.SIGKILL)\n", 20),
        ("    sys.exit(1)\n", 20),
    ],
)
def test_a_role_that_hangs_or_dies_is_over_and_the_next_one_works(
    stage: Stage, text: str, seconds: int
) -> None:
    with (
        stage.role(ANSWERS + text, "examiner") as role,
        pytest.raises(stage.module.Refused) as refused,
    ):
        role.ask("capture", seconds)
    assert str(refused.value) == OVER.format(seconds)
    with stage.role(ANSWERS + "    print(json.dumps({}))\n", "examiner", 1) as role:
        role.ask("examine", 20)


def test_what_a_dead_core_left_is_removed_before_the_next_job(stage: Stage) -> None:
    left = stage.staging / "examiner/job"
    left.mkdir()
    (left / "secret").write_text("of another service")
    text = "    print(json.dumps({'text': json.dumps(os.listdir(os.environ['BACKUP_WORK']))}))\n"
    with stage.role(ANSWERS + text, "examiner") as role:
        assert text_of(role) == []


@pytest.mark.parametrize("kind", ["link", "file", "somebody's socket", "nothing"])
def test_only_a_socket_of_roots_is_called(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(stage.staging)
    Path("client").mkdir()
    monkeypatch.setattr(f"{stage.module.__name__[:-5]}services.SERVICE_SECONDS", 0.3)
    expected = "client/socket is no socket of root's; remove it"
    if kind == "link":
        Path("client/socket").symlink_to("../examiner/socket")
    elif kind == "file":
        Path("client/socket").write_text("")
    elif kind == "somebody's socket":
        socket.socket(socket.AF_UNIX).bind("client/socket")
        os.chown("client/socket", 64001, 64001)
    else:
        expected = "the sidecar's service for the client does not answer; `tracker-backup sidecar`"
    with pytest.raises(stage.module.Refused, match=expected), stage.role(ANSWERS, "client"):
        pass
    assert not (stage.staging / "client/job").exists()
    assert (stage.staging / "examiner/socket").exists()


@pytest.mark.parametrize("listens", [False, True])
def test_a_socket_that_nobody_answers_is_waited_for_and_then_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.chdir(stage.staging)
    Path("client").mkdir()
    silent = socket.socket(socket.AF_UNIX)
    silent.bind("client/socket")
    if listens:
        silent.listen()
    services = f"{stage.module.__name__[:-5]}services"
    for name, seconds in (("SERVICE_SECONDS", 0.5), ("ANSWER_SECONDS", 0.2)):
        monkeypatch.setattr(f"{services}.{name}", seconds)
    began = time.monotonic()
    with (
        pytest.raises(stage.module.Refused, match="does not answer"),
        stage.role(ANSWERS, "client"),
    ):
        pass
    assert 0.4 < time.monotonic() - began < 5
    assert mode(stage.staging / RUN / "client") == "0700", "the directory is still the core's"


def test_a_service_that_does_not_come_back_is_a_warning_and_its_files_stay_unread(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.role(ANSWERS + "    print(json.dumps({}))\n", "examiner") as role:
        role.ask("examine", 20)
        monkeypatch.setattr(f"{stage.module.__name__[:-5]}services.SERVICE_SECONDS", 0.5)
        stage.lives.kill()
        with pytest.raises(stage.module.Refused, match="does not answer"):
            role.end()
    assert [line for line in stage.log if "does not answer" in line]
    assert not role.path.exists()


@pytest.mark.parametrize("message", [b"0", b"", b"-1", b"64001x", b"1000"])
def test_a_service_takes_no_other_user(stage: Stage, message: bytes) -> None:
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX) as call:
        call.settimeout(10)
        call.connect(str(stage.staging / "examiner/socket"))
        assert call.recv(1) == b"\n"
        if message:
            socket.send_fds(call, [message], [reading, writing, writing])
            os.close(writing)
            assert call.recv(1) == b"", "it has hung up"
            assert os.read(reading, 10) == b"", "nobody was started"
