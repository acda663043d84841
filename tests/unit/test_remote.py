"""Copies in the restic repository: what is pushed, made up for, told, and fetched back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any

import pytest

from unit.sandbox import Sandbox, manifest

SECRETS = {
    "db_password": "pass",
    "db_root_password": "root",
    "restic_password": "secret",
    "restic_repository": "/restic",
}
SETTINGS = {
    "RESTIC_REPOSITORY_FILE": "/run/secrets/restic_repository",
    "RESTIC_PASSWORD_FILE": "/run/secrets/restic_password",
    "RESTIC_KEEP_DAILY": "7",
    "RESTIC_KEEP_WEEKLY": "4",
    "RESTIC_KEEP_MONTHLY": "12",
    "RESTIC_CHECK": "true",
}

# A repository that is a directory: the courier as the container has it, with a hook before a job.
STUB = """#!/usr/bin/env python3
import json, os, pathlib, sys

stub = pathlib.Path(os.environ["STUB"])
repository = stub / "repository"
job = json.loads(sys.stdin.readline())
name = job.pop("job")
with open(stub / "restic", "a") as log:
    log.write(json.dumps([name, job]) + chr(10))


def answer(code=0, **fields):
    print(json.dumps({"protocol": 1}))
    print(json.dumps({"code": code, **fields}))
    sys.exit()


def fail(code, reason):
    answer(code, reason=reason, warnings=["restic says so"])


hook = stub / f"hooks/restic-{name}"
if hook.exists():
    exec(hook.read_text())
if name == "init":
    repository.mkdir()
    (repository / "id").write_text(f"1d{os.getpid()}")
elif not repository.exists():
    fail(10, "there is no restic repository")
elif name == "identify":
    answer(text=(repository / "id").read_text())
elif name == "snapshots":
    answer(text="".join(path.read_text() for path in sorted(repository.glob("*.snapshot"))))
elif name == "backup":
    tags = dict(tag.split("=") for tag in job["tag"].split(","))
    line = f"5a5a5a5a{tags['sequence']} {tags['run']} {tags['sequence']}" + chr(10)
    (repository / f"{tags['run']}.snapshot").write_text(line)
elif name == "show":
    answer(text=(stub / "shown").read_text())
answer()
"""


def calls(host: Sandbox) -> list[tuple[str, dict[str, Any]]]:
    """The jobs that were asked for since the last look, and their arguments."""
    path = host.stub / "restic"
    asked = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [tuple(json.loads(line)) for line in asked]


def steps(host: Sandbox) -> list[str]:
    return [name for name, _ in calls(host)]


def fails(host: Sandbox, step: str, code: int, reason: str) -> None:
    (host.stub / f"hooks/restic-{step}").write_text(f"fail({code}, {reason!r})\n")


def works(host: Sandbox, step: str) -> None:
    (host.stub / f"hooks/restic-{step}").unlink()


def state(host: Sandbox) -> dict[str, Any]:
    return dict(json.loads((host.state / "remote.json").read_text()))


@pytest.fixture
def copying(sandbox: Sandbox) -> Sandbox:
    """A host with a repository, none of it made yet, and one run."""
    sandbox.make_bundle(**SETTINGS)
    assert sandbox.install(secrets=SECRETS).code == 0
    script = sandbox.stub / "courier"
    script.write_text(STUB)
    script.chmod(0o755)
    (sandbox.stub / "hooks/exec").write_text("os.execv(STUB / 'courier', ['courier'])\n")
    add_run(sandbox, "20260101_030000", 1)
    return sandbox


def add_run(host: Sandbox, run_id: str, sequence: int) -> None:
    """A run whose files are as its manifest says: the sandbox's all hold `backup`."""
    files = [
        file | {"sha256": hashlib.sha256(b"backup").hexdigest()}
        for file in manifest(run_id, sequence)["files"]
    ]
    host.add_run(run_id, sequence, files=files)


def test_the_first_push_makes_the_repository_and_copies_what_there_is_newest_first(
    copying: Sandbox,
) -> None:
    add_run(copying, "20260102_030000", 2)
    pushed = copying.call("push")
    assert pushed.code == 0, pushed.err
    asked = calls(copying)
    assert [name for name, _ in asked] == [
        "identify",
        "init",
        "identify",
        "unlock",
        "snapshots",
        "backup",
        "backup",
        "forget",
    ]
    assert asked[5][1] == {
        "protocol": 1,
        "settings": SETTINGS,
        "host": "production",
        "tag": "environment=production,run=20260102_030000,sequence=2",
        "time": "2026-01-02 03:00:00",
        "files": [
            "sqlite/sqlite_20260102_030000.db.gz",
            "config/config_20260102_030000.tar.gz",
            "runs/20260102_030000.json",
        ],
    }
    assert not [call for call in copying.calls if "restic_" in call and "--mount" not in call]
    assert copying.call("push").code == 0
    assert steps(copying) == ["identify", "unlock", "snapshots", "forget"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1, "x"),
        (11, "locked"),
        (12, "wrong password"),
        (13, "turned away"),
        (14, "down"),
        (15, "slow"),
        (16, "bucket"),
    ],
)
def test_only_restics_exit_code_10_makes_a_repository(
    copying: Sandbox, code: int, reason: str
) -> None:
    fails(copying, "identify", code, reason)
    pushed = copying.call("push")
    assert pushed.code == 1
    assert reason in pushed.err
    assert steps(copying) == ["identify"]


