"""Whose backups a destination holds, and whether Docker and the deployment are what they were at
the installation.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from unit.sandbox import Sandbox


def own(host: Sandbox, **facts: str) -> None:
    (host.destination / ".tracker-backup.json").write_text(
        json.dumps({"environment": "production", "machine_id": "5ca1ab1e", **facts})
    )


def test_the_destination_that_was_installed_is_ours(host: Sandbox) -> None:
    assert json.loads((host.destination / ".tracker-backup.json").read_text()) == {
        "format": 2,
        "environment": "production (written by a newer gen-backup-bundle: generate the bundle "
        "with that)",
        "machine_id": "5ca1ab1e",
    }
    assert host.call("check", "destination").code == 0


def test_a_destination_behind_a_link_below_the_deploy_directory_is_refused(host: Sandbox) -> None:
    """The reader would see it, because its mask covers the name of the configuration alone."""
    real = host.deploy / "storage/elsewhere"
    host.destination.rename(real)
    host.destination.symlink_to(real)
    outcome = host.call("check", "destination")
    assert outcome.code == 2
    assert f"{host.destination} leads through a symbolic link to {real}" in outcome.err
    assert host.install().code == 2


def test_a_link_out_of_the_deploy_directory_is_no_matter(host: Sandbox) -> None:
    real = host.path / "disk"
    host.destination.rename(real)
    host.destination.symlink_to(real)
    assert host.call("check", "destination").code == 0


def test_a_destination_without_its_identity_is_taken_for_one_that_is_not_mounted(
    host: Sandbox,
) -> None:
    (host.destination / ".tracker-backup.json").unlink()
    outcome = host.call("check", "destination")
    assert outcome.code == 1
    assert "mounted" in outcome.err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"null", b'"production"', b"{}", b"[" * 200_000]
)
def test_an_identity_that_cannot_be_read_is_refused(host: Sandbox, content: bytes) -> None:
    (host.destination / ".tracker-backup.json").write_bytes(content)
    refused = host.call("check", "destination")
    assert refused.code == 1
    assert refused.err.startswith("error:")
    status = host.call("status")
    assert status.code == 1
    assert f"PROBLEM: {host.destination}" in status.out
    assert host.install().code == 1
    assert host.install("--take-over-destination").code == 1
    assert (host.destination / ".tracker-backup.json").read_bytes() == content


def test_an_identity_of_a_newer_format_is_refused_by_name(host: Sandbox) -> None:
    path = host.destination / ".tracker-backup.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    assert (
        f"{path} is of format 3, this program knows 2: install a newer bundle"
        in host.call("check", "destination").err
    )
    path.write_text('{"environment": "production", "machine_id": "5ca1ab1e"}')  # an older format
    assert host.call("check", "destination").code == 0


def test_another_environment_is_refused_even_when_taking_over(host: Sandbox) -> None:
    own(host, environment="staging")
    for outcome in (
        host.call("check", "destination"),
        host.call("status"),
        host.install(),
        host.install("--take-over-destination"),
    ):
        assert outcome.code == 1
        assert "staging" in outcome.err + outcome.out
    assert "staging" in (host.destination / ".tracker-backup.json").read_text()


def test_another_machine_is_refused_until_it_is_taken_over(host: Sandbox) -> None:
    own(host, machine_id="d0d0")
    for outcome in (host.call("check", "destination"), host.install()):
        assert outcome.code == 1
        assert "another machine" in outcome.err
    assert host.install("--take-over-destination").code == 0
    assert host.call("check", "destination").code == 0
    assert host.install("--take-over-destination").changes == []


def test_a_destination_elsewhere_must_be_there(sandbox: Sandbox) -> None:
    mounted = sandbox.path / "mnt"
    sandbox.make_bundle(DESTINATION=str(mounted))
    outcome = sandbox.install()
    assert outcome.code == 2
    assert str(mounted) in outcome.err
    assert not mounted.exists()
    mounted.mkdir()
    assert sandbox.install().code == 0
    assert (mounted / ".tracker-backup.json").is_file()
    assert not sandbox.destination.exists()


# ---------------------------------------------------------------- Docker


@pytest.mark.parametrize(
    "version", ["2.24.4", "v2.24.4", "2.26.1-ubuntu1", "2.40.0", "3.0.0", "5.0.1"]
)
def test_a_compose_that_is_new_enough_is_taken(host: Sandbox, version: str) -> None:
    (host.stub / "compose-version").write_text(version + "\n")
    assert host.call("check", "docker").code == 0


@pytest.mark.parametrize("version", ["2.24.3", "v2.9.30", "2.24", "1.29.2", "dev"])
def test_a_compose_that_is_too_old_is_refused_with_what_is_needed(
    host: Sandbox, version: str
) -> None:
    (host.stub / "compose-version").write_text(version + "\n")
    outcome = host.call("check", "docker")
    assert outcome.code == 1
    assert version.removeprefix("v") in outcome.err
    assert "2.24.4" in outcome.err


def test_a_compose_file_that_does_not_go_with_ours_is_refused_with_its_message(
    host: Sandbox,
) -> None:
    (host.stub / "hooks/config").write_text("fail('yaml: line 3: did not find expected key', 15)")
    outcome = host.call("check", "docker")
    assert outcome.code == 1
    assert "line 3" in outcome.err


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "failed to read /opt/.env: line 7: unterminated quoted value 'hidden\nNEXT=hidden",
            "line 7: unterminated quoted value",
        ),
        (
            (
                'failed to read /opt/.env: line 2: unexpected character "!" in variable name '
                '"hidden!=x"'
            ),
            "line 2: unexpected character",
        ),
        (
            'time="now" level=warning msg="The \\"hidden\\" variable is not set."\nno such service',
            "no such service",
        ),
    ],
)
def test_what_compose_repeats_of_a_broken_env_is_not_shown(
    host: Sandbox, said: str, shown: str
) -> None:
    (host.stub / "hooks/config").write_text(f"fail({said!r}, 15)")
    outcome = host.call("check", "docker")
    assert outcome.code == 1
    assert shown in outcome.err and "hidden" not in outcome.err


def test_a_docker_that_does_not_run_is_refused(host: Sandbox) -> None:
    (host.stub / "hooks/version").write_text("fail('Cannot connect to the Docker daemon')")
    outcome = host.call("check", "docker")
    assert outcome.code == 1
    assert "Cannot connect" in outcome.err


def test_a_docker_that_is_not_there_is_refused(
    host: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    outcome = host.call("check", "docker")
    assert outcome.code == 1
    assert "not installed" in outcome.err


def test_a_deploy_directory_without_a_stack_is_a_configuration_error(host: Sandbox) -> None:
    (host.deploy / "docker-compose.yml").unlink()
    outcome = host.call("check", "docker")
    assert outcome.code == 2
    assert "deploy_dir" in outcome.err


# ---------------------------------------------------------------- the deployment as it is now


def run_tracker(host: Sandbox, toml: str = "", **environment: str) -> None:
    """The tracker's container as `docker inspect` shows it, and its tracker.toml."""
    (host.deploy / "storage/tracker/etc/tracker.toml").write_text(toml)
    container: dict[str, Any] = {
        "Id": "7e57",
        "Image": "sha256:feed",
        "State": {"Status": "running"},
        "Config": {
            "Env": [f"{key}={value}" for key, value in environment.items()],
            "Labels": {
                "com.docker.compose.service": "tracker",
                "com.docker.compose.project": "torrust",
                "com.docker.compose.oneoff": "False",
                "com.docker.compose.project.working_dir": str(host.deploy),
            },
        },
        "Mounts": [
            {
                "Type": "bind",
                "Source": str(host.deploy / "storage/tracker/lib"),
                "Destination": "/var/lib/torrust/tracker",
            }
        ],
    }
    (host.stub / "inspect.json").write_text(json.dumps([container]))


