"""The courier as a process; restic is a stub that says what the real one was heard to say
(tests/e2e/test_remote.py has the real one).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unit import worker


class Courier:
    """The courier, its secrets, and what restic was called with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = {"RESTIC_KEEP_DAILY": "7", "RESTIC_KEEP_WEEKLY": "0"}
        self.settings["RESTIC_KEEP_MONTHLY"] = "12"
        self.secret("RESTIC_REPOSITORY_FILE", "rest:http://user:hidden-word@backup.example.org/x/")
        self.secret("RESTIC_PASSWORD_FILE", "the password")
        (path / "backups").mkdir()
        (path / "disk").mkdir()
        self.answers()

    def secret(self, key: str, content: str) -> Path:
        path = self.path / f"secret_{key.lower()}"
        path.write_text(content)
        self.settings[key] = str(path)
        return path

    def answers(self, code: int = 0, said: str = "", output: str = "") -> None:
        """What restic does at every call; its arguments and environment are written down."""
        self.is_restic(
            f"with open({str(self.path / 'calls')!r}, 'a') as calls:\n"
            "    calls.write(json.dumps(sys.argv[1:]) + '\\n')\n"
            f"open({str(self.path / 'environment')!r}, 'w').write(json.dumps(dict(os.environ)))\n"
            f"open({str(self.path / 'directory')!r}, 'w').write(os.getcwd())\n"
            f"sys.stdout.write({output!r})\nprint({said!r}, file=sys.stderr)\nsys.exit({code})\n"
        )

    def is_restic(self, script: str) -> None:
        head = "#!/usr/bin/env python3\nimport json, os, sys, time\n"
        worker.program(self.path / "bin/restic", head + script)

    def ask(self, job: str, seconds: int = 5, **arguments: Any) -> dict[str, Any]:
        environment = {
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
            "BACKUP_DESTINATION": str(self.path / "backups"),
            "BACKUP_SCRATCH": str(self.path),
            "BACKUP_ANSWER_SECONDS": str(seconds),
            "TMPDIR": str(self.path / "disk"),
        }
        return worker.ask("courier", job, environment, settings=self.settings, **arguments)

    @property
    def calls(self) -> list[list[str]]:
        path = self.path / "calls"
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        return dict(json.loads((self.path / "environment").read_text()))


@pytest.fixture
def courier(tmp_path: Path) -> Courier:
    return Courier(tmp_path)


REASONS = """
10|10|Fatal: repository does not exist: unable to open config file|there is no restic repository
11|11|unable to create lock: locked by PID 20 on nas|by another restic: locked by PID 20
12|12|Fatal: wrong password or no key found|the repository's password is wrong
1|13|Stat(<config/>) failed: unexpected HTTP response (401): 401 Unauthorized|turns the keys
124|13|returned error, retrying: Stat: The Access Key Id you provided does not exist.|turns the keys
124|13|returned error: Stat: The request signature we calculated does not match|turns the keys
1|13|subprocess ssh: copies@nas: Permission denied (publickey,password).|turns the SSH key
1|13|subprocess ssh: Host key verification failed.|the server's key is not in the file
124|14|returned error: dial tcp 127.0.0.1:8001: connect: connection refused|cannot be reached
124|14|returned error: dial tcp: lookup no.such.host on 10.0.0.1:53: no such host|cannot be reached
1|14|subprocess ssh: ssh: connect to host nas port 22: Connection refused|cannot be reached
124|15|nothing that we know|was not over after 5 s
124|16|returned error, retrying: Stat: The specified bucket does not exist|the bucket does not exist
1|1|Fatal: write /scratch/pack: no space left on device|there is no space left, in the
1|1||restic cat failed, exit code 1: it printed nothing
1|1|Fatal: something else|restic cat failed, exit code 1: Fatal: something else
""".strip().splitlines()


@pytest.mark.parametrize("row", REASONS)
def test_each_reason_has_a_code_of_its_own_and_a_message_that_names_what_to_correct(
    courier: Courier, row: str
) -> None:
    code, own, said, message = row.split("|")
    courier.answers(int(code), said)
    answer = courier.ask("identify")
    assert answer["code"] == int(own)
    assert message in answer["reason"]


def test_a_restic_that_hangs_is_ended(courier: Courier) -> None:
    courier.is_restic("time.sleep(60)\n")
    answer = courier.ask("identify", seconds=1)
    assert answer["code"] == 15
    assert "was not over after 1 s: it printed nothing" in answer["reason"]


def test_neither_the_password_of_the_address_nor_a_key_shows_in_what_restic_said(
    courier: Courier,
) -> None:
    courier.secret("RESTIC_ENVIRONMENT_FILE", "AWS_SECRET_ACCESS_KEY=quite secret key\n")
    courier.answers(1, "first\nFatal: hidden-word and quite secret key")
    answer = courier.ask("check")
    assert answer["code"] == 1
    assert "Fatal: *** and ***" in answer["reason"]
    assert answer["warnings"] == ["first", "Fatal: *** and ***"]
    assert "hidden-word" not in str(answer)
    assert "quite secret" not in str(answer)
    assert courier.environment["AWS_SECRET_ACCESS_KEY"] == "quite secret key"
    assert not [
        word for word in ("secret key", "hidden-word", "the password") if word in str(courier.calls)
    ]


@pytest.mark.parametrize("line", ["LD_PRELOAD=/x", "", "AWS_KEY", "aws_x=1"])
def test_a_variable_that_is_none_of_a_servers_is_refused(courier: Courier, line: str) -> None:
    courier.secret("RESTIC_ENVIRONMENT_FILE", f"AWS_X=1\n{line}\nAWS_Y=2\n")
    assert courier.ask("identify")["code"] == 2
    assert courier.calls == []