def test_a_failed_push_is_told_and_made_up_for(copying: Sandbox) -> None:
    assert copying.call("push").code == 0
    add_run(copying, "20260102_030000", 2)
    fails(copying, "backup", 14, "the server cannot be reached")
    failed = copying.call("push")
    assert failed.code == 1
    assert failed.err.splitlines()[-1] == (
        "error: copying to the restic repository failed, 1 to be made up for by the next run: "
        "the server cannot be reached"
    )
    run = json.loads((copying.destination / "runs/20260102_030000.json").read_text())
    assert (run["result"], run["warnings"]) == (
        "success",
        ["not copied to the restic repository: the server cannot be reached"],
    )
    told = json.loads(copying.call("status", "--json").out)
    assert told["remote"] == {
        "last_pushed": "20260101_030000",
        "pending": ["20260102_030000"],
        "error": "the server cannot be reached",
        "checked": None,
    }
    assert any(
        "to be made up for: the server cannot be reached" in problem for problem in told["problems"]
    )
    works(copying, "backup")
    calls(copying)
    assert copying.call("push").code == 0
    assert [call for call in steps(copying) if call == "backup"] == ["backup"]
    assert json.loads(copying.call("status", "--json").out)["remote"]["error"] == ""


def test_a_repository_that_is_gone_is_not_made_anew_but_another_one_is(copying: Sandbox) -> None:
    assert copying.call("push").code == 0
    shutil.rmtree(copying.stub / "repository")
    gone = copying.call("push")
    assert gone.code == 1
    assert "is gone: is its disk mounted" in gone.err
    assert not (copying.stub / "repository").exists()
    (copying.secrets / "restic_repository").write_text("rest:https://elsewhere.example.org/")
    assert copying.call("push").code == 0
    assert (copying.stub / "repository/20260101_030000.snapshot").exists()


def test_what_the_policy_removed_there_is_not_pushed_again(copying: Sandbox) -> None:
    assert copying.call("push").code == 0
    (copying.stub / "repository/20260101_030000.snapshot").unlink()
    calls(copying)
    assert copying.call("push").code == 0
    assert "backup" not in steps(copying)


def test_a_damaged_backup_is_not_copied(copying: Sandbox) -> None:
    (copying.destination / "sqlite/sqlite_20260101_030000.db.gz").write_text("damage")
    pushed = copying.call("push")
    assert pushed.code == 0
    assert "20260101_030000 is not copied" in pushed.out
    assert "backup" not in steps(copying)


def test_nothing_is_removed_there_while_retention_is_suspended(copying: Sandbox) -> None:
    add_run(copying, "20990101_030000", 2)
    pushed = copying.call("push")
    assert pushed.code == 0
    assert "nothing is removed from the restic repository" in pushed.out
    assert "forget" not in steps(copying)


def test_a_push_that_was_killed_shows_until_the_next(copying: Sandbox) -> None:
    (copying.stub / "hooks/restic-backup").write_text("os.kill(os.getpid(), 9)\n")
    assert copying.call("push").code == 1
    assert state(copying)["error"]
    works(copying, "backup")
    assert copying.call("push").code == 0
    assert state(copying)["error"] == ""


def test_a_push_that_dies_without_a_word_is_told_by_status(copying: Sandbox) -> None:
    (copying.stub / "hooks/restic-backup").write_text(
        f"import shutil; shutil.copy('{copying.state}/remote.json', stub / 'meanwhile')\n"
    )
    assert copying.call("push").code == 0
    assert "did not end" in json.loads((copying.stub / "meanwhile").read_text())["error"]
    assert state(copying)["error"] == ""


def test_without_a_repository_a_run_pushes_nothing_and_says_nothing(host: Sandbox) -> None:
    package = host.package
    package.run.push(package.host.Host.read(host.config))
    assert host.capsys.readouterr() == ("", "")
    assert json.loads(host.call("status", "--json").out)["remote"] is None


