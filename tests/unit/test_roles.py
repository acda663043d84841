"""A role as the host sees it: what it says is data of somebody who may be hostile.

The roles are real processes. Docker is a script that starts and kills them.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unit.sandbox import TEMPLATES, mode

RUN = "20260102_030405"
HELLO = "print(json.dumps({'protocol': 1}), flush=True)\n"
ANSWERS = HELLO + "for line in sys.stdin:\n    job = json.loads(line)\n"
DOCKER = """#!/bin/sh
cd {here} && printf '%s\\n' "$*" >>calls
[ ! -e broken ] || {{ echo 'Docker does not answer' >&2; exit 1; }}
command=$1
while [ "$#" -gt 3 ]; do shift; done
case $command in
    exec) echo "$$" >"$1.pid"; shift; exec {python} -S -u role.py "$@" ;;
    unpause) echo 'not paused' >&2; exit 1 ;;
esac
[ -e "$3" ] || {{ echo "Error: No such container: $3" >&2; exit 1; }}
rm "$3"
kill -KILL "$(cat "$3.pid")" 2>/dev/null
exit 0
"""


class Stage:
    """Where roles are started, and what became of that."""

    def __init__(self, tool: ModuleType, path: Path) -> None:
        self.module = importlib.import_module(f"{tool.__name__}.roles")
        self.path, self.bin, self.staging = path, path / "bin", path / "staging"
        self.bin.mkdir()
        self.staging.mkdir()
        (path / "calls").touch()
        self.composed: list[tuple[list[str], dict[str, str]]] = []
        self.log: list[str] = []
        self.in_sidecar = False
        self.lives: subprocess.Popen[bytes]  # of a service of the sidecar
        self.watched: tuple[Path, ...] = ()
        self.program("docker", DOCKER.format(python=sys.executable, here=shlex.quote(str(path))))

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def compose(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.composed.append((arguments, environment))
        (self.path / arguments[arguments.index("--name") + 1]).touch()

    def role(self, text: str, kind: str = "reader", index: int = 0) -> Any:
        """A role whose program is this Python text."""
        text = f"import json, os, signal, sys, time\n{text}"
        (self.path / "role.py").write_text(text)
        self.program("backup.sh", f"#!/usr/bin/python3 -Su\n{text}")
        compose = None if self.in_sidecar else self.compose
        settings = self.module.RoleSettings(
            RUN, self.staging, self.log.append, compose, self.watched
        )
        return self.module.Role(settings, kind, index)

    def refuses(self, text: str, seconds: float = 20) -> Any:
        """Refused, which asking this role ends with."""
        with self.role(text) as role, pytest.raises(self.module.Refused) as refused:
            role.ask("capture", seconds)
        return refused.value

    @property
    def calls(self) -> list[str]:
        return (self.path / "calls").read_text().splitlines()

    def is_over(self, kind: str = "reader") -> bool:
        """Whether the container was removed."""
        name = f"tracker-backup-{RUN}-{kind}"
        return f"rm --force --volumes {name}" in self.calls and not (self.path / name).exists()


@pytest.fixture
def stage(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tool, tmp_path)
    monkeypatch.setenv("PATH", f"{stage.bin}:{os.environ['PATH']}")
    if os.geteuid() != 0:  # only root can give a directory away
        monkeypatch.setattr(os, "fchown", lambda *_: None)
    return stage


# ---------------------------------------------------------------- start and end


@pytest.mark.parametrize(
    ("kind", "index", "name", "service", "uid"),
    [
        ("reader", 0, "reader", "backup", 0),
        ("examiner", 0, "examiner-0", "backup-examiner", 64001),
        ("examiner", 3, "examiner-3", "backup-examiner", 64004),
        ("client", 0, "client", "backup-client", 64101),
    ],
)
def test_a_role_is_a_container_of_its_own_service_user_and_directory(
    stage: Stage, kind: str, index: int, name: str, service: str, uid: int
) -> None:
    with stage.role(ANSWERS + "    print(json.dumps({}))\n", kind, index) as role:
        role.ask("something", 20)
        work = stage.staging / RUN / name
        assert (mode(work.parent), mode(work)) == ("0700", "0700")
        if os.geteuid() == 0:
            assert work.stat().st_uid == uid
        container = f"tracker-backup-{RUN}-{name}"
        assert stage.calls == [f"exec -i {container} backup.sh {kind}"]
    ((arguments, environment),) = stage.composed
    assert arguments == [
        *("--profile", "backup", "run", "--detach", "--no-deps", "-T", "--name", container),
        *("--label", f"tracker-backup.run={RUN}", "--user", f"{uid}:{uid}", service, "idle"),
    ]
    assert environment == {"TRACKER_BACKUP_WORK": f"{RUN}/{name}"}
    assert stage.calls[1:] == [f"unpause {container}", f"rm --force --volumes {container}"]
    assert stage.is_over(name)


def test_a_container_that_does_not_start_leaves_nothing_open(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise stage.module.Refused("the backup container could not be started")

    monkeypatch.setattr(stage, "compose", fail)
    role = stage.role(HELLO)
    with pytest.raises(stage.module.Refused, match="could not be started"), role:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(role.directory)


def test_the_files_of_a_role_go_with_it(stage: Stage) -> None:
    with stage.role(HELLO) as role:
        (role.path / "database.db").write_text("large")
        (role.path / "members").mkdir()
    assert [path.name for path in role.path.iterdir()] == ["members"]


def test_after_its_end_a_role_has_its_files_and_does_no_job(stage: Stage) -> None:
    with stage.role(ANSWERS + "    print(json.dumps({}))\n", "examiner") as role:
        role.ask("examine", 20)
        (role.path / "database.db.gz").write_text("finished")
        role.end()
        assert stage.is_over("examiner-0")
        os.close(stage.module.take(role.directory, "database.db.gz", os.geteuid(), 100))
        with pytest.raises(stage.module.Refused, match="examiner-0 does not work any more"):
            role.ask("examine", 20)


def test_a_container_that_is_gone_already_is_no_failure(stage: Stage) -> None:
    with stage.role(ANSWERS + "    print(json.dumps({}))\n") as role:
        role.ask("something", 20)
        (stage.path / role.container).unlink()
    assert stage.log == []


def test_a_signal_between_two_calls_does_not_leave_the_container(
    tool: ModuleType, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals, docker = tool.signals.Signals(), tool.docker.docker
    monkeypatch.setattr(tool.docker, "signals", signals)

    def ring(*words: str) -> Any:
        if words[0] == "unpause":
            signals.receive(signal.SIGTERM, None)
        return docker(*words)

    monkeypatch.setattr(tool.docker, "docker", ring)
    with (
        pytest.raises(tool.signals.Ended),
        stage.role(ANSWERS + "    print(json.dumps({}))\n") as role,
    ):
        role.ask("something", 20)
    assert stage.is_over()


def test_a_container_that_cannot_be_removed_is_a_warning_and_its_files_stay(stage: Stage) -> None:
    with stage.role(ANSWERS + "    print(json.dumps({}))\n") as role:
        role.ask("something", 20)
        (role.path / "database.db").write_text("large")
        (stage.path / "broken").touch()
        with pytest.raises(stage.module.Refused, match="Docker does not answer"):
            role.end()
    assert stage.log == ["WARNING: docker rm failed: Docker does not answer"]
    assert (role.path / "database.db").exists()


# ---------------------------------------------------------------- answers


def test_a_job_reaches_the_role_and_its_answer_comes_back(stage: Stage) -> None:
    text = ANSWERS + "    print(json.dumps({'text': line, 'numbers': {'bytes': 5}}))\n"
    with stage.role(text, "client") as role:
        answer = role.ask("dump", 20, name="torrust", job_name="x", password="p\n\u2028")
        assert json.loads(answer.text) == {
            "protocol": 1,
            "job": "dump",
            "name": "torrust",
            "job_name": "x",
            "password": "p\n\u2028",
        }
        assert answer.numbers == {"bytes": 5}
        assert json.loads(role.ask("preflight", 20).text)["job"] == "preflight"
    assert [call.split()[0] for call in stage.calls] == ["exec", "unpause", "rm"]


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        ({"code": 1, "reason": "disk full"}, "disk full", 1),
        ({"code": 2, "reason": "DB_PATH is missing"}, "DB_PATH is missing", 2),
        ({"code": 12, "reason": "locked"}, "locked", 1),
        (
            {"code": 3},
            "the capture step failed with exit code 3; its message is in the log",
            1,
        ),
        ({"code": 1, "reason": "a\x1b[2Jb"}, "a\\x1b[2Jb", 1),
    ],
)
def test_a_job_that_fails_ends_with_its_reason(
    stage: Stage, answer: dict[str, Any], message: str, code: int
) -> None:
    refused = stage.refuses(f"{ANSWERS}    print(json.dumps({answer!r}))\n")
    assert (str(refused), refused.code) == (message, code)


def test_a_role_whose_job_failed_does_other_jobs(stage: Stage) -> None:
    text = ANSWERS + "    print(json.dumps({'code': int(job['job'] == 'capture_member')}))\n"
    with stage.role(text) as role:
        with pytest.raises(stage.module.Refused):
            role.ask("capture_member", 20)
        assert role.ask("archive", 20).code == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[" * 200_000, "no JSON document"),
        ('{"numbers": {"bytes": NaN}}', "NaN is no whole number"),
        ('{"numbers": {"bytes": 1.5}}', "1.5 is no whole number"),
        ('{"code": true}', "code is True"),
        ('{"code": -1}', "code is -1"),
        ('{"unknown": 1}', "unknown fields"),
        ('{"reason": "\\ud800"}', "reason is no Unicode text"),
        ("\udcff", "no JSON document"),
        ("", "no JSON document"),
        ("[]", "no JSON object"),
        ("7" * 100_000, "no JSON"),
        ('{"text": "' + "x" * (2 << 20) + '"}', "more than 1048576 bytes"),
    ],
)
def test_an_answer_that_cannot_be_used_is_none(stage: Stage, said: str, reason: str) -> None:
    (stage.path / "said").write_text(said + "\n", errors="surrogateescape")
    show = f"    sys.stdout.buffer.write(open({str(stage.path / 'said')!r}, 'rb').read())\n"
    refused = stage.refuses(f"{ANSWERS}{show}    sys.stdout.flush()\n")
    assert str(refused).startswith("the answer to the capture step cannot be used: ")
    assert reason in str(refused)
    assert len(str(refused)) < 1000
    assert str(refused).isprintable()
    assert refused.code == 1
    assert stage.is_over()


def test_a_role_of_another_protocol_is_refused_by_its_number(stage: Stage) -> None:
    refused = stage.refuses("print(json.dumps({'protocol': 2}), flush=True)\ntime.sleep(60)\n")
    assert "the image speaks protocol 2 and the host 1" in str(refused)


def test_an_answer_before_its_job_is_none(stage: Stage) -> None:
    text = ANSWERS + "    print('{}\\n{\"code\": 0}')\n"
    with stage.role(text) as role:
        role.ask("preflight", 20)
        with pytest.raises(stage.module.Refused, match="cannot be used: nobody asked for it"):
            role.ask("capture", 20)


def test_endless_output_without_a_line_ends_at_1_mib(stage: Stage) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = stage.refuses(ANSWERS + "    while True: sys.stdout.write('x' * 65536)\n")
    assert "more than 1048576 bytes" in str(refused)
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_role_that_does_not_read_its_jobs_does_not_block_the_host(stage: Stage) -> None:
    with (
        stage.role(HELLO + "time.sleep(60)\n") as role,
        pytest.raises(stage.module.Refused, match="does not read its jobs"),
    ):
        role.ask("archive", 20, members=["x" * 1000] * 1000)


# ---------------------------------------------------------------- no answer

OVER = "the capture step was not over after its time limit of {} s, or its container was killed"


def test_a_time_limit_ends_the_role(stage: Stage) -> None:
    began = time.monotonic()
    refused = stage.refuses(ANSWERS + "    time.sleep(60)\n", 1)
    assert (str(refused), refused.code) == (OVER.format(1), 1)
    assert 1 <= time.monotonic() - began < 10
    assert stage.is_over()


def test_a_time_limit_calls_docker_only_when_the_block_ends(stage: Stage) -> None:
    """Within the window, bringing the tracker back comes first."""
    with stage.role(ANSWERS + "    time.sleep(60)\n") as role:
        with pytest.raises(stage.module.Refused):
            role.ask("capture", 1)
        assert [call.split()[0] for call in stage.calls] == ["exec"]
        with pytest.raises(stage.module.Refused, match="does not work any more"):
            role.ask("archive", 20)
    assert stage.is_over()


def test_a_line_that_never_ends_is_no_answer(stage: Stage) -> None:
    text = ANSWERS + "    while True: sys.stdout.write(' '); time.sleep(0.01)\n"
    assert str(stage.refuses(text, 1)) == OVER.format(1)


def test_a_role_that_says_no_hello_is_ended(stage: Stage) -> None:
    assert str(stage.refuses("time.sleep(60)\n", 1)) == OVER.format(1)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(137)"])
def test_a_role_that_was_killed_is_said_to_be(stage: Stage, end: str) -> None:
    assert str(stage.refuses(f"{ANSWERS}    {end}\n")) == OVER.format(20)


def test_a_role_that_dies_leaves_its_exit_code_and_its_last_words(stage: Stage) -> None:
    text = ANSWERS + "    sys.exit('Traceback: \\x1b[2J\\nMemoryError')\n"
    assert str(stage.refuses(text)) == (
        "the capture step failed with exit code 1; its message is in the log"
    )
    assert stage.log == ["reader: Traceback: \\x1b[2J", "reader: MemoryError"]


def test_a_role_that_closes_its_output_and_stays_is_ended(stage: Stage) -> None:
    text = ANSWERS + "    os.close(1)\n    os.close(2)\n    time.sleep(60)\n"
    began = time.monotonic()
    assert str(stage.refuses(text)) == OVER.format(20)
    assert time.monotonic() - began < 10


def test_endless_standard_error_is_bounded_and_the_answer_comes_through(stage: Stage) -> None:
    text = (
        ANSWERS + "    for number in range(30000): print('noise', number, file=sys.stderr)\n"
        "    print(json.dumps({'numbers': {'bytes': 1}}))\n"
    )
    with stage.role(text) as role:
        assert role.ask("capture", 30).numbers == {"bytes": 1}
    assert stage.log[-1] == "reader: noise 29999"
    assert len(stage.log) <= 200


def test_endless_standard_error_alone_ends_at_the_time_limit(stage: Stage) -> None:
    refused = stage.refuses(ANSWERS + "    while True: sys.stderr.write('x' * 65536)\n", 1)
    assert str(refused) == OVER.format(1)
    assert [len(line) for line in stage.log] == [2000]


def test_a_signal_goes_through_and_ends_the_role(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signal(BaseException):
        pass

    def ring(_directories: object) -> None:
        raise Signal

    monkeypatch.setattr(stage.module, "require_reserve", ring)
    with pytest.raises(Signal), stage.role(ANSWERS + "    time.sleep(60)\n") as role:
        role.ask("capture", 20)
    assert stage.is_over()


# ---------------------------------------------------------------- the reserve


def facts(free: int, inodes: int = 10**6, size: int = 10**12, files: int = 10**7) -> Any:
    values = (4096, 4096, size // 4096, free // 4096, free // 4096, files, inodes, inodes, 0, 255)
    return os.statvfs_result(values)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (facts(1 << 30), ""),
        (facts(500 << 20), "only 524288000 bytes are left in "),
        (facts(3 << 20, size=100 << 20), ""),
        (facts(1 << 20, size=100 << 20), "only 1048576 bytes are left in "),
        (facts(1 << 30, inodes=999), "only 999 inodes are left in "),
        (facts(1 << 30, inodes=0, files=0), ""),  # btrfs counts none
    ],
)
def test_a_file_system_keeps_2_percent_or_half_a_gibibyte_and_some_inodes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, found: Any, message: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: found)
    if not message:
        stage.module.require_reserve([stage.path])
        return
    with pytest.raises(stage.module.Refused, match=f"{message}{stage.path}"):
        stage.module.require_reserve([stage.path])


def test_while_a_role_works_the_free_space_is_looked_at_each_second(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40, 1 << 40, 1 << 40, 1 << 20])
    monkeypatch.setattr(os, "statvfs", lambda _path: facts(next(free)))
    monkeypatch.setattr(stage.module, "WATCH_SECONDS", 0.1)
    stage.watched = (stage.staging,)
    refused = stage.refuses(ANSWERS + "    time.sleep(60)\n")
    assert str(refused).startswith(f"only 1048576 bytes are left in {stage.staging}; 5")
    assert next(free, None) is None
    assert stage.is_over()


# ---------------------------------------------------------------- in the sidecar


def test_in_the_sidecar_the_reader_is_a_process_of_the_core(stage: Stage) -> None:
    stage.in_sidecar = True
    text = (
        ANSWERS + "    print(json.dumps({'text': json.dumps("
        "[sys.argv[1], os.environ['BACKUP_WORK'], os.getsid(0) == os.getpid()])}))\n"
    )
    with stage.role(text) as role:
        found = json.loads(role.ask("preflight", 20).text)
        assert found == ["reader", str(stage.staging / RUN / "reader"), True]
    assert stage.composed == []
    assert stage.calls == []


def test_in_the_sidecar_a_time_limit_ends_what_the_role_started_too(stage: Stage) -> None:
    stage.in_sidecar = True
    child = stage.path / "child"
    text = (
        ANSWERS + "    pid = os.fork()\n"
        f"    if pid: open({str(child)!r}, 'w').write(str(pid))\n    time.sleep(60)\n"
    )
    assert str(stage.refuses(text, 2)) == OVER.format(2)
    deadline = time.monotonic() + 10
    while is_alive(int(child.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(child.read_text()))


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_the_loop_of_a_worker_speaks_with_the_host(stage: Stage) -> None:
    stage.in_sidecar = True
    text = (
        f"sys.path.insert(0, {str(TEMPLATES / 'backup')!r})\n"
        "from tracker_backup.worker.service import StepFailed, log, serve\n"
        "def capture(job, answer):\n"
        "    log('copying')\n"
        "    print('from a library')\n"
        "    if job['method'] == 'online': raise StepFailed('cannot', 2)\n"
        "    answer.numbers['shared'] = 1\n"
        "sys.exit(serve({'capture': capture}))\n"
    )
    with stage.role(text) as role:
        assert role.ask("capture", 20, method="copy").numbers == {"shared": 1}
        with pytest.raises(stage.module.Refused, match="cannot") as refused:
            role.ask("capture", 20, method="online")
        assert refused.value.code == 2
    assert stage.log[0] == "reader: copying"


# ---------------------------------------------------------------- hand over


class Owner:
    """A role with the attributes that `hand_over` uses."""

    def __init__(self, path: Path, uid: int) -> None:
        path.mkdir()
        self.path, self.uid = path, uid
        self.directory = os.open(path, os.O_RDONLY)


@pytest.fixture
def roles(stage: Stage) -> tuple[Owner, Owner]:
    uid = os.geteuid()
    target = 64001 if uid == 0 else uid
    return Owner(stage.path / "source", uid), Owner(stage.path / "target", target)


def test_files_that_are_there_are_handed_over_with_owner_and_mode(
    stage: Stage, roles: tuple[Owner, Owner]
) -> None:
    source, target = roles
    for name in ("database.db", "database.db-wal"):
        (source.path / name).write_text(name)
        (source.path / name).chmod(0o6755)
    files = {f"database.db{end}": f"database.db{end}" for end in ("", "-journal", "-wal")}
    stage.module.hand_over(source, files, target)
    assert list(source.path.iterdir()) == []
    assert {path.name: path.read_text() for path in target.path.iterdir()} == {
        "database.db": "database.db",
        "database.db-wal": "database.db-wal",
    }
    for path in target.path.iterdir():
        assert (path.stat().st_uid, mode(path)) == (target.uid, "0600")


def test_a_file_gets_another_name_below_a_directory(
    stage: Stage, roles: tuple[Owner, Owner]
) -> None:
    source, target = roles
    for number in ("0", "1"):
        (source.path / "database.db").write_text(number)
        stage.module.hand_over(source, {"database.db": number}, target, "members")
    members = target.path / "members"
    assert {path.name: path.read_text() for path in members.iterdir()} == {"0": "0", "1": "1"}
    assert mode(members) == "0700"


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "directory"])
def test_nothing_but_a_regular_file_of_the_roles_own_is_handed_over(
    stage: Stage, roles: tuple[Owner, Owner], kind: str
) -> None:
    source, target = roles
    precious = stage.path / "precious"
    precious.write_text("precious")
    before = precious.stat()
    planted = source.path / "database.db"
    if kind == "link":
        planted.symlink_to(precious)
    elif kind == "hard link":
        planted.hardlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.mkdir()
    with pytest.raises(stage.module.Refused, match=r"^the container's file database\.db "):
        stage.module.hand_over(source, {"database.db": "database.db"}, target)
    assert (precious.stat().st_uid, precious.stat().st_mode) == (before.st_uid, before.st_mode)


def test_a_file_that_is_larger_than_expected_is_not_handed_over(
    stage: Stage, roles: tuple[Owner, Owner]
) -> None:
    source, target = roles
    (source.path / "database.db").write_bytes(b"")
    os.truncate(source.path / "database.db", 1 << 40)
    with pytest.raises(stage.module.Refused, match="1099511627776 bytes"):
        stage.module.hand_over(source, {"database.db": "0"}, target, "members", limit=1 << 20)
    assert (target.path / "members/0").stat().st_uid == source.uid, "the target has no use of it"


def test_a_directory_that_became_a_link_is_not_followed(
    stage: Stage, roles: tuple[Owner, Owner]
) -> None:
    source, target = roles
    elsewhere = stage.path / "elsewhere"
    elsewhere.mkdir()
    (target.path / "members").symlink_to(elsewhere)
    (source.path / "database.db").write_text("x")
    with pytest.raises(stage.module.Refused, match="members is not a directory"):
        stage.module.hand_over(source, {"database.db": "0"}, target, "members")
    assert list(elsewhere.iterdir()) == []