def test_a_secret_that_is_missing_is_named(courier: Courier) -> None:
    path = courier.secret("RESTIC_PASSWORD_FILE", "")
    path.unlink()
    answer = courier.ask("identify")
    assert (answer["code"], answer["reason"]) == (2, f"the secret {path} is missing")


def test_forget_is_limited_to_the_host_and_the_tag_and_keeps_what_is_more_than_0(
    courier: Courier,
) -> None:
    assert courier.ask("forget", host="my, host", tag="environment=my%2C host")["code"] == 0
    assert courier.calls[0][1:] == [
        "forget",
        "--quiet",
        "--prune",
        "--retry-lock=30s",
        "--host=my, host",
        "--tag=environment=my%2C host",
        "--group-by=host",
        "--keep-daily=7",
        "--keep-monthly=12",
    ]


def test_a_policy_that_keeps_nothing_removes_nothing(courier: Courier) -> None:
    courier.settings |= dict.fromkeys(("RESTIC_KEEP_DAILY", "RESTIC_KEEP_MONTHLY"), "0")
    answer = courier.ask("forget", host="host", tag="tag")
    assert answer["code"] == 2
    assert "nothing is removed" in answer["reason"]
    assert courier.calls == []


@pytest.mark.parametrize(
    ("locks", "options"),
    [
        ("", None),
        ('{"hostname": "somebody-else"}', []),
        (f'{{"hostname": "{os.uname().nodename}"}}', ["--remove-all"]),
    ],
)
def test_locks_of_others_are_removed_if_stale_and_all_if_all_are_ours(
    courier: Courier, locks: str, options: list[str] | None
) -> None:
    courier.answers(output=locks)
    assert courier.ask("unlock")["code"] == 0
    unlocked = [call[2:] for call in courier.calls if call[1] == "unlock"]
    assert unlocked == ([] if options is None else [options])


def test_the_ssh_key_is_used_from_a_copy_that_only_its_user_may_read(courier: Courier) -> None:
    courier.secret("RESTIC_SSH_KEY_FILE", "a key without a final newline")
    hosts = courier.secret("RESTIC_KNOWN_HOSTS_FILE", "nas ssh-ed25519 AAAA\n")
    assert courier.ask("check")["code"] == 0
    copy = courier.path / "ssh_key"
    assert copy.read_text() == "a key without a final newline\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    option = courier.calls[0][2]
    assert f"StrictHostKeyChecking=yes -o UserKnownHostsFile={hosts} " in option
    assert courier.ask("check")["code"] == 0  # the copy of the job before is replaced


def test_restic_has_its_temporary_files_where_tmpdir_says_and_the_ssh_key_is_not_among_them(
    courier: Courier,
) -> None:
    courier.secret("RESTIC_SSH_KEY_FILE", "key")
    courier.secret("RESTIC_KNOWN_HOSTS_FILE", "")
    assert courier.ask("check")["code"] == 0
    assert courier.environment["TMPDIR"] == str(courier.path / "disk")
    assert list((courier.path / "disk").iterdir()) == []


def test_of_the_snapshots_only_id_run_and_sequence_are_answered(courier: Courier) -> None:
    snapshots = [
        {"id": "5a5a5a5a", "paths": ["x" * 1000], "tags": ["run=20260101_030000", "sequence=7"]},
        {"id": "6b6b6b6b", "tags": None},
    ]
    courier.answers(output=json.dumps(snapshots))
    answer = courier.ask("snapshots", host="host", tag="tag")
    assert answer["text"] == "5a5a5a5a 20260101_030000 7\n6b6b6b6b  \n"
    assert courier.calls[0][1:] == [
        "snapshots",
        "--no-lock",
        "--json",
        "--host=host",
        "--tag=tag",
    ]
    courier.answers(output="null")
    assert courier.ask("snapshots", host="host", tag="tag")["text"] == ""


def test_files_are_backed_up_by_their_names_below_the_destination(courier: Courier) -> None:
    done = courier.ask("backup", host="h", tag="t", time="2026-01-01 03:00:00", files=["a", "b"])
    assert done["code"] == 0
    assert courier.calls[0][1:] == [
        "backup",
        "--quiet",
        "--retry-lock=30s",
        "--host=h",
        "--tag=t",
        "--time=2026-01-01 03:00:00",
        "--",
        "a",
        "b",
    ]
    assert (courier.path / "directory").read_text() == str(courier.path / "backups")


def test_the_repositorys_id_and_a_files_content_are_answered(courier: Courier) -> None:
    courier.answers(output='{"version": 2, "id": "5a5a"}')
    assert courier.ask("identify")["text"] == "5a5a"
    courier.answers(output="content \x1b")
    assert courier.ask("show", snapshot="5a", file="/runs/x.json")["text"] == "content \x1b"
    courier.answers(output="x" * 600_000)
    assert courier.ask("show", snapshot="5a", file="/runs/x.json")["code"] == 1


@pytest.mark.parametrize(("limit", "expected"), [("2048", ["--limit-upload=2048"]), ("", [])])
def test_a_limit_of_the_upload_is_an_option_of_restic(
    courier: Courier, limit: str, expected: list[str]
) -> None:
    courier.settings |= {"RESTIC_LIMIT_UPLOAD_KIB": limit} if limit else {}
    courier.ask("backup", host="demo", tag="run=1", time="now", files=["runs/1.json"])
    (call,) = courier.calls
    assert [word for word in call if "limit" in word] == expected


def test_restic_has_a_low_priority(courier: Courier) -> None:
    courier.is_restic(
        f"priority = os.getpriority(os.PRIO_PROCESS, 0)\n"
        f"open({str(courier.path / 'priority')!r}, 'w').write(str(priority))\n"
    )
    courier.ask("init")
    assert (courier.path / "priority").read_text() == "10"