def test_the_sequence_goes_on_after_what_the_repository_holds(copying: Sandbox) -> None:
    assert copying.call("push").code == 0
    (copying.stub / "repository/20260103_030000.snapshot").write_text(
        "5a5a5a5a 20260103_030000 41\nx\x1b[2J 20260104_030000 42\n5a5a5a5a ../../x 43\n"
    )
    assert copying.call("push").code == 0
    assert state(copying)["sequence"] == 41


def test_a_dry_restore_from_the_repository_tells_the_newest_run_and_touches_nothing(
    copying: Sandbox,
) -> None:
    add_run(copying, "20260102_030000", 2)
    assert copying.call("push").code == 0
    (copying.stub / "shown").write_text(
        (copying.destination / "runs/20260102_030000.json").read_text()
    )
    copying.empty_destination()
    (copying.state / "remote.json").unlink()
    before = sorted(path.name for path in copying.state.iterdir())
    planned = copying.call("restore", "--from", "restic", "--dry-run", "--confirm")
    assert planned.code == 0, planned.err
    assert sorted(path.name for path in copying.state.iterdir()) == before
    assert "restore of 20260102_030000" in planned.out
    assert "dry run: nothing was done" in planned.out
    assert copying.files() == {".tracker-backup.json"}
    assert not (copying.state / "restic-secrets").exists()
    unknown = copying.call("restore", "20250101_000000", "--from", "restic", "--dry-run")
    assert unknown.code == 1
    assert "the newest there: 20260101_030000 20260102_030000" in unknown.err


def test_a_run_manifest_of_another_environment_is_refused(copying: Sandbox) -> None:
    assert copying.call("push").code == 0
    run = json.loads((copying.destination / "runs/20260101_030000.json").read_text())
    (copying.stub / "shown").write_text(json.dumps(run | {"environment": "somebody-else"}))
    refused = copying.call("restore", "--from", "restic", "--dry-run")
    assert refused.code == 1
    assert "is not of this run of 'production'" in refused.err


def test_a_restore_without_a_run_says_what_is_missing(host: Sandbox) -> None:
    asked = host.call("restore")
    assert asked.code == 2
    assert "say which backup" in asked.err


def test_the_host_of_a_sidecar_pushes_each_of_its_runs_once(copying: Sandbox) -> None:
    """The sidecar itself has neither Docker nor restic's secrets."""
    package = copying.package
    host = package.host.Host.read(package.host.CONFIG)
    package.remote.push_what_is_new(host)
    assert "backup" in steps(copying)
    package.remote.push_what_is_new(host)
    assert steps(copying) == []
    fails(copying, "backup", 14, "down")
    add_run(copying, "20260102_030000", 2)
    with pytest.raises(package.host.Refused, match="down"):
        package.remote.push_what_is_new(host)
    assert steps(copying)
    package.remote.push_what_is_new(host)
    assert steps(copying) == []


# ---------------------------------------------------------------- incomplete runs, damage


def good_files() -> list[dict[str, Any]]:
    """The database of the run 20260102_030000, with its SHA-256."""
    files = manifest("20260102_030000", 2)["files"]
    return [files[0] | {"sha256": hashlib.sha256(b"backup").hexdigest()}]


def test_an_incomplete_run_is_copied_and_lets_nothing_be_removed_there(copying: Sandbox) -> None:
    copying.add_run(
        "20260102_030000", 2, result="incomplete", files=good_files(), missing=["caddy"]
    )
    pushed = copying.call("push")
    assert pushed.code == 0
    assert "copied 20260102_030000" in pushed.out
    assert "nothing is removed from the restic repository: a backup is incomplete" in pushed.out
    assert "forget" not in steps(copying)
    add_run(copying, "20260103_030000", 3)
    assert copying.call("push").code == 0
    assert "forget" in steps(copying)


def test_latest_in_the_repository_is_the_newest_success_there(copying: Sandbox) -> None:
    copying.add_run(
        "20260102_030000", 2, result="incomplete", files=good_files(), missing=["caddy"]
    )
    assert copying.call("push").code == 0
    (copying.stub / "hooks/restic-show").write_text(
        f"answer(text=(pathlib.Path('{copying.path}') / job['file'][1:]).read_text())\n"
    )
    shutil.copytree(copying.destination / "runs", copying.path / "runs")
    copying.empty_destination()
    planned = copying.call("restore", "--from", "restic", "--dry-run")
    assert "restore of 20260101_030000" in planned.out, planned.err
    named = copying.call("restore", "20260102_030000", "--from", "restic", "--dry-run")
    assert "restore of 20260102_030000" in named.out
    assert "warning: 20260102_030000 is incomplete, it lacks caddy" in named.out
    assert state(copying)["sequence"] == 2
    (copying.stub / "repository/20260101_030000.snapshot").unlink()
    refused = copying.call("restore", "--from", "restic", "--dry-run")
    assert (refused.code, "holds no successful backup" in refused.err) == (1, True)


