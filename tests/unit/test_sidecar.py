"""The sidecar as the host sees it: brought up once, brought back, told what it cannot see, and gone
with its strategy.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from types import SimpleNamespace

import pytest

from unit.sandbox import Sandbox

NOW = datetime.datetime.now(datetime.timezone.utc)
FACTS = "stack.json"  # in the state directory: what only the sidecar needs


@pytest.fixture
def sidecar(sandbox: Sandbox) -> Sandbox:
    """A host on which a sidecar is installed."""
    sandbox.make_bundle(STRATEGY="sidecar", QUIESCE="none")
    return sandbox.installed()


def ups(host: Sandbox) -> list[str]:
    return [call for call in host.calls if call.startswith("docker compose") and " up " in call]


def is_there(host: Sandbox) -> bool:
    return (host.stub / "sidecar.json").exists()


def state(host: Sandbox, **facts: object) -> None:
    """Changes what Docker says of the sidecar's state."""
    path = host.stub / "sidecar.json"
    (found,) = json.loads(path.read_text())
    found["State"].update(facts)
    path.write_text(json.dumps([found]))


# ---------------------------------------------------------------- installing


def test_installing_starts_the_sidecar_alone(sidecar: Sandbox) -> None:
    (up,) = ups(sidecar)
    assert "--project-name torrust" in up
    assert up.endswith("up --detach --no-deps --no-build backup")
    assert (sidecar.deploy / "backup/sidecar.env").read_text().startswith("TZ=UTC\n")
    assert not (sidecar.root / "usr/local/bin/maintenance-backup.sh").exists()
    told = json.loads((sidecar.state / FACTS).read_text())
    assert (told["images"], told["refused"]) == ({"tracker": "sha256:feed"}, "")


def test_installing_again_changes_nothing(sidecar: Sandbox) -> None:
    assert sidecar.install().changes == []


def test_another_strategy_leaves_nothing_of_the_old_one(sidecar: Sandbox) -> None:
    sidecar.make_bundle()
    assert sidecar.install().code == 0
    assert not is_there(sidecar)
    assert not (sidecar.state / FACTS).exists()
    assert not (sidecar.deploy / "backup/sidecar.env").exists()
    assert (sidecar.root / "usr/local/bin/maintenance-backup.sh").exists()
    assert sidecar.install().changes == []
    sidecar.make_bundle(STRATEGY="sidecar", QUIESCE="none")
    assert sidecar.install().code == 0
    assert is_there(sidecar)
    assert not (sidecar.root / "usr/local/bin/maintenance-backup.sh").exists()


def test_uninstalling_removes_it(sidecar: Sandbox) -> None:
    outcome = sidecar.call("uninstall")
    assert outcome.code == 0
    assert not is_there(sidecar)
    assert not (sidecar.deploy / "backup").exists()
    assert not (sidecar.root / "usr/local/lib/tracker-backup").exists()
    assert not sidecar.state.exists()


