"""The sidecar as the host sees it: brought up once, brought back, told what it cannot see, and gone
with its strategy.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from unit.sandbox import Sandbox, mode

NOW = datetime.datetime.now(datetime.timezone.utc)
FACTS = "stack.json"  # in the state directory: what only the sidecar needs


@pytest.fixture
def sidecar(sandbox: Sandbox) -> Sandbox:
    """A host on which a sidecar is installed."""
    sandbox.make_bundle(STRATEGY="sidecar", QUIESCE="none")
    return sandbox.installed()


def ups(host: Sandbox) -> list[str]:
    return [call for call in host.calls if call.startswith("docker compose") and " up " in call]


SERVICES = ["backup", "backup-client", "backup-examiner"]  # with a database server


def containers(host: Sandbox) -> list[dict[str, Any]]:
    """What Docker says of the sidecar's."""
    path = host.stub / "sidecar.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def there(host: Sandbox) -> list[str]:
    labels = [found["Config"]["Labels"] for found in containers(host)]
    return sorted(one["com.docker.compose.service"] for one in labels)


def change(host: Sandbox, name: str = "backup", **facts: object) -> None:
    """Changes what Docker says of a service's state. Without facts, its container is gone."""
    found = containers(host)
    (one,) = (one for one in found if one["Name"] == f"/torrust-{name}-1")
    one["State"].update(facts)
    if not facts:
        found.remove(one)
    (host.stub / "sidecar.json").write_text(json.dumps(found))


# ---------------------------------------------------------------- installing


def test_installing_starts_the_sidecars_services_alone(sidecar: Sandbox) -> None:
    (up,) = ups(sidecar)
    assert "--project-name torrust" in up
    services = "backup backup-examiner backup-client"
    assert up.endswith(f"up --detach --no-deps --no-build {services}")
    for role in ("examiner", "client"):
        assert mode(sidecar.deploy / "storage/backup-staging" / role) == "0711"
    assert (sidecar.deploy / "backup/sidecar.env").read_text().startswith("TZ=UTC\n")
    assert not (sidecar.root / "usr/local/bin/maintenance-backup.sh").exists()
    told = json.loads((sidecar.state / FACTS).read_text())
    assert (told["images"], told["refused"]) == ({"tracker": "sha256:feed"}, "")


def test_installing_again_changes_nothing(sidecar: Sandbox) -> None:
    assert sidecar.install().changes == []


def test_a_sidecar_of_one_container_gets_its_other_services(sidecar: Sandbox) -> None:
    """As an older bundle had it."""
    for name in ("backup-client", "backup-examiner"):
        change(sidecar, name)
    assert there(sidecar) == ["backup"]
    assert sidecar.install().changes == [
        "changed: sidecar torrust-backup-examiner-1 (started)",
        "changed: sidecar torrust-backup-client-1 (started)",
    ]
    assert there(sidecar) == SERVICES


def test_a_service_that_the_new_database_does_not_need_goes(sidecar: Sandbox) -> None:
    sidecar.make_bundle(STRATEGY="sidecar", QUIESCE="none", DB_TYPE="sqlite", DB_PATH="/data/x.db")
    assert sidecar.install().code == 0
    assert there(sidecar) == ["backup", "backup-examiner"]
    assert sidecar.install().changes == []


def test_another_strategy_leaves_nothing_of_the_old_one(sidecar: Sandbox) -> None:
    sidecar.make_bundle()
    assert sidecar.install().code == 0
    assert there(sidecar) == []
    assert list((sidecar.deploy / "storage/backup-staging").iterdir()) == []
    assert not (sidecar.state / FACTS).exists()
    assert not (sidecar.deploy / "backup/sidecar.env").exists()
    assert (sidecar.root / "usr/local/bin/maintenance-backup.sh").exists()
    assert sidecar.install().changes == []
    sidecar.make_bundle(STRATEGY="sidecar", QUIESCE="none")
    assert sidecar.install().code == 0
    assert there(sidecar) == SERVICES
    assert not (sidecar.root / "usr/local/bin/maintenance-backup.sh").exists()