@pytest.mark.parametrize("content", ["", "null", "{}", '{"format": 1, "pushed": []}', "[1"])
def test_a_damaged_state_of_the_repository_is_refused_with_what_to_do(
    copying: Sandbox, content: str
) -> None:
    assert copying.call("push").code == 0
    calls(copying)
    path = copying.state / "remote.json"
    path.write_text(content)
    pushed = copying.call("push")
    assert pushed.code == 1
    assert pushed.err.startswith(f"error: {path} is damaged: ")
    assert pushed.err.endswith(
        "; remove it: the next copy asks the repository again what it holds\n"
    )
    assert (steps(copying), path.read_text()) == ([], content)
    path.unlink()
    assert copying.call("push").code == 0
    assert "backup" not in steps(copying)
    assert state(copying)["pushed"] == ["20260101_030000"]


def test_a_damaged_state_of_the_repository_stops_no_run(
    copying: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    package = copying.package
    runs = package.runs.read_runs(package.host.Host.read(package.host.CONFIG))
    (copying.state / "remote.json").write_text("")
    assert package.remote.next_sequence(runs) == 2
    assert "remote.json is damaged" in capsys.readouterr().err
    nothing = package.remote.NOTHING.as_object()
    (copying.state / "remote.json").write_text(json.dumps(nothing | {"sequence": 41}))
    assert package.remote.next_sequence(runs) == 42
    (copying.state / "remote.json").write_text(json.dumps(nothing | {"sequence": 10**18 - 1}))
    assert package.remote.next_sequence(runs) == 10**12, "no run could be recorded otherwise"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            {"files": [{"kind": "config", "path": "../../etc/x", "bytes": 1, "sha256": "0" * 64}]},
            "path",
        ),
        ({"sequence": True}, "sequence is True"),
        ({"sequence": 2**63 - 1}, "sequence is 9223372036854775807"),
        ({"format": 3}, "is of format 3, this program knows 2: install a newer bundle"),
        ({"directories": {".": {"uid": 0, "gid": 0, "mode": "$(id)"}}}, "mode is"),
        ({"result": "failed", "files": []}, "is not of this run"),
        ({"id": "20260102_030000", "files": []}, "is damaged"),
        (None, "is damaged: no JSON document"),
    ],
)
def test_a_hostile_run_manifest_in_the_repository_is_refused(
    copying: Sandbox, facts: dict[str, Any] | None, reason: str
) -> None:
    assert copying.call("push").code == 0
    run = json.loads((copying.destination / "runs/20260101_030000.json").read_text())
    (copying.stub / "shown").write_text("[" * 200_000 if facts is None else json.dumps(run | facts))
    before = copying.files()
    refused = copying.call("restore", "--from", "restic", "--confirm")
    assert refused.code == 1
    assert "the run manifest of 20260101_030000 in the restic repository " in refused.err
    assert reason in refused.err
    assert copying.files() == before


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link", "directory is a link"])
def test_what_the_courier_fetched_is_refused_if_it_is_no_plain_file(
    copying: Sandbox, kind: str
) -> None:
    """Nothing outside is read, changed or published, and nobody waits at a pipe."""
    package = copying.package
    run = package.documents.RunManifest.read(copying.destination / "runs/20260101_030000.json")
    copying.empty_destination()
    outside = copying.path / "outside"
    outside.mkdir()
    for path in (file.path.partition("/")[2] for file in run.files):
        (outside / path).write_text("backup")  # as the run manifest says
        (outside / path).chmod(0o644)

    def call(_: Any, _job: str, **_arguments: Any) -> str:
        target = copying.destination / ".fetch"
        for directory, _, name in (file.path.partition("/") for file in run.files):
            if kind == "directory is a link":
                (target / directory).symlink_to(outside)
                continue
            (target / directory).mkdir()
            if kind == "link":
                (target / directory / name).symlink_to(outside / name)
            elif kind == "pipe":
                os.mkfifo(target / directory / name)
            else:
                (target / directory / name).hardlink_to(outside / name)
        return ""

    copying.monkeypatch.setattr(package.repository.Repository, "call", call)
    host = package.host.Host.read(package.host.CONFIG)
    snapshot = package.repository.Snapshot("5a5a5a5a", run.id, 1)
    with pytest.raises(package.host.Refused, match="was not fetched whole"):
        package.fetch.fetch(host, snapshot, run)
    assert {path.stat().st_mode & 0o777 for path in outside.iterdir()} == {0o644}
    assert copying.files() == {".tracker-backup.json"}
