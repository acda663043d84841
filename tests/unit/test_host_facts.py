"""A cron daemon, an image, a directory: found whatever their spelling or their kind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from typing import Any

import pytest

from unit.sandbox import IMAGE, Sandbox

OTHER = "pid:[4026532999]"


def without_cron(host: Sandbox) -> None:
    shutil.rmtree(host.root / "proc/310")


@pytest.mark.parametrize("strategy", ["maintenance-window", "sidecar"])
def test_without_a_cron_daemon_nothing_is_installed(sandbox: Sandbox, strategy: str) -> None:
    sandbox.make_bundle(STRATEGY=strategy, QUIESCE="none")
    without_cron(sandbox)
    sandbox.add_process("400", "/usr/sbin/cron", "-f", namespace=OTHER)  # in a container
    sandbox.add_process("401", "python3", "/usr/sbin/cron.py")
    outcome = sandbox.install()
    assert outcome.code == 1
    assert "no cron daemon runs on this host" in outcome.err
    assert "apt-get install cron" in outcome.err
    assert outcome.changes == []
    assert not sandbox.config.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["/usr/sbin/cron", "-f"],
        ["crond", "-n"],
        ["/usr/sbin/cronie"],
        ["/usr/sbin/bcron-sched"],
    ],
)
def test_every_cron_that_reads_cron_d_counts(sandbox: Sandbox, words: list[str]) -> None:
    without_cron(sandbox)
    sandbox.add_process("400", *words)
    assert sandbox.install().code == 0


@pytest.mark.parametrize("words", [["fcron"], ["/bin/busybox", "crond", "-f"], ["crond", "-f"]])
def test_a_cron_that_does_not_read_cron_d_does_not_count(
    sandbox: Sandbox, words: list[str]
) -> None:
    without_cron(sandbox)
    sandbox.add_process("400", *words)
    (sandbox.root / "proc/400/exe").symlink_to("/bin/busybox")
    assert sandbox.install().code == 1


def test_systemd_cron_counts(sandbox: Sandbox) -> None:
    without_cron(sandbox)
    stub = sandbox.stub / "bin"
    stub.mkdir()
    (stub / "systemctl").write_text(f'#!/bin/sh\necho "$*" >{sandbox.stub}/asked\n')
    (stub / "systemctl").chmod(0o755)
    sandbox.monkeypatch.setenv("PATH", str(stub), prepend=":")
    assert sandbox.install().code == 0
    assert (sandbox.stub / "asked").read_text() == "is-active --quiet cron.target\n"


def test_status_says_that_no_cron_daemon_runs(host: Sandbox) -> None:
    assert json.loads(host.call("status", "--json").out)["cron"] is True
    without_cron(host)
    told = json.loads(host.call("status", "--json").out)
    assert told["cron"] is False
    assert any("no cron daemon runs on this host" in problem for problem in told["problems"])


@pytest.mark.parametrize(
    "image", ["mybackup", "docker.io/me/x:1", "registry:5000/x", "me/x@sha256:" + "5a" * 32]
)
def test_an_image_is_there_when_docker_says_so(sandbox: Sandbox, image: str) -> None:
    """`docker images` prints none of these as they are written."""
    sandbox.make_bundle(IMAGE=image, IMAGE_SOURCE="pull")
    with (sandbox.stub / "images").open("a") as file:
        file.write(image + "\n")
    assert sandbox.install().code == 0
    assert not [call for call in sandbox.calls if call.startswith("docker pull")]
    assert f"docker image inspect --format {{{{.Id}}}} {image}" in sandbox.calls


def test_a_docker_that_does_not_answer_is_no_missing_image(sandbox: Sandbox) -> None:
    (sandbox.stub / "hooks/image-inspect").write_text("fail('Cannot connect to the daemon')")
    outcome = sandbox.install()
    assert outcome.code == 1
    assert "Cannot connect to the daemon" in outcome.err
    assert not [call for call in sandbox.calls if call.startswith("docker build")]
    assert IMAGE in (sandbox.stub / "images").read_text()


@pytest.mark.parametrize("started_through", ["link", "real"])
def test_the_deploy_directory_may_be_a_link(host: Sandbox, started_through: str) -> None:
    real = host.path / "real"
    host.deploy.rename(real)
    host.deploy.symlink_to(real)
    (real / "storage/tracker/lib").mkdir()
    spelt = host.deploy if started_through == "link" else real
    host.monkeypatch.setenv("STUB_DEPLOY", str(spelt))
    assert host.call("check", "deployment").code == 0
    package = host.package
    directories = package.deployment.stack_facts(package.host.Host.read(host.config)).directories
    assert "storage/tracker/etc" in directories
    assert host.install().code == 0


@pytest.mark.parametrize("filler", ["\n", " ", "[core.database]\n", "[", "path = '"])
def test_a_hostile_tracker_toml_takes_no_time(host: Sandbox, filler: str) -> None:
    package = host.package
    facts = package.host.Host.read(host.config)
    database = '\n[core.database]\ndriver = "mysql"\npath = "mysql://u:p@h/d"\n[x]\n'
    text = filler * (200_000 // len(filler)) + database
    began = time.monotonic()
    (host.deploy / "storage/tracker/etc/tracker.toml").write_text(text)
    package.deployment.tracker_database(facts, {})
    assert time.monotonic() - began < 5
    text = f"\n  [core.database] \r\n  driver = 'sqlite3'\r\n path=\"/lib/x.db\"\n {database}"
    (host.deploy / "storage/tracker/etc/tracker.toml").write_text(text)
    assert package.deployment.tracker_database(facts, {}) == {
        "driver": "sqlite3",
        "path": "/lib/x.db",
    }


def test_p40_the_trackers_schema_3_is_read(host: Sandbox) -> None:
    package = host.package
    facts = package.host.Host.read(host.config)
    toml = (
        '[metadata]\nschema_version = "3.0.0"\n\n[core.database] # moved\ndriver = "mysql"\n'
        'host = \'db.example\'\nport = 3307\nuser = "u"\npassword = "p"\n'
        'database = "torrust"\n\n[[udp_trackers]]\nport = 1\n'
    )
    (host.deploy / "storage/tracker/etc/tracker.toml").write_text(toml)
    told = package.deployment.tracker_database(facts, {})
    assert package.drivers.used_database(told) == "db.example:3307/torrust"
    name = "TORRUST_TRACKER_CONFIG_OVERRIDE_CORE__DATABASE__HOST"
    told = package.deployment.tracker_database(facts, {name: "other"})
    assert package.drivers.used_database(told) == "other:3307/torrust"


@pytest.mark.parametrize("key", ["DB_PATH", "BACKUP_ALLOW_WRITER_STALL", "BACKUP_COMPRESSION"])
def test_a_setting_that_is_missing_is_a_configuration_error(host: Sandbox, key: str) -> None:
    conf = host.deploy / "backup/backup.conf"
    lines = conf.read_text().splitlines(keepends=True)
    conf.write_text("".join(line for line in lines if not line.startswith(f"{key}=")))
    package = host.package
    settings = package.host.Host.read(host.config).backup_settings
    with pytest.raises(package.host.Refused, match=f"backup.conf: {key} is missing") as refused:
        settings[key]
    assert refused.value.code == 2
    assert settings.get(key, "") == ""


def test_status_shows_everything_although_the_path_list_is_gone(host: Sandbox) -> None:
    (host.deploy / "backup/backup-paths.txt").unlink()
    outcome = host.call("status", "--json")
    assert outcome.code == 1
    assert any("backup-paths.txt" in one for one in json.loads(outcome.out)["problems"])


@pytest.mark.parametrize("planted", ["pipe", "device", "link", "directory"])
def test_what_stands_in_the_place_of_tracker_toml_is_not_opened(
    host: Sandbox, planted: str
) -> None:
    """To open a device can do something: this one would be refused, or do it."""
    package, file = host.package, host.deploy / "storage/tracker/etc/tracker.toml"
    file.unlink(missing_ok=True)
    opened: list[int] = []
    real = os.open

    def spy(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if not flags & os.O_PATH:
            opened.append(flags)
        return real(path, flags, *rest, **more)

    if planted == "pipe":
        os.mkfifo(file)
    elif planted == "device":
        os.mknod(file, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    elif planted == "link":
        file.symlink_to("/etc/hostname")
    else:
        file.mkdir()
    host.monkeypatch.setattr(package.deployment.os, "open", spy)
    host.monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("it was opened"))
    text = package.deployment.read_plain_file(file)
    host.monkeypatch.undo()
    assert (text, opened) == ("", [])