def toml(driver: str, path: str) -> str:
    return (
        f'[metadata]\napp = "tracker"\n\n[core.database]\ndriver = "{driver}"\npath = '
        f'"{path}"\n\n[[http_trackers]]\npath = "other"\n'
    )


OURS = "mysql://tracker:pa/ss@mysql:3306/torrust"


@pytest.mark.parametrize(
    "path", [OURS, "mysql://tracker:pass@mysql/torrust", "mysql://tracker:p@ss@mysql:3306/torrust"]
)
def test_the_database_that_was_installed_is_accepted(host: Sandbox, path: str) -> None:
    run_tracker(host, toml("mysql", path))
    assert host.call("check", "deployment").code == 0


@pytest.mark.parametrize(
    ("driver", "path"),
    [
        ("sqlite3", "/var/lib/torrust/tracker/database/tracker.db"),
        ("mysql", OURS.replace("mysql:3306", "db.example:3306")),
        ("mysql", OURS.replace("3306", "3307")),
        ("mysql", OURS.replace("torrust", "other")),
    ],
)
def test_another_database_than_the_installed_one_ends_the_run(
    host: Sandbox, driver: str, path: str
) -> None:
    run_tracker(host, toml(driver, path))
    outcome = host.call("check", "deployment")
    assert outcome.code == 1
    assert "the tracker uses" in outcome.err
    assert "pass" not in outcome.err


def test_the_environment_of_the_tracker_goes_before_its_file(host: Sandbox) -> None:
    prefix = "TORRUST_TRACKER_CONFIG_OVERRIDE_CORE__DATABASE__"
    database = "/var/lib/torrust/tracker/database/tracker.db"
    environment = {f"{prefix}DRIVER": "sqlite3", f"{prefix}PATH": database}
    run_tracker(host, toml("mysql", OURS), **environment)
    assert host.call("check", "deployment").code == 1


def test_a_tracker_that_does_not_tell_its_database_is_a_warning(host: Sandbox) -> None:
    run_tracker(host)
    outcome = host.call("check", "deployment")
    assert outcome.code == 0
    assert "warning" in outcome.out