def test_without_docker_it_is_not_uninstalled_by_half(
    sidecar: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert sidecar.call("uninstall").code == 1
    assert sidecar.cron.exists()


# ---------------------------------------------------------------- every minute


def test_nothing_is_started_while_it_is_as_it_should_be(sidecar: Sandbox) -> None:
    (sidecar.state / "stack.json").unlink()
    assert sidecar.call("sidecar").code == 0
    assert len(ups(sidecar)) == 1
    assert (sidecar.state / "stack.json").exists()


@pytest.mark.parametrize("what", ["removed", "stopped", "time zone", "compose file"])
def test_it_is_brought_back(sidecar: Sandbox, what: str) -> None:
    if what == "removed":
        (sidecar.stub / "sidecar.json").unlink()
    elif what == "stopped":
        state(sidecar, Status="exited")
    elif what == "time zone":
        (sidecar.root / "etc/timezone").write_text("Asia/Kolkata\n")
    else:
        (sidecar.deploy / "docker-compose.backup.yml").write_text("services: {}\n")
    assert sidecar.call("sidecar").code == 0
    assert len(ups(sidecar)) == 2


def test_hold_keeps_it_away(sidecar: Sandbox) -> None:
    (sidecar.stub / "sidecar.json").unlink()
    (sidecar.state / "hold").touch()
    assert sidecar.call("sidecar").code == 0
    assert not is_there(sidecar)


def test_it_is_not_replaced_under_a_run(sidecar: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sidecar.package.sidecar, "time", SimpleNamespace(sleep=lambda _seconds: None)
    )
    monkeypatch.setattr(
        sidecar.package.state,
        "time",
        SimpleNamespace(monotonic=iter(range(10**6)).__next__, sleep=lambda _seconds: None),
    )
    state(sidecar, Status="exited")
    with (sidecar.state / "lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert sidecar.call("sidecar").code == 0
    assert len(ups(sidecar)) == 1


def test_there_is_none_with_another_strategy(host: Sandbox) -> None:
    outcome = host.call("sidecar")
    assert outcome.code == 2
    assert "no sidecar" in outcome.err


def test_a_replaced_file_is_noticed(sidecar: Sandbox) -> None:
    old, new = sidecar.path / "old", sidecar.path / "new"
    old.write_text("")
    new.write_text("")

    def sees(source: str) -> bool:
        found = {
            "State": {"Pid": os.getpid()},
            "Mounts": [{"Source": source, "Destination": str(old)}],
        }
        return bool(sidecar.package.sidecar.sees_other_files(found))

    assert not sees(str(old))
    assert sees(str(new))
    assert sees(str(sidecar.path / "gone"))


def test_the_time_zone_by_link_by_file_by_rule_or_utc(sidecar: Sandbox) -> None:
    etc, zone = sidecar.root / "etc", sidecar.package.sidecar.time_zone
    assert zone() == "UTC"
    (etc / "localtime").write_bytes(b"TZif2\x00...\nCET-1CEST,M3.5.0,M10.5.0/3\n")
    assert zone() == "CET-1CEST,M3.5.0,M10.5.0/3"
    (etc / "timezone").write_text("Europe/Madrid\n")
    assert zone() == "Europe/Madrid"
    (etc / "localtime").unlink()
    (etc / "localtime").symlink_to("/usr/share/zoneinfo/Asia/Kolkata")
    assert zone() == "Asia/Kolkata"


# ---------------------------------------------------------------- status


def test_status_fails_while_it_is_missing_or_unhealthy(sidecar: Sandbox) -> None:
    sidecar.add_run(NOW.strftime("%Y%m%d_%H%M%S"), 1)
    outcome = sidecar.call("status")
    assert (outcome.code, "running, healthy" in outcome.out) == (0, True), outcome.out
    state(sidecar, Health={"Status": "unhealthy"})
    outcome = sidecar.call("status")
    assert (outcome.code, "unhealthy" in outcome.out) == (1, True)
    (sidecar.stub / "sidecar.json").unlink()
    outcome = sidecar.call("status")
    assert (outcome.code, "the sidecar is missing" in outcome.out) == (1, True)
    assert json.loads(sidecar.call("status", "--json").out)["sidecar"] == "missing"


def test_freshness(sidecar: Sandbox) -> None:
    assert sidecar.call("check", "freshness").code == 1
    sidecar.add_run((NOW - datetime.timedelta(hours=49)).strftime("%Y%m%d_%H%M%S"), 1)
    assert "the last success is 49." in sidecar.call("check", "freshness").err
    sidecar.add_run((NOW - datetime.timedelta(hours=47)).strftime("%Y%m%d_%H%M%S"), 2)
    assert sidecar.call("check", "freshness").code == 0


# ---------------------------------------------------------------- retention


def test_a_run_after_a_suspicious_one_does_not_hide_it(sidecar: Sandbox) -> None:
    """The sidecar cannot write down what it saw: each run looks at all that are there."""
    ids = [(NOW - datetime.timedelta(hours=hours)).strftime("%Y%m%d_%H%M%S") for hours in (3, 2, 1)]
    for sequence, (run_id, rows) in enumerate(zip(ids, (1000, 1, 1), strict=True), 1):
        sidecar.add_run(run_id, sequence, tables={"torrents": rows})
    assert "retention is suspended" in sidecar.call("prune").out
    (sidecar.state / "retention.json").unlink()
    assert "retention is suspended" in sidecar.call("prune").out
    assert sidecar.call("acknowledge").code == 0
    assert "suspended" not in sidecar.call("prune").out


# ---------------------------------------------------------------- what the host told


@pytest.mark.parametrize("content", ["", "null", "{}", '{"format": 9}'])
def test_a_damaged_word_of_the_host_is_written_anew(sidecar: Sandbox, content: str) -> None:
    path = sidecar.state / "stack.json"
    path.write_text(content)
    documents = sidecar.package.documents
    with pytest.raises(documents.BadDocument, match=r"stack\.json is "):
        sidecar.package.deployment.told_by_host()
    assert sidecar.call("sidecar").code == 0
    assert sidecar.package.deployment.told_by_host().images == {"tracker": "sha256:feed"}


def test_old_knowledge_is_a_warning(sidecar: Sandbox) -> None:
    path, told = sidecar.state / "stack.json", sidecar.package.deployment.told_by_host
    facts = json.loads(path.read_text())
    assert told().warnings == facts["warnings"]
    path.write_text(json.dumps(facts | {"at": "2026-01-01T00:00:00Z"}))
    assert "cron on the host has told nothing of the stack for" in told().warnings[-1]
    path.unlink()
    with pytest.raises(sidecar.package.host.Refused, match=r"stack\.json is missing"):
        told()