def test_uninstalling_removes_it(sidecar: Sandbox) -> None:
    outcome = sidecar.call("uninstall")
    assert outcome.code == 0
    assert there(sidecar) == []
    assert not (sidecar.deploy / "backup").exists()
    assert not (sidecar.root / "usr/local/lib/tracker-backup").exists()
    assert not sidecar.state.exists()


def test_without_docker_uninstalling_warns_that_it_stays(
    sidecar: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = sidecar.call("uninstall")
    assert (outcome.code, sidecar.cron.exists()) == (0, False)
    assert "warning: Docker does not list its containers: docker is not installed" in outcome.out


# ---------------------------------------------------------------- every minute


def test_nothing_is_started_while_it_is_as_it_should_be(sidecar: Sandbox) -> None:
    (sidecar.state / "stack.json").unlink()
    assert sidecar.call("sidecar").code == 0
    assert len(ups(sidecar)) == 1
    assert (sidecar.state / "stack.json").exists()


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("facts", [{}, {"Status": "exited"}])
def test_a_service_that_is_gone_or_stopped_is_brought_back(
    sidecar: Sandbox, name: str, facts: dict[str, object]
) -> None:
    change(sidecar, name, **facts)
    assert sidecar.call("sidecar").out == f"changed: sidecar torrust-{name}-1 (started)\n"
    assert there(sidecar) == SERVICES


def test_a_service_between_two_lives_is_as_it_should_be(sidecar: Sandbox) -> None:
    change(sidecar, "backup-examiner", Status="restarting", Pid=0)
    assert sidecar.call("sidecar").code == 0
    assert len(ups(sidecar)) == 1


@pytest.mark.parametrize("what", ["time zone", "compose file"])
def test_it_is_replaced_when_something_changed(sidecar: Sandbox, what: str) -> None:
    if what == "time zone":
        (sidecar.root / "etc/timezone").write_text("Asia/Kolkata\n")
    else:
        (sidecar.deploy / "docker-compose.backup.yml").write_text("services: {}\n")
    assert sidecar.call("sidecar").code == 0
    assert len(ups(sidecar)) == 2
    assert {found["Config"]["Env"][0] for found in containers(sidecar)} == {
        "TZ=Asia/Kolkata" if what == "time zone" else "TZ=UTC"
    }


def test_hold_keeps_it_away(sidecar: Sandbox) -> None:
    change(sidecar)
    (sidecar.state / "hold").touch()
    assert sidecar.call("sidecar").code == 0
    assert "backup" not in there(sidecar)


def test_it_is_not_replaced_under_a_run(sidecar: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sidecar.package.sidecar, "time", SimpleNamespace(sleep=lambda _seconds: None)
    )
    monkeypatch.setattr(
        sidecar.package.state,
        "time",
        SimpleNamespace(monotonic=iter(range(10**6)).__next__, sleep=lambda _seconds: None),
    )
    change(sidecar, Status="exited")
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
            "Mounts": [
                {"Type": "bind", "Source": source, "Destination": str(old)},
                {"Type": "tmpfs", "Source": "", "Destination": "/masked"},
            ],
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


def test_status_fails_while_a_service_is_missing_or_unhealthy(sidecar: Sandbox) -> None:
    sidecar.add_run(NOW.strftime("%Y%m%d_%H%M%S"), 1)
    outcome = sidecar.call("status")
    assert (outcome.code, "running, healthy" in outcome.out) == (0, True), outcome.out
    change(sidecar, Health={"Status": "unhealthy"})
    outcome = sidecar.call("status")
    assert (outcome.code, "unhealthy" in outcome.out) == (1, True)
    change(sidecar, "backup-examiner", Status="exited")
    outcome = sidecar.call("status")
    missing = "the sidecar is without backup-examiner, which is exited"
    assert (outcome.code, missing in outcome.out) == (1, True)
    change(sidecar)
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
