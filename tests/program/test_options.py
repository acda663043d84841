"""Options and settings of maintenance-backup.sh."""

from __future__ import annotations

import pytest

from program.host import Host

SETTINGS = (
    "ENVIRONMENT",
    "DEPLOY_DIR",
    "DESTINATION",
    "STRATEGY",
    "QUIESCE",
    "STOP_TIMEOUT_SECONDS",
    "WINDOW_TIMEOUT_SECONDS",
    "IMAGE",
    "IMAGE_SOURCE",
)


def test_help_tells_options_and_exit_codes_and_touches_nothing(host: Host) -> None:
    outcome = host.run("--help").ends_with(0, "--dry-run", "--force", "--recover")
    outcome.says("75 another run holds the lock").lacks("set -E", "import ")
    assert host.calls == [] and not host.log.exists()


def test_an_unknown_option_ends_with_2_before_anything_is_done(host: Host) -> None:
    host.run("--froce").ends_with(2, "--froce", "--help")
    assert host.calls == [] and not host.lock_file.exists()


def test_a_configuration_that_is_not_there_ends_with_2_and_says_what_to_do(host: Host) -> None:
    host.config.unlink()
    host.run().ends_with(2, str(host.config), "install the bundle again")
    assert host.calls == []


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_is_missing_or_empty_is_named(host: Host, key: str) -> None:
    whole = host.config.read_text()
    host.configure(**{key: ""})
    host.run().ends_with(2, key)
    lines = whole.splitlines(keepends=True)
    host.config.write_text("".join(one for one in lines if not one.startswith(f"{key}=")))
    host.run().ends_with(2, key)
    assert host.calls == []


def test_a_setting_is_not_taken_from_the_environment(host: Host) -> None:
    host.config.write_text(host.config.read_text().replace("QUIESCE=", "# "))
    host.environment["QUIESCE"] = "none"
    host.run().ends_with(2, "QUIESCE")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("QUIESCE", "Stop"),
        ("QUIESCE", "off"),
        ("STRATEGY", "sidecar"),
        ("STOP_TIMEOUT_SECONDS", "10s"),
        ("WINDOW_TIMEOUT_SECONDS", "-1"),
    ],
)
def test_a_misspelt_setting_ends_with_2(host: Host, key: str, value: str) -> None:
    host.configure(**{key: value})
    host.run().ends_with(2, str(host.config))
    assert host.calls == []
